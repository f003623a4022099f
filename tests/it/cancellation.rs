//! Clients that leave, and clients that do not read.

use crate::harness::{Daemon, config, connect_deaf, next, patiently, read, shape, stream};
use pixeld::rpc::proto::StreamGenerateImagesRequest;
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use tonic::Code;

#[tokio::test]
async fn a_stream_that_is_dropped_frees_its_places_and_its_slot() {
    let mut config = config();
    config.engine.engine.queue_images = 0;
    let (daemon, gate) = Daemon::gated(1, config).await;
    gate.allow(1);
    let open = || async { daemon.generation().stream_generate_images(stream(1, 1)).await };
    let first = open().await.unwrap();
    gate.blocked().await;
    assert_eq!(open().await.unwrap_err().code(), Code::ResourceExhausted, "the only place is taken");
    drop(first);
    let second = patiently(async {
        loop {
            match open().await {
                Ok(second) => break second,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
            }
        }
    });
    let second = second.await;
    // What the second takes, and the step under way: nothing more is done for the first.
    gate.allow(u64::from(shape().values()) + 2);
    read(second.into_inner()).await.expect("the slot went to the second");
}

#[tokio::test]
async fn a_client_that_never_reads_stops_no_one_else() {
    let (daemon, _gate) = Daemon::gated(2, config()).await;
    let mut deaf = Vec::new();
    for seed in 0..20 {
        let request = StreamGenerateImagesRequest { include_log_probs: true, ..stream(3, seed) };
        let channel = connect_deaf(daemon.address);
        let mut client = GenerationServiceClient::new(channel);
        deaf.push((client.stream_generate_images(request).await.unwrap().into_inner(), client));
    }
    let heard = read(daemon.generation().stream_generate_images(stream(2, 5)).await.unwrap().into_inner()).await;
    assert_eq!(heard.unwrap().values.len(), 2);
    // What was not read is still there, whole, when the reader comes at last.
    for (mut events, _client) in deaf {
        while next(&mut events).await.unwrap().is_some() {}
    }
}
