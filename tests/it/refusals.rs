//! What is refused, with which code, naming which fields.

use std::time::Duration;

use pixeld::rpc::proto::{
    Conditioning, FlushPolicy, GenerateImagesRequest, GenerateImagesResponse, GenerationSpec, GetModelRequest, Image,
    ImageShape, ListModelsRequest, SamplingParams, SchedulingParams, ScoreImagesRequest, ScoreItem, ScoringSpec,
    StreamGenerateImagesRequest,
};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::harness::{Daemon, QUEUE, config, next, refusal, spec, stream};
use crate::scoring::item;

/// A spec with one thing wrong, or several.
fn with(change: impl FnOnce(&mut GenerationSpec)) -> GenerationSpec {
    let mut spec = spec(1, 1);
    change(&mut spec);
    spec
}

fn sampling(change: impl FnOnce(&mut SamplingParams)) -> GenerationSpec {
    with(|spec| change(spec.sampling.get_or_insert_default()))
}

fn scheduling(change: impl FnOnce(&mut SchedulingParams)) -> GenerationSpec {
    with(|spec| change(spec.scheduling.get_or_insert_default()))
}

fn timeout(seconds: i64, nanos: i32) -> GenerationSpec {
    scheduling(|given| given.queue_timeout = Some(prost_types::Duration { seconds, nanos }))
}

fn prefix(bytes: Vec<u8>) -> GenerationSpec {
    with(|spec| spec.conditioning = Some(Conditioning { prefix: bytes.into(), ..Conditioning::default() }))
}

/// Specs beside the fields they violate.
fn bad_specs() -> Vec<(GenerationSpec, &'static [&'static str])> {
    let everything = GenerationSpec {
        model: String::new(),
        image_count: Some(0),
        conditioning: Some(Conditioning {
            class_label: Some(2),
            prefix: vec![16].into(),
            low_resolution: Some(Image::default()),
        }),
        sampling: Some(SamplingParams {
            temperature: Some(-1.0),
            top_k: Some(0),
            top_p: Some(2.0),
            seed: None,
            reproducibility: 9,
        }),
        scheduling: Some(SchedulingParams {
            priority: 9,
            queue_timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        }),
        request_id: "a b".into(),
        first_image_index: 0,
    };
    vec![
        (with(|spec| spec.image_count = Some(0)), &["spec.image_count"]),
        (with(|spec| spec.image_count = Some(17)), &["spec.image_count"]),
        (with(|spec| spec.image_count = Some(1_000_000_000)), &["spec.image_count"]),
        (with(|spec| (spec.image_count, spec.first_image_index) = (Some(2), u32::MAX)), &["spec.first_image_index"]),
        (with(|spec| spec.request_id = "x".repeat(65)), &["spec.request_id"]),
        (with(|spec| spec.request_id = "é".into()), &["spec.request_id"]),
        (sampling(|given| given.temperature = Some(f32::NAN)), &["spec.sampling.temperature"]),
        (sampling(|given| given.temperature = Some(f32::INFINITY)), &["spec.sampling.temperature"]),
        (sampling(|given| given.top_p = Some(f32::NAN)), &["spec.sampling.top_p"]),
        (sampling(|given| given.reproducibility = 3), &["spec.sampling.reproducibility"]),
        (scheduling(|given| given.priority = -1), &["spec.scheduling.priority"]),
        (timeout(-1, 0), &["spec.scheduling.queue_timeout"]),
        (timeout(0, 0), &["spec.scheduling.queue_timeout"]),
        (timeout(0, -5), &["spec.scheduling.queue_timeout"]),
        (timeout(1, 1_000_000_000), &["spec.scheduling.queue_timeout"]),
        (timeout(i64::MAX, 0), &["spec.scheduling.queue_timeout"]),
        (prefix(vec![16]), &["spec.conditioning.prefix"]),
        (prefix(vec![0; 60]), &["spec.conditioning.prefix"]),
        (prefix(vec![0; 10_000]), &["spec.conditioning.prefix"]),
        (
            everything,
            &[
                "spec.request_id",
                "spec.scheduling.priority",
                "spec.scheduling.queue_timeout",
                "spec.sampling.reproducibility",
                "spec.image_count",
                "spec.sampling.temperature",
                "spec.sampling.top_k",
                "spec.sampling.top_p",
                "spec.conditioning.class_label",
                "spec.conditioning.low_resolution",
                "spec.conditioning.prefix",
            ],
        ),
    ]
}

