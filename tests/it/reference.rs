//! Packages of the PyTorch reference over the wire: mixtures, blocks, low-resolution images, modules of somebody else's, and
//! their known answers.

use std::path::Path;

use pixeld::app::Source;
use pixeld::engine::SCORE_IMAGES;
use pixeld::image::{Canvas, codec};
use pixeld::model::Placement;
use pixeld::model::manifest::Manifest;
use pixeld::repository::{self, Limits};
use pixeld::rpc::proto::{
    self, Conditioning, GetModelRequest, Image, ImageEncoding, ImageShape, Reproducibility, ScoreImagesRequest,
    ScoreItem, StreamGenerateImagesRequest,
};
use pixeld::spec::Backend;
use serde::Deserialize;
use tonic::Code;

use crate::harness::{Daemon, config, read, refusal, spec};

/// Enlarges images of one channel, block after block.
const LARGER: &str = "image_transformer/encoder_pre_blocks_torchscript";
/// Decides three channels in one step, by a mixture.
const MIXTURE: &str = "image_transformer/mixture_learned_relu_class";
/// In as many forms: scripted with a state to go on from, of levels and of reals; with a print left in; bound to a batch of
/// four, with a first token, all channels at once.
const MODULES: [&str; 6] = [
    "scripted_steps",
    "scripted_unit_steps",
    "scripted_printing",
    "traced_planes_mixture",
    "traced_sequence",
    "scripted_factorised_low",
];
const LOW: ImageShape = ImageShape { height: 2, width: 3, channels: 1, levels: 17 };

#[derive(Deserialize)]
struct Golden {
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    seed: u64,
    image: u32,
    class: Option<u32>,
    low: Option<Vec<u16>>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    values: Vec<u16>,
    log_likelihood: f64,
}

async fn start(case: &str, backend: Backend) -> (Daemon, Manifest, Golden) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
    let golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let source = repository::Source::Directory(folder);
    let manifest = repository::manifest(&source).unwrap();
    let placement = Placement { backend, ..Placement::new(2, SCORE_IMAGES) };
    let load = move || repository::load(&source, placement, Limits::default());
    (Daemon::start(config(), vec![Source::new("reference", load)]).await, manifest, golden)
}

fn raw(values: &[u8]) -> Image {
    Image { data: values.to_vec().into(), encoding: ImageEncoding::Raw.into(), shape: None }
}

#[tokio::test]
async fn a_model_tells_its_blocks_and_which_low_resolution_image_it_needs() {
    for (case, blocks, low) in [(LARGER, Some(proto::Blocks { height: 2, width: 3 }), Some(LOW)), (MIXTURE, None, None)]
    {
        let (daemon, ..) = start(case, Backend::default()).await;
        let request = GetModelRequest { name: "models/reference".into() };
        let model = daemon.models().get_model(request).await.unwrap().into_inner().model.unwrap();
        let order = if blocks.is_some() { proto::Order::BlockRaster } else { proto::Order::Raster };
        assert_eq!((model.order(), model.blocks, model.low_resolution_shape), (order, blocks, low));
    }
}

