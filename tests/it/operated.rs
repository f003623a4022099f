//! A daemon with an operator, and a shelf of packages that come and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pixeld::app::{App, Source};
use pixeld::config::Config;
use pixeld::error::Violations;
use pixeld::model::PixelModel;
use pixeld::repository::Outline;
use pixeld::rpc::AdminListener;
use pixeld::rpc::proto::admin_service_client::AdminServiceClient;
use pixeld::rpc::proto::{
    GetModelRequest, LoadModelRequest, Model, ReloadModelRequest, ReloadModelResponse, SetAliasRequest,
    UnloadModelRequest,
};
use pixeld::security::Security;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::harness::{Daemon, patiently};
use crate::steady::Steady;

/// Makes the model of a package.
type Make = Arc<dyn Fn() -> Result<Steady, Violations> + Send + Sync>;

/// Packages by name, with the revision that each tells.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<BTreeMap<String, (String, Make)>>>);

impl Shelf {
    /// Puts a package there, in the place of one of that name.
    pub(crate) fn put(
        &self,
        name: &str,
        revision: &str,
        make: impl Fn() -> Result<Steady, Violations> + Send + Sync + 'static,
    ) {
        self.0.lock().unwrap().insert(name.into(), (revision.into(), Arc::new(make)));
    }

    pub(crate) fn sources(&self) -> Vec<Source> {
        let shelf = self.0.lock().unwrap().clone();
        let source = |(name, (revision, make)): (String, (String, Make))| {
            let load = move || make().map(|model| Box::new(model) as Box<dyn PixelModel>);
            let outline = Outline { revision, weight_bytes: 0 };
            Source::new(name, load).inspected(move || Ok(outline.clone()))
        };
        shelf.into_iter().map(source).collect()
    }
}

/// A running app, the packages it finds, and an operator's connection.
pub(crate) struct Operated {
    pub(crate) daemon: Daemon,
    pub(crate) shelf: Shelf,
    pub(crate) channel: Channel,
    pub(crate) fleet: pixeld::fleet::Fleet,
    _folder: TempDir,
}

impl Operated {
    /// Serves everything on `shelf`; returns when each has been loaded or refused.
    pub(crate) async fn start(config: Config, shelf: Shelf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let later = shelf.clone();
        let app = App::start_with(config.clone(), shelf.sources(), Arc::new(move || Ok(later.sources())));
        let mut app = app.guarded(Security::load(None, &config.auth).unwrap());
        let fleet = app.fleet().clone();
        app.administer(AdminListener::unix(&path).unwrap()).unwrap();
        let (daemon, loaded) = Daemon::serve(app, config).await;
        patiently(loaded).await;
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://unix.socket").connect_with_connector_lazy(connector);
        Self { daemon, shelf, channel, fleet, _folder: folder }
    }

    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn load(&self, name: &str) -> Result<Model, Status> {
        let answer = patiently(self.admin().load_model(LoadModelRequest { name: name.into() })).await?;
        Ok(answer.into_inner().model.unwrap())
    }

    /// With the server's own limit.
    pub(crate) async fn unload(&self, name: &str) -> Result<bool, Status> {
        let request = UnloadModelRequest { name: name.into(), drain_timeout: None };
        Ok(patiently(self.admin().unload_model(request)).await?.into_inner().drained)
    }

    pub(crate) async fn reload(&self, name: &str) -> Result<ReloadModelResponse, Status> {
        let request = ReloadModelRequest { name: name.into(), drain_timeout: None };
        Ok(patiently(self.admin().reload_model(request)).await?.into_inner())
    }

    pub(crate) async fn alias(&self, alias: &str, model: &str) -> Result<String, Status> {
        let request = SetAliasRequest { alias: alias.into(), model: model.into() };
        Ok(self.admin().set_alias(request).await?.into_inner().previous_model)
    }

    pub(crate) async fn model(&self, name: &str) -> Result<Model, Status> {
        let request = GetModelRequest { name: name.into() };
        Ok(self.daemon.models().get_model(request).await?.into_inner().model.unwrap())
    }
}
