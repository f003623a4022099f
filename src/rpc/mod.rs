//! The wire: the only users of tonic and prost. Services, conversions, one table of statuses, streams, connections.
//!
//! A request passes `listen` (connections), `call` (deadline, span, log) and
//! `upload` (bounds on what is sent), a service (`generation`, `scoring`, `models`),
//! `convert` (what came) and the engine's handle; its answer passes `stream` or `score_stream`, `answer` (what goes) and
//! `lease` (who reads it). Errors become statuses in `status` alone.

mod answer;
mod call;
mod codec;
mod convert;
mod deadline;
mod generation;
mod health;
mod inference;
mod lease;
mod listen;
mod meter;
mod models;
pub mod proto;
mod score_stream;
mod scoring;
mod status;
mod stream;
mod tensors;
mod trace;
mod upload;

pub(crate) use health::Health;
pub use health::serves;
pub(crate) use listen::Connections;
pub use listen::Listener;
pub use status::{DOMAIN, PUSHBACK};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
pub(crate) use upload::Uploads;

use self::generation::Generations;
use self::inference::Inference;
use self::models::Models;
use self::proto::generation_service_server::GenerationServiceServer;
use self::proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use self::proto::model_service_server::ModelServiceServer;
use self::proto::scoring_service_server::ScoringServiceServer;
use self::scoring::Scorings;
use crate::engine::catalogue::Catalogue;
use crate::job::Limits;

/// Every service over `catalogue`, and what keeps their health in step with it.
///
/// # Errors
/// If the descriptors that the build script wrote cannot be read.
pub(crate) fn services(
    catalogue: &Catalogue,
    limits: Limits,
    max_request_bytes: usize,
) -> Result<(Routes, Health), tonic_reflection::server::Error> {
    let (generations, scorings, models) = (
        Generations { catalogue: catalogue.clone(), limits },
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
    let reporter = HealthReporter::new();
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(generations)
        .add_service(scorings)
        .add_service(models)
        .add_service(inference)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok((routes, Health::new(reporter)))
}
