//! Streams that were cut, and what of them is still to come from any daemon with the same model.

use std::path::Path;
use std::time::Duration;

use pixeld::app::Source;
use pixeld::engine::SCORE_IMAGES;
use pixeld::image::Shape;
use pixeld::model::Placement;
use pixeld::repository::{self, Limits};
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::stream_generate_images_response::Event;
use pixeld::rpc::proto::{Conditioning, StreamGenerateImagesRequest};
use pixeld::spec::Backend;
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{Daemon, MODEL, config, connect_deaf, next, patiently, read, refusal, stream};
use crate::steady::{Gate, Steady};

/// Large enough that it cannot hide in the buffers on the way.
fn large() -> Shape {
    Shape::new(128, 128, 3, 16).unwrap()
}

async fn replica() -> Daemon {
    let mut config = config();
    config.limits.unread_timeout = Duration::from_millis(300);
    let source = Source::new(MODEL, || Ok(Box::new(Steady::new(MODEL, large(), 1, &Gate::default()))));
    Daemon::start(config, vec![source]).await
}

fn from(prefix: &[u8], seed: u64) -> StreamGenerateImagesRequest {
    let mut request = stream(1, seed);
    let conditioning = Conditioning { prefix: prefix.to_vec().into(), ..Conditioning::default() };
    request.spec.as_mut().unwrap().conditioning = Some(conditioning);
    request
}

#[tokio::test]
async fn a_reader_that_is_too_slow_hears_where_to_go_on_and_does_so_elsewhere_to_the_same_bytes() {
    let daemon = replica().await;
    let mut deaf = GenerationServiceClient::new(connect_deaf(daemon.address));
    let request = StreamGenerateImagesRequest { include_log_probs: true, ..stream(1, 7) };
    let mut unread = deaf.stream_generate_images(request).await.unwrap().into_inner();
    let handle = daemon.handle(MODEL);
    handle.drain();
    patiently(handle.drained()).await;
    let mut received = Vec::new();
    let status = patiently(async {
        loop {
            match next(&mut unread).await {
                Ok(Some(Event::Sampled(sampled))) => {
                    sampled.runs.iter().for_each(|run| received.extend_from_slice(&run.values))
                }
                Ok(event) => assert!(matches!(event, Some(Event::Started(_))), "it does not end well"),
                Err(status) => break status,
            }
        }
    })
    .await;
    assert_eq!(refusal(&status), (Code::Aborted, "CLIENT_TOO_SLOW".into(), vec![]));
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["offset"], received.len().to_string());
    assert!(!received.is_empty() && received.len() < large().values() as usize, "{} values", received.len());

    let other = replica().await;
    let uncut =
        read(other.generation().stream_generate_images(stream(1, 7)).await.unwrap().into_inner()).await.unwrap();
    let third = replica().await;
    let rest = third.generation().stream_generate_images(from(&received, 7)).await.unwrap().into_inner();
    let rest = read(rest).await.unwrap();
    received.extend_from_slice(&rest.values[&0]);
    assert!(received == uncut.values[&0], "the same bytes");
    assert_eq!(rest.completed.crc32c, uncut.completed.crc32c);
}

#[tokio::test]
async fn another_replica_goes_on_with_an_image_of_a_real_model_to_the_same_bits() {
    for backend in [Backend::Native, Backend::Torch] {
        let digits = async || {
            let package = repository::Source::Directory(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits"));
            let placement = Placement { backend, ..Placement::new(4, SCORE_IMAGES) };
            let source = Source::new("digits", move || repository::load(&package, placement, Limits::default()));
            Daemon::start(config(), vec![source]).await
        };
        let (first, second) = (digits().await, digits().await);
        let uncut = first.generation().stream_generate_images(stream(1, 3)).await.unwrap().into_inner();
        let uncut = read(uncut).await.unwrap();
        for received in [1, 17, 63] {
            let (before, after) = uncut.values[&0].split_at(received);
            let rest = second.generation().stream_generate_images(from(before, 3)).await.unwrap().into_inner();
            let rest = read(rest).await.unwrap();
            assert_eq!(rest.values[&0], after, "{received} values received, on {backend:?}");
            assert_eq!(rest.completed.crc32c, uncut.completed.crc32c);
            let [whole, resumed] = [&uncut, &rest].map(|read| read.completed.log_likelihoods[0].to_bits());
            assert_eq!(whole, resumed, "to the bit, which tells of rounding that the values hide");
        }
    }
}
