//! What a seed promises, kept by a real model over the wire: the same bytes alone and in a crowd, streamed and whole,
//! before and after a restart.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pixeld::app::Source;
use pixeld::engine::SCORE_IMAGES;
use pixeld::model::Placement;
use pixeld::repository::{self, Limits};
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::{
    Conditioning, FlushPolicy, GenerateImagesRequest, GenerationCompleted, GenerationSpec, Granularity,
    StreamGenerateImagesRequest,
};
use pixeld::spec::Backend;
use pixeld::{noise, torch};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::harness::{Daemon, config, connect, next, patiently, read, spec};

/// What the model is divided into; the images among them.
const SHARDS: u32 = 2;
/// Two batch sizes for a shard: four rows while nobody sits in the upper slots, eight from then on.
const SLOTS: u32 = 6;
const LARGEST_BATCH: u32 = 8;
/// Images whose bytes must never change.
const IMAGES: u32 = 3;
/// Clients that come and go around them, and images that each asks for at most: enough to keep a queue, whatever a step takes.
const BYSTANDERS: u32 = 16;
const MANY: f64 = 6.0;
/// Kernels of our own take much of a second for an image of this model when they are not optimised in full. What a backend
/// itself owes to the promise, the conformance tests hold each of them to.
const BACKENDS: &[Backend] =
    if cfg!(debug_assertions) { &[Backend::Torch] } else { &[Backend::Torch, Backend::Native] };
/// Requests that one of them makes at most.
const ROUNDS: u32 = 200;
/// Times that the images are asked for among them, by every way at once.
const WAVES: u32 = 4;
/// Events after which one that leaves has left.
const LONGEST_STAY: f64 = 8.0;

/// Everything of an image that a seed decides; the likelihood to the bit, as it tells of rounding that the values hide.
#[derive(Debug, PartialEq)]
struct Sampled {
    values: Vec<u8>,
    crc32c: u32,
    log_likelihood: u64,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Streamed(Granularity),
    Whole,
}

const WAYS: [Way; 4] =
    [Way::Streamed(Granularity::Value), Way::Streamed(Granularity::Pixel), Way::Streamed(Granularity::Row), Way::Whole];

