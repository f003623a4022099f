//! What a stream is, and that streaming, whole images and scores agree.

use pixeld::rpc::proto::{
    Conditioning, FlushPolicy, GenerateImagesRequest, Granularity, Image, ImageEncoding, Order, Reproducibility,
    ScoreImagesRequest, ScoreItem, StreamGenerateImagesRequest,
};

use crate::harness::{Daemon, Read, read, shape, spec, stream};

async fn streamed(daemon: &Daemon, request: StreamGenerateImagesRequest) -> Read {
    read(daemon.generation().stream_generate_images(request).await.unwrap().into_inner()).await.unwrap()
}

async fn whole(daemon: &Daemon, images: u32, seed: u64, encoding: ImageEncoding) -> Vec<Image> {
    let request = GenerateImagesRequest { spec: Some(spec(images, seed)), encoding: encoding.into() };
    daemon.generation().generate_images(request).await.unwrap().into_inner().images
}

#[tokio::test]
async fn a_stream_is_started_sampled_completed_and_reassembles_to_the_whole_images_of_its_seed() {
    let daemon = Daemon::steady().await;
    let read = streamed(&daemon, stream(6, 11)).await;
    let images = whole(&daemon, 6, 11, ImageEncoding::Raw).await;
    assert_eq!(images.len(), 6);
    for (index, image) in (0..).zip(&images) {
        assert_eq!(image.data, read.values[&index], "image {index}");
        assert_eq!(read.completed.crc32c[index as usize], crc32c::crc32c(&image.data));
    }
    let started = read.started;
    assert_eq!((started.seed, started.image_count, started.model.as_str()), (11, 6, "models/steady"));
    assert_eq!((started.order(), started.reproducibility()), (Order::Raster, Reproducibility::BatchInvariant));
    assert_eq!(started.noise_version, pixeld::noise::VERSION);
    assert_eq!(started.request_id.len(), 36, "drawn by the server");
    assert_eq!(started.model_revision, "0123456789abcdef");
    let usage = read.completed.usage.unwrap();
    assert_eq!((usage.sampled_values, usage.prefix_values), (6 * u64::from(shape().values()), 0));
    assert!((1..=4).contains(&usage.peak_batch_size));
    assert!(read.completed.timing.is_some());
    assert!(read.log_probs.values().all(Vec::is_empty), "nobody asked for them");
}

#[tokio::test]
async fn every_granularity_gives_the_same_bytes_in_its_own_units() {
    let daemon = Daemon::steady().await;
    let row = shape().width() * shape().channels();
    let mut seen = Vec::new();
    for (granularity, unit) in
        [(Granularity::Value, 1), (Granularity::Pixel, shape().channels()), (Granularity::Row, row)]
    {
        let flush = Some(FlushPolicy { granularity: granularity.into(), max_delay: None });
        let read = streamed(&daemon, StreamGenerateImagesRequest { flush, ..stream(3, 5) }).await;
        for (first, length) in read.runs {
            assert_eq!((first % unit, length % unit), (0, 0), "{granularity:?} is cut at {first}+{length}");
        }
        seen.push(read.values);
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}

#[tokio::test]
async fn a_unit_that_takes_longer_than_the_maximum_delay_is_sent_in_part() {
    let (daemon, gate) = Daemon::gated(1, crate::harness::config()).await;
    gate.allow(4);
    let max_delay = Some(std::time::Duration::from_millis(5).try_into().unwrap());
    let flush = Some(FlushPolicy { granularity: Granularity::Row.into(), max_delay });
    let request = StreamGenerateImagesRequest { flush, ..stream(1, 5) };
    let mut events = daemon.generation().stream_generate_images(request).await.unwrap().into_inner();
    crate::harness::next(&mut events).await.unwrap();
    gate.blocked().await;
    let sampled = crate::harness::next(&mut events).await.unwrap();
    assert!(sampled.is_some(), "4 values of a row of 15 are there and old");
    gate.open();
}

#[tokio::test]
async fn the_likelihood_a_stream_ends_with_is_what_scoring_says_of_its_images() {
    let daemon = Daemon::steady().await;
    let request = StreamGenerateImagesRequest { include_log_probs: true, ..stream(3, 77) };
    let read = streamed(&daemon, request).await;
    let items = read.values.values().map(|values| ScoreItem {
        image: Some(Image { data: values.clone().into(), ..Image::default() }),
        ..ScoreItem::default()
    });
    let request = ScoreImagesRequest { spec: None, items: items.collect() };
    let scores = daemon.scoring().score_images(request).await.unwrap().into_inner().scores;
    for (index, score) in (0..).zip(&scores) {
        let said = read.completed.log_likelihoods[index as usize];
        assert!((said + score.nll_nats).abs() < 1e-3, "{said} against {}", -score.nll_nats);
        let summed: f64 = read.log_probs[&index].iter().map(|log_prob| f64::from(*log_prob)).sum();
        assert!((summed - said).abs() < 1e-3, "{summed} against {said}");
    }
}

#[tokio::test]
async fn a_cut_stream_is_resumed_from_its_seed_and_the_values_received() {
    let daemon = Daemon::steady().await;
    let uncut = streamed(&daemon, stream(3, 9)).await;
    let received = 17;
    for index in 0..3 {
        let (prefix, rest) = uncut.values[&index].split_at(received);
        let mut resumed = spec(1, 9);
        resumed.first_image_index = index;
        resumed.conditioning = Some(Conditioning { prefix: prefix.to_vec().into(), ..Conditioning::default() });
        let request = StreamGenerateImagesRequest { spec: Some(resumed), ..StreamGenerateImagesRequest::default() };
        let read = streamed(&daemon, request).await;
        assert_eq!(read.values[&0], rest, "image {index}");
        assert_eq!(read.runs[0].0, received as u32, "ranks go on where they stopped");
        assert_eq!(read.completed.crc32c[0], uncut.completed.crc32c[index as usize], "the prefix is part of it");
        assert_eq!(read.completed.usage.unwrap().prefix_values, received as u64);
    }
}

#[tokio::test]
async fn a_png_holds_the_same_values_as_the_raw_image() {
    let daemon = Daemon::steady().await;
    let (raw, png) = (whole(&daemon, 2, 3, ImageEncoding::Raw).await, whole(&daemon, 2, 3, ImageEncoding::Png).await);
    for (raw, png) in raw.iter().zip(&png) {
        assert_eq!(png.encoding(), ImageEncoding::Png);
        let values = pixeld::image::codec::decode_png(&png.data, shape(), None).unwrap();
        assert_eq!(pixeld::image::codec::values_to_raw(&values, shape()), raw.data);
    }
}

#[tokio::test]
async fn seeds_are_drawn_afresh_and_told_when_none_is_given() {
    let daemon = Daemon::steady().await;
    let first = streamed(&daemon, StreamGenerateImagesRequest::default()).await;
    let second = streamed(&daemon, StreamGenerateImagesRequest::default()).await;
    assert_ne!(first.started.seed, second.started.seed);
    assert_eq!(first.values, streamed(&daemon, stream(1, first.started.seed)).await.values);
}