#[tokio::test]
async fn every_broken_rule_of_a_generation_is_named_by_both_calls() {
    let daemon = Daemon::steady().await;
    for (spec, fields) in bad_specs() {
        let expected = (Code::InvalidArgument, "INVALID_REQUEST".to_owned(), fields.map_to_owned());
        let request = GenerateImagesRequest { spec: Some(spec.clone()), encoding: 0 };
        let whole = daemon.generation().generate_images(request).await.unwrap_err();
        assert_eq!(refusal(&whole), expected, "{spec:?}");
        let request = StreamGenerateImagesRequest { spec: Some(spec.clone()), ..Default::default() };
        let streamed = daemon.generation().stream_generate_images(request).await.unwrap_err();
        assert_eq!(refusal(&streamed), expected, "{spec:?}");
    }
}

trait MapToOwned {
    fn map_to_owned(&self) -> Vec<String>;
}

impl MapToOwned for [&str] {
    fn map_to_owned(&self) -> Vec<String> {
        self.iter().map(|&field| field.to_owned()).collect()
    }
}

#[tokio::test]
async fn a_refusal_says_the_limit_and_the_value_given() {
    let daemon = Daemon::steady().await;
    let request = GenerateImagesRequest { spec: Some(spec(1_000_000_000, 1)), encoding: 0 };
    let status = daemon.generation().generate_images(request).await.unwrap_err();
    let details = status.get_error_details();
    let description = &details.bad_request().unwrap().field_violations[0].description;
    assert!(description.contains("1..=16") && description.contains("1000000000"), "{description}");
}

#[tokio::test]
async fn what_stands_beside_the_spec_is_checked_with_it() {
    let daemon = Daemon::steady().await;
    let bad = || Some(sampling(|given| given.top_k = Some(0)));
    let request = GenerateImagesRequest { spec: bad(), encoding: 7 };
    let status = daemon.generation().generate_images(request).await.unwrap_err();
    assert_eq!(refusal(&status).2, ["encoding", "spec.sampling.top_k"]);
    let max_delay = Some(prost_types::Duration { seconds: 0, nanos: -1 });
    let flush = Some(FlushPolicy { granularity: 4, max_delay });
    let request = StreamGenerateImagesRequest { spec: bad(), flush, include_log_probs: false };
    let status = daemon.generation().stream_generate_images(request).await.unwrap_err();
    assert_eq!(refusal(&status).2, ["flush.granularity", "flush.max_delay", "spec.sampling.top_k"]);
}

#[tokio::test]
async fn every_broken_rule_of_a_scoring_request_is_named() {
    let daemon = Daemon::steady().await;
    let wrong_shape = Some(ImageShape { height: 4, width: 5, channels: 3, levels: 17 });
    let mut items: Vec<ScoreItem> = (0..6).map(item).collect();
    items[0].item_id = "x".repeat(257);
    items[1].image = None;
    items[2].image = Some(Image { data: vec![0; 59].into(), encoding: 1, shape: wrong_shape });
    items[3].image = Some(Image { data: vec![16; 60].into(), encoding: 3, shape: None });
    items[4].image = Some(Image { data: b"\x89PNG\r\n\x1a\nno".to_vec().into(), encoding: 2, shape: None });
    items[5].conditioning =
        Some(Conditioning { class_label: Some(2), prefix: vec![1].into(), low_resolution: Some(Image::default()) });
    let request = ScoreImagesRequest { spec: Some(ScoringSpec { detail: 5, ..ScoringSpec::default() }), items };
    let status = daemon.scoring().score_images(request).await.unwrap_err();
    let fields = [
        "spec.detail",
        "items[0].item_id",
        "items[1].image",
        "items[2].image.shape",
        "items[2].image.data",
        "items[3].image.encoding",
        "items[3].image.data",
        "items[4].image.data",
        "items[5].conditioning.prefix",
        "items[5].conditioning.class_label",
        "items[5].conditioning.low_resolution",
    ];
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_REQUEST".into(), fields.map_to_owned()));

    for count in [0, 9] {
        let request = ScoreImagesRequest { spec: None, items: (0..count).map(item).collect() };
        let status = daemon.scoring().score_images(request).await.unwrap_err();
        assert_eq!(refusal(&status).2, ["items"]);
    }
}