async fn digits(backend: Backend) -> Daemon {
    torch::limit_threads(1);
    let package = repository::Source::Directory(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits"));
    let placement = Placement { backend, ..Placement::new(SLOTS, SCORE_IMAGES) };
    let source = Source::new("digits", move || repository::load(&package, placement, Limits::default()));
    let mut config = config();
    // Nobody is refused: what was dropped may not have left yet when the next ones come.
    config.engine.engine.queue_images = 1000;
    config.engine.shards = Some(SHARDS);
    Daemon::start(config, vec![source]).await
}

fn of_class(class: u32, first: u32, images: u32, seed: u64) -> GenerationSpec {
    let conditioning = Some(Conditioning { class_label: Some(class), ..Conditioning::default() });
    GenerationSpec { conditioning, first_image_index: first, ..spec(images, seed) }
}

fn streamed(spec: GenerationSpec, granularity: Granularity) -> StreamGenerateImagesRequest {
    let flush = Some(FlushPolicy { granularity: granularity.into(), max_delay: None });
    StreamGenerateImagesRequest { spec: Some(spec), flush, include_log_probs: false }
}

/// The images of `spec`, and how many images the fullest step with one of them held.
async fn sample(channel: Channel, spec: GenerationSpec, way: Way) -> (Vec<Sampled>, u32) {
    let mut client = GenerationServiceClient::new(channel);
    let (images, completed) = match way {
        Way::Streamed(granularity) => {
            let events = client.stream_generate_images(streamed(spec, granularity)).await.unwrap().into_inner();
            let read = read(events).await.unwrap();
            (read.values.into_values().collect(), read.completed)
        }
        Way::Whole => {
            let request = GenerateImagesRequest { spec: Some(spec), encoding: 0 };
            let answer = patiently(client.generate_images(request)).await.unwrap().into_inner();
            (answer.images.iter().map(|image| image.data.to_vec()).collect::<Vec<_>>(), answer.completed.unwrap())
        }
    };
    let GenerationCompleted { crc32c, log_likelihoods, usage, .. } = completed;
    let ends = crc32c.into_iter().zip(log_likelihoods.into_iter().map(f64::to_bits));
    let sampled = images.into_iter().zip(ends).map(|(values, (crc32c, log_likelihood))| Sampled {
        values,
        crc32c,
        log_likelihood,
    });
    (sampled.collect(), usage.unwrap().peak_batch_size)
}

/// The images, each in a request of its own that nobody else is there with.
async fn alone(daemon: &Daemon, way: Way) -> Vec<Sampled> {
    let mut all = Vec::new();
    for image in 0..IMAGES {
        let (sampled, batch) = sample(daemon.channel.clone(), of_class(3, image, 1, 42), way).await;
        assert_eq!(batch, 1, "somebody else was there");
        all.extend(sampled);
    }
    assert!(all[0] != all[1] && all[1] != all[2], "images of one seed differ");
    all
}

/// The crowd around a request.
#[derive(Debug, Default)]
struct Crowd {
    over: AtomicBool,
    /// Most images that were there at once, in slots or waiting.
    most: AtomicU32,
    left_early: AtomicU32,
}

impl Crowd {
    /// One client: asks for one thing after the other, and leaves in the middle of some of them.
    async fn bystander(self: Arc<Self>, number: u32, address: SocketAddr, load: impl Fn() -> u32) {
        let mut client = GenerationServiceClient::new(connect(address));
        let mut draws = 0;
        let mut chance = |below: f64| {
            draws += 1;
            noise::uniform(7, number, draws) * below
        };
        for round in 0..ROUNDS {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let images = 1 + chance(MANY) as u32;
            let seed = u64::from(number * ROUNDS + round);
            let spec = of_class(chance(10.0) as u32, chance(1e6) as u32, images, seed);
            let way = WAYS[chance(4.0) as usize];
            let stay = (chance(1.0) < 0.5).then(|| chance(LONGEST_STAY) as u32);
            let (Way::Streamed(granularity), Some(stay)) = (way, stay) else {
                sample(connect(address), spec, way).await;
                continue;
            };
            let request = streamed(spec, granularity);
            let mut events = client.stream_generate_images(request).await.unwrap().into_inner();
            self.most.fetch_max(load(), Ordering::Relaxed);
            let mut ended = false;
            for _ in 0..stay {
                ended = next(&mut events).await.unwrap().is_none();
                if ended {
                    break;
                }
            }
            self.left_early.fetch_add(u32::from(!ended), Ordering::Relaxed);
        }
    }
}

/// The images in one request, again and again by every way among bystanders.
async fn crowded(daemon: &Daemon) -> Vec<(Way, Vec<Sampled>)> {
    let (crowd, handle) = (Arc::new(Crowd::default()), daemon.handle("digits"));
    let mut bystanders = JoinSet::new();
    for number in 0..BYSTANDERS {
        let handle = handle.clone();
        let load = move || handle.load().running + handle.load().queued;
        bystanders.spawn(Arc::clone(&crowd).bystander(number, daemon.address, load));
    }
    // Whoever samples first would find an empty house.
    patiently(async {
        while handle.load().queued == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut all = Vec::new();
    for _ in 0..WAVES {
        let mut wave = JoinSet::new();
        for way in WAYS {
            let sampled = sample(connect(daemon.address), of_class(3, 0, IMAGES, 42), way);
            wave.spawn(async move { (way, sampled.await) });
        }
        for (way, (sampled, batch)) in wave.join_all().await {
            assert_eq!(batch, SLOTS, "{way:?} was never in a full batch");
            all.push((way, sampled));
        }
    }
    crowd.over.store(true, Ordering::Relaxed);
    bystanders.join_all().await;
    let most = crowd.most.load(Ordering::Relaxed);
    assert!(most > SHARDS * LARGEST_BATCH, "there were never more than {most} images");
    assert!(crowd.left_early.load(Ordering::Relaxed) > BYSTANDERS / 2, "too few came and went");
    all
}

#[tokio::test]
async fn a_seed_gives_the_same_bytes_alone_in_a_crowd_by_every_way_and_after_a_restart() {
    for &backend in BACKENDS {
        holds(backend).await;
    }
}

async fn holds(backend: Backend) {
    let mut daemon = digits(backend).await;
    let expected = alone(&daemon, Way::Streamed(Granularity::Value)).await;
    assert_eq!(expected.len(), IMAGES as usize);
    for (way, sampled) in crowded(&daemon).await {
        assert_eq!(sampled, expected, "{way:?} in a crowd on {backend:?}");
    }
    daemon.stop();
    daemon.ended().await.unwrap();

    let daemon = digits(backend).await;
    for way in WAYS {
        assert_eq!(alone(&daemon, way).await, expected, "{way:?} after a restart on {backend:?}");
    }
    for (way, sampled) in crowded(&daemon).await {
        assert_eq!(sampled, expected, "{way:?} in a crowd after a restart on {backend:?}");
    }
}
