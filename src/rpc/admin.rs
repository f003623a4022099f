//! The service of operators.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::answer::{duration, model_name};
use super::proto::admin_service_server::AdminService;
use super::proto::{
    self, DrainServerRequest, DrainServerResponse, GetLoadRequest, GetLoadResponse, GetServerInfoRequest,
    GetServerInfoResponse, LoadModelRequest, LoadModelResponse, Model, ModelLoad, ModelMemory, ReloadModelRequest,
    ReloadModelResponse, SetAliasRequest, SetAliasResponse, SetLogFilterRequest, SetLogFilterResponse,
    UnloadModelRequest, UnloadModelResponse,
};
use super::status::status;
use super::{answer, convert};
use crate::engine::catalogue::State;
use crate::error::{Error, Violations};
use crate::fleet::Fleet;
use crate::machine;
use crate::spec::{Backend, Device, Precision};

/// Longest that requests may be given to finish.
const LONGEST_DRAIN: Duration = Duration::from_secs(24 * 3600);
/// Longest filter quoted back.
const MAX_QUOTED: usize = 200;

/// What a server is, apart from its models.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerInfo {
    /// When it started.
    pub(crate) started: (SystemTime, Instant),
    /// What computes the steps.
    pub(crate) backend: Backend,
    /// Where models are.
    pub(crate) device: Device,
    /// How numbers are held.
    pub(crate) precision: Precision,
}

impl ServerInfo {
    /// One that starts now.
    pub(crate) fn now() -> Self {
        let started = (SystemTime::now(), Instant::now());
        let (backend, device, precision) = Default::default();
        Self { started, backend, device, precision }
    }
}

/// What a server with its models on `device` computes on.
fn devices(device: Device) -> Vec<proto::Device> {
    let gpu = (device != Device::Cpu).then(|| proto::Device { name: device.to_string(), cores: 0 });
    let processor = proto::Device { name: Device::Cpu.to_string(), cores: machine::cores() };
    std::iter::once(processor).chain(gpu).collect()
}

type SetLogFilter = dyn Fn(&str) -> Result<String, String> + Send + Sync;

/// Changes what is logged.
#[derive(Clone)]
pub struct LogFilter(Arc<SetLogFilter>);

impl LogFilter {
    /// `set` takes a filter and returns the one before, or what a filter must be.
    pub fn new(set: impl Fn(&str) -> Result<String, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(set))
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogFilter")
    }
}

/// Operates the server.
#[derive(Clone, Debug)]
pub(super) struct Admin {
    pub(super) fleet: Fleet,
    /// None where nothing is logged.
    pub(super) log: Option<LogFilter>,
    pub(super) info: ServerInfo,
    /// Cancelled to end the server.
    pub(super) drain: CancellationToken,
}

impl Admin {
    fn model(&self, name: &str) -> Result<Model, Status> {
        let catalogue = self.fleet.catalogue();
        let (name, state) = catalogue.get(name).map_err(|error| status(&error))?;
        let mut model = answer::model(&name, &state, catalogue.is_draining());
        model.aliases = answer::aliases(&catalogue.aliases(), &name);
        Ok(model)
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn load_model(&self, request: Request<LoadModelRequest>) -> Result<Response<LoadModelResponse>, Status> {
        let name = named(request.into_inner().name)?;
        self.fleet.load(&name).await.map_err(|error| status(&error))?;
        Ok(Response::new(LoadModelResponse { model: Some(self.model(&name)?) }))
    }

    async fn unload_model(
        &self,
        request: Request<UnloadModelRequest>,
    ) -> Result<Response<UnloadModelResponse>, Status> {
        let UnloadModelRequest { name, drain_timeout } = request.into_inner();
        let (name, limit) = (named(name)?, limit(drain_timeout)?);
        // Whoever asked may leave: a model that drains goes in any case.
        let drained = self.fleet.unload(&name, limit).await.map_err(|error| status(&error))?;
        Ok(Response::new(UnloadModelResponse { drained }))
    }

    async fn reload_model(
        &self,
        request: Request<ReloadModelRequest>,
    ) -> Result<Response<ReloadModelResponse>, Status> {
        let ReloadModelRequest { name, drain_timeout } = request.into_inner();
        let (name, limit) = (named(name)?, limit(drain_timeout)?);
        let previous = self.fleet.reload(&name, limit).await.map_err(|error| status(&error))?;
        let answer =
            ReloadModelResponse { model: Some(self.model(&name)?), previous_revision: previous.unwrap_or_default() };
        Ok(Response::new(answer))
    }

    async fn set_alias(&self, request: Request<SetAliasRequest>) -> Result<Response<SetAliasResponse>, Status> {
        let SetAliasRequest { alias, model } = request.into_inner();
        let previous = self.fleet.set_alias(&alias, &model).map_err(|error| status(&error))?;
        tracing::info!(alias, model, "alias set");
        let previous_model = previous.as_deref().map(model_name).unwrap_or_default();
        Ok(Response::new(SetAliasResponse { previous_model }))
    }

    async fn get_server_info(
        &self,
        _request: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let (fleet, (since, started)) = (&self.fleet, self.info.started);
        let memory = fleet.memory();
        Ok(Response::new(GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build_revision: env!("PIXELD_GIT_REVISION").to_owned(),
            start_time: Some(since.into()),
            uptime: duration(started.elapsed()),
            backend: answer::backend(self.info.backend).into(),
            precision: answer::precision(self.info.precision).into(),
            shards: fleet.settings().shards,
            devices: devices(self.info.device),
            model_memory: Some(ModelMemory { used_bytes: memory.used(), limit_bytes: memory.limit() }),
            draining: fleet.catalogue().is_draining(),
        }))
    }

