//! The wire: the only users of tonic and prost. Services, conversions, one table of statuses, streams, connections.
//!
//! A request passes `listen` and `connection` (TLS, HTTP/2, how long it lasts), `call` (token, deadline, span, log) and
//! `upload` (bounds on what is sent, in memory that all share, `budget`), a service (`generation`, `scoring`, `models`; `admin`
//! on connections of its own, `socket`), `convert` (what came) and the engine's handle; its answer passes `stream` or
//! `score_stream`, `answer` (what goes) and `lease` (who reads it; answers of one message come to it through `unary`);
//! `load_report` tells balancers at its end how busy this is. Errors become statuses in `status` alone.
//! `messages` reads what a service would, for fuzzing.

mod admin;
mod answer;
mod budget;
mod call;
mod codec;
mod connection;
mod convert;
mod deadline;
mod generation;
mod health;
mod inference;
mod lease;
mod listen;
mod load_report;
pub mod messages;
mod meter;
mod models;
pub mod proto;
mod running;
mod score_stream;
mod scoring;
mod socket;
mod status;
mod stream;
mod tensors;
mod trace;
mod unary;
mod upload;

pub use admin::LogFilter;
pub(crate) use admin::ServerInfo;
pub use connection::ConnectionLimits;
pub(crate) use health::Health;
pub use health::serves;
pub(crate) use listen::Connections;
pub use listen::Listener;
pub use load_report::LOAD_REPORT;
pub use socket::AdminListener;
pub use status::{DOMAIN, PUSHBACK};
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::server::NamedService;
pub(crate) use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
pub(crate) use upload::Uploads;

use self::admin::Admin;
use self::generation::Generations;
use self::inference::Inference;
use self::load_report::Reporter;
use self::models::Models;
use self::proto::admin_service_server::AdminServiceServer;
use self::proto::generation_service_server::GenerationServiceServer;
use self::proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use self::proto::model_service_server::ModelServiceServer;
use self::proto::scoring_service_server::ScoringServiceServer;
use self::running::Running;
use self::scoring::Scorings;
use crate::engine::catalogue::Catalogue;
use crate::fleet::Fleet;
use crate::job::Limits;

/// What one listener serves.
type Served = Result<Routes, tonic_reflection::server::Error>;

/// Every service that clients are served, over `catalogue`; `health` tells its states.
///
/// # Errors
/// If the descriptors that the build script wrote cannot be read.
pub(crate) fn services(catalogue: &Catalogue, limits: Limits, max_request_bytes: usize, health: &Health) -> Served {
    let (generations, scorings, models) = (
        Generations { catalogue: catalogue.clone(), limits, running: Running::default() },
        Scorings { catalogue: catalogue.clone(), limits },
        Models { catalogue: catalogue.clone() },
    );
    let inference = Inference { generations: generations.clone(), scorings: scorings.clone() };
    let inference = GrpcInferenceServiceServer::new(inference).max_decoding_message_size(max_request_bytes);
    // Uploads may be compressed; values are noise to a compressor, so answers are not.
    let generations =
        GenerationServiceServer::new(generations).max_decoding_message_size(max_request_bytes).accept_compressed(Gzip);
    let scorings =
        ScoringServiceServer::new(scorings).max_decoding_message_size(max_request_bytes).accept_compressed(Gzip);
    let models = ModelServiceServer::new(models).max_decoding_message_size(max_request_bytes).accept_compressed(Gzip);
    let names = [name(&generations), name(&scorings), name(&models), name(&inference)];
    let load = Reporter::new(catalogue);
    let routes = Routes::new(load.report_with(generations))
        .add_service(load.report_with(scorings))
        .add_service(models)
        .add_service(load.report_with(inference));
    with_health_and_reflection(routes, health, proto::DESCRIPTORS, &names)
}

/// Every service that operators are served, on connections of their own. Nothing here asks who calls: whoever may connect may
/// do all of it. What does ask belongs around these routes.
///
/// # Errors
/// If the descriptors that the build script wrote cannot be read.
pub(crate) fn admin_services(
    fleet: &Fleet,
    log: Option<LogFilter>,
    info: ServerInfo,
    drain: CancellationToken,
    health: &Health,
) -> Served {
    let admin = AdminServiceServer::new(Admin { fleet: fleet.clone(), log, info, drain });
    let names = [name(&admin)];
    with_health_and_reflection(Routes::new(admin), health, proto::ADMIN_DESCRIPTORS, &names)
}

/// Health alone, for probes, which have neither certificates nor tokens.
pub(crate) fn health_services(health: &Health) -> Routes {
    Routes::new(HealthServer::new(HealthService::from_health_reporter(health.reporter())))
}

/// `routes`, whose services are called `names` and described by `descriptors`, and beside them what every listener has.
fn with_health_and_reflection(routes: Routes, health: &Health, descriptors: &[u8], names: &[&str]) -> Served {
    let service = HealthServer::new(HealthService::from_health_reporter(health.reporter()));
    let reflection = || {
        let mut builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(name(&service));
        // Files bring services with them that are not served here.
        for name in names {
            builder = builder.with_service_name(*name);
        }
        builder
    };
    let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    Ok(routes.add_service(service).add_service(v1).add_service(v1alpha))
}

/// The full name of a service.
fn name<S: NamedService>(_service: &S) -> &'static str {
    S::NAME
}