#[tokio::test]
async fn an_unknown_model_is_not_found_by_any_call() {
    let daemon = Daemon::steady().await;
    let model = || "models/nobody".to_owned();
    let generation = GenerationSpec { model: model(), ..GenerationSpec::default() };
    let request = GenerateImagesRequest { spec: Some(generation.clone()), encoding: 0 };
    let scoring = Some(ScoringSpec { model: model(), ..ScoringSpec::default() });
    let score = ScoreImagesRequest { spec: scoring, items: vec![item(0)] };
    let statuses = [
        daemon.generation().generate_images(request).await.unwrap_err(),
        daemon.scoring().score_images(score).await.unwrap_err(),
        daemon.models().get_model(GetModelRequest { name: model() }).await.unwrap_err(),
    ];
    for status in statuses {
        assert_eq!(refusal(&status), (Code::NotFound, "MODEL_NOT_FOUND".into(), vec![]));
        assert!(status.message().contains("steady"), "it says which there are: {}", status.message());
    }
    let request = ListModelsRequest { page_size: -1, ..ListModelsRequest::default() };
    assert_eq!(refusal(&daemon.models().list_models(request).await.unwrap_err()).2, ["page_size"]);
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_whether_it_is_large_or_becomes_large() {
    let daemon = Daemon::steady().await;
    let request = || {
        let mut item = item(0);
        item.image.as_mut().unwrap().data = vec![0; 65 << 10].into();
        ScoreImagesRequest { spec: None, items: vec![item] }
    };
    let status = daemon.scoring().score_images(request()).await.unwrap_err();
    let expected = (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["request".into()]);
    assert_eq!(refusal(&status), expected);
    let mut compressing = daemon.scoring().send_compressed(tonic::codec::CompressionEncoding::Gzip);
    let status = compressing.score_images(request()).await.unwrap_err();
    assert_eq!(refusal(&status), expected);
    let small = ScoreImagesRequest { spec: None, items: vec![item(0)] };
    assert_eq!(
        compressing.score_images(small).await.unwrap().into_inner().scores.len(),
        1,
        "compression itself is fine"
    );
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_the_clients_fault() {
    let daemon = Daemon::steady().await;
    let mut client = tonic::client::Grpc::new(daemon.channel.clone());
    // A number where the spec must be.
    let other = Request::new(ListModelsRequest { page_size: 1, ..ListModelsRequest::default() });
    let codec = tonic_prost::ProstCodec::<ListModelsRequest, GenerateImagesResponse>::default();
    client.ready().await.unwrap();
    let path = "/pixeld.v1.GenerationService/GenerateImages".parse().unwrap();
    let status = client.unary(other, path, codec).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["request".into()]));
    assert!(status.message().contains("GenerateImagesRequest.spec"), "it says where: {}", status.message());
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let (daemon, gate) = Daemon::gated(1, config()).await;
    gate.allow(0);
    let mut held = Vec::new();
    for _ in 0..=QUEUE {
        held.push(daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner());
    }
    let status = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "QUEUE_FULL".into(), vec![]));
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    let pushback: u64 = status.metadata().get(pixeld::rpc::PUSHBACK).unwrap().to_str().unwrap().parse().unwrap();
    assert!(pushback > 0);
    gate.open();
    for mut events in held {
        while next(&mut events).await.unwrap().is_some() {}
    }
}