    async fn get_load(&self, request: Request<GetLoadRequest>) -> Result<Response<GetLoadResponse>, Status> {
        let (name, catalogue) = (request.into_inner().model, self.fleet.catalogue());
        let models = match name.as_str() {
            "" => catalogue.list().into_iter().collect(),
            name => vec![catalogue.get(name).map_err(|error| status(&error))?],
        };
        let models = models.iter().filter_map(|(name, state)| load(name, state, catalogue.is_draining()));
        Ok(Response::new(GetLoadResponse { models: models.collect() }))
    }

    async fn set_log_filter(
        &self,
        request: Request<SetLogFilterRequest>,
    ) -> Result<Response<SetLogFilterResponse>, Status> {
        let SetLogFilterRequest { filter } = request.into_inner();
        let LogFilter(set) =
            self.log.as_ref().ok_or_else(|| status(&Error::Unsupported("this server has no log".to_owned())))?;
        let previous_filter = set(&filter).map_err(|rule| {
            let given: String = filter.chars().take(MAX_QUOTED).collect();
            status(&Violations::one("filter", format!("must be {rule}, got {given:?}")).into())
        })?;
        tracing::info!(filter, previous_filter, "log filter set");
        Ok(Response::new(SetLogFilterResponse { previous_filter }))
    }

    async fn drain_server(
        &self,
        _request: Request<DrainServerRequest>,
    ) -> Result<Response<DrainServerResponse>, Status> {
        tracing::info!("an operator ends the server");
        self.drain.cancel();
        Ok(Response::new(DrainServerResponse {}))
    }
}

/// How busy a model is that has an engine.
fn load(name: &str, state: &State, draining: bool) -> Option<ModelLoad> {
    let handle = state.handle()?;
    let (load, serves) = (handle.load(), matches!(state, State::Serving { .. }));
    let state = if serves && !draining { proto::ModelState::Ready } else { proto::ModelState::Draining };
    Some(ModelLoad {
        model: model_name(name),
        revision: handle.spec().revision.clone(),
        state: state.into(),
        running_images: load.running,
        queued_images: load.queued,
        max_running_images: load.slots,
        scoring_images: load.scoring,
        estimated_queue_duration: handle.estimated_wait().and_then(duration),
        last_step_age: load.since_progress.and_then(duration),
        step_duration: Some(load.step).filter(|step| !step.is_zero()).and_then(duration),
    })
}

/// A name that is there.
fn named(name: String) -> Result<String, Status> {
    if name.is_empty() {
        return Err(status(&Error::Invalid(Violations::one("name", "must name a model, got nothing"))));
    }
    Ok(name)
}

fn limit(given: Option<prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let mut violations = Violations::new();
    let limit = convert::duration(given, "drain_timeout", Duration::ZERO, LONGEST_DRAIN, &mut violations);
    violations.into_result(limit).map_err(|faults| status(&faults.into()))
}
