//! What balancers are told at the end of a call: an ORCA report in the trailers, decoded as it came over the wire.

use pixeld::rpc::LOAD_REPORT;
use pixeld::rpc::proto::inference::ServerLiveRequest;
use pixeld::rpc::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use pixeld::rpc::proto::orca::OrcaLoadReport;
use pixeld::rpc::proto::{GetModelRequest, StreamGenerateImagesRequest};
use prost::Message;
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::harness::{Daemon, MODEL, QUEUE, config, next, patiently, stream};

fn report(trailers: &MetadataMap) -> OrcaLoadReport {
    let report = trailers.get_bin(LOAD_REPORT).expect("a report").to_bytes().unwrap();
    OrcaLoadReport::decode(report).unwrap()
}

/// Queued and running images, and slots.
fn images(report: &OrcaLoadReport) -> [f64; 3] {
    ["images_queued", "images_running", "slots"].map(|name| report.named_metrics[name])
}

#[tokio::test]
async fn a_stream_and_a_refusal_end_with_the_load_of_the_replica() {
    let (daemon, gate) = Daemon::gated(2, config()).await;
    let begin = async |request: StreamGenerateImagesRequest| daemon.generation().stream_generate_images(request).await;
    gate.allow(1);
    let mut held = begin(stream(16, 1)).await.unwrap().into_inner();
    gate.blocked().await;
    // What comes while a step stands still is not counted before its end, but fills the places.
    let mut more = Vec::new();
    for (images, seed) in [(16, 2), (16, 3), (16, 4), (2 + QUEUE - 4 * 16, 5)] {
        more.push(begin(stream(images, seed)).await.unwrap().into_inner());
    }
    let refused = begin(stream(1, 6)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let full = report(refused.metadata());
    assert_eq!(images(&full), [14.0, 2.0, 2.0]);
    assert_eq!((full.utilization["slots"], full.application_utilization), (1.0, 8.0));

    gate.open();
    while next(&mut held).await.unwrap().is_some() {}
    for mut events in more {
        while next(&mut events).await.unwrap().is_some() {}
    }
    let mut done = report(&held.trailers().await.unwrap().unwrap());
    assert!(done.rps_fractional > 0.0 && full.rps_fractional > 0.0, "{done:?} {full:?}");
    // The shard says that it is idle a moment after its last image is read.
    let idle = async {
        while done.application_utilization > 0.0 {
            done = report(&live(&daemon).await);
        }
    };
    patiently(idle).await;
    assert_eq!((images(&done), done.utilization["slots"]), ([0.0, 0.0, 2.0], 0.0));
}

async fn live(daemon: &Daemon) -> MetadataMap {
    let mut client = GrpcInferenceServiceClient::new(daemon.channel.clone());
    client.server_live(ServerLiveRequest {}).await.unwrap().metadata().clone()
}

#[tokio::test]
async fn unary_calls_to_models_report_and_questions_about_them_do_not() {
    let daemon = Daemon::steady().await;
    report(&live(&daemon).await);
    let named = GetModelRequest { name: format!("models/{MODEL}") };
    let named = daemon.models().get_model(named).await.unwrap();
    assert!(named.metadata().get_bin(LOAD_REPORT).is_none());
}