/// From nothing and from half of its values, taken in at once and step by step.
#[tokio::test]
async fn every_seed_draws_what_the_reference_draws_and_scores_as_it_says() {
    let own = [(LARGER, Backend::Native), (MIXTURE, Backend::Native), (MIXTURE, Backend::Torch)];
    let modules = MODULES.map(|case| (format!("torchscript/{case}"), Backend::Native));
    for (case, backend) in own.map(|(case, backend)| (case.to_owned(), backend)).into_iter().chain(modules) {
        let (daemon, manifest, golden) = start(&case, backend).await;
        let (shape, order) = (manifest.shape, manifest.order);
        assert!(!golden.samples.is_empty());
        for sample in golden.samples {
            let canvas = Canvas::from_raster(shape, order, &sample.values).unwrap();
            let values = codec::values_to_raw(canvas.values(), shape);
            let half = values.len() / 2 / shape.channels() as usize * shape.channels() as usize;
            let low = sample.low.as_ref().map(|low| {
                let given = manifest.condition.low.unwrap();
                let shape = ImageShape {
                    height: given.height(),
                    width: given.width(),
                    channels: given.channels(),
                    levels: given.levels(),
                };
                let image = match codec::encode_png(low, given, None) {
                    Ok(png) => Image { data: png.into(), encoding: ImageEncoding::Png.into(), shape: None },
                    Err(_) => raw(&codec::values_to_raw(low, given)),
                };
                Image { shape: Some(shape), ..image }
            });
            let conditioning = |prefix: &[u8]| Conditioning {
                class_label: sample.class,
                prefix: prefix.to_vec().into(),
                low_resolution: low.clone(),
            };
            for (known, reproducibility) in [
                (0, Reproducibility::BatchInvariant),
                (half, Reproducibility::BatchInvariant),
                (half, Reproducibility::BestEffort),
            ] {
                let mut spec = spec(1, sample.seed);
                spec.first_image_index = sample.image;
                spec.conditioning = Some(conditioning(&values[..known]));
                let sampling = spec.sampling.as_mut().unwrap();
                (sampling.temperature, sampling.top_k, sampling.top_p) =
                    (sample.temperature, sample.top_k, sample.top_p);
                sampling.reproducibility = reproducibility.into();
                let request =
                    StreamGenerateImagesRequest { spec: Some(spec), ..StreamGenerateImagesRequest::default() };
                let stream = daemon.generation().stream_generate_images(request).await.unwrap().into_inner();
                let read = read(stream).await.unwrap();
                let label = format!("{case} on {}, seed {}, {known} known", backend.name(), sample.seed);
                assert_eq!(read.values[&0][..], values[known..], "{label}");
                let log_likelihood = read.completed.log_likelihoods[0];
                assert!((log_likelihood - sample.log_likelihood).abs() < 1e-3, "{label}: {log_likelihood}");
                assert_eq!(read.completed.crc32c, [crc32c::crc32c(&values)], "{label}");
                let told = (read.started.order() == proto::Order::BlockRaster, read.started.blocks.is_some());
                assert_eq!(told, (case == LARGER, case == LARGER));
            }
            let image = Some(raw(&codec::values_to_raw(&sample.values, shape)));
            let item = ScoreItem { item_id: String::new(), image, conditioning: Some(conditioning(&[])) };
            let spec = proto::ScoringSpec { detail: proto::ScoreDetail::PerValue.into(), ..Default::default() };
            let request = ScoreImagesRequest { spec: Some(spec), items: vec![item] };
            let scores = daemon.scoring().score_images(request).await.unwrap().into_inner().scores;
            assert!((scores[0].nll_nats + sample.log_likelihood).abs() < 1e-3, "{case}: {scores:?}");
            let sum: f64 = scores[0].value_nll_nats.iter().map(|&nats| f64::from(nats)).sum();
            assert_eq!(scores[0].value_nll_nats.len(), sample.values.len());
            assert!((sum - scores[0].nll_nats).abs() < 1e-3, "{case}");
        }
    }
}

#[tokio::test]
async fn a_prefix_of_a_mixture_holds_whole_pixels() {
    let (daemon, manifest, _) = start(MIXTURE, Backend::default()).await;
    let whole = manifest.shape.raw_bytes();
    for length in [1, 2, 4, whole - 1, whole] {
        let mut spec = spec(1, 1);
        spec.conditioning = Some(Conditioning { prefix: vec![0; length].into(), ..Conditioning::default() });
        let request = StreamGenerateImagesRequest { spec: Some(spec), ..StreamGenerateImagesRequest::default() };
        let status = daemon.generation().stream_generate_images(request).await.unwrap_err();
        assert_eq!(refusal(&status).2, ["spec.conditioning.prefix"], "{length} bytes");
    }
}

#[tokio::test]
async fn a_low_resolution_image_that_is_missing_or_does_not_fit_is_refused_by_name() {
    let (daemon, ..) = start(LARGER, Backend::default()).await;
    let bad = [
        (None, ""),
        (Some(raw(&[0; 5])), ".data"),
        (Some(raw(&[17; 6])), ".data"),
        (Some(Image { encoding: ImageEncoding::Png.into(), ..raw(&[0; 6]) }), ".data"),
        (Some(Image { encoding: 9, ..raw(&[0; 6]) }), ".encoding"),
        (Some(Image { shape: Some(ImageShape { width: 2, ..LOW }), ..raw(&[0; 6]) }), ".shape"),
    ];
    for (low, field) in bad {
        let conditioning = Some(Conditioning { low_resolution: low, ..Conditioning::default() });
        let spec = proto::GenerationSpec { conditioning: conditioning.clone(), ..spec(1, 1) };
        let request = StreamGenerateImagesRequest { spec: Some(spec), ..StreamGenerateImagesRequest::default() };
        let status = daemon.generation().stream_generate_images(request).await.unwrap_err();
        let (code, _, fields) = refusal(&status);
        assert_eq!((code, fields), (Code::InvalidArgument, vec![format!("spec.conditioning.low_resolution{field}")]));
        let item = ScoreItem { item_id: String::new(), image: Some(raw(&[0; 24])), conditioning };
        let request = ScoreImagesRequest { spec: None, items: vec![item] };
        let (_, _, fields) = refusal(&daemon.scoring().score_images(request).await.unwrap_err());
        assert_eq!(fields, [format!("items[0].conditioning.low_resolution{field}")]);
    }
}
