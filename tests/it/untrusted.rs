//! Messages, PNG files and configurations that are damaged: whatever is in them, they are read to an answer, and what is
//! taken is what it must be. From the seeds that the fuzz targets begin with.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use pixeld::image::{Shape, codec};
use pixeld::rpc::proto::inference::model_infer_request::InferInputTensor;
use pixeld::rpc::proto::inference::{InferParameter, InferTensorContents, ModelInferRequest, infer_parameter};
use pixeld::rpc::proto::{
    Conditioning, FlushPolicy, GenerationSpec, Granularity, Image, ImageEncoding, ImageShape, Priority, SamplingParams,
    SchedulingParams, ScoreImagesRequest, ScoreItem, ScoringSpec, StreamGenerateImagesRequest,
};
use proptest::prelude::*;
use prost::Message;

use crate::damage::change;
use crate::subjects;

/// Seeds of a target, each a name and its bytes.
type Seeds = Vec<(&'static str, Vec<u8>)>;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target)
}

fn png(shape: [u32; 4]) -> Vec<u8> {
    let [height, width, channels, levels] = shape;
    let shape = Shape::new(height, width, channels, levels).unwrap();
    let values: Vec<u16> = (0..shape.values()).map(|rank| (rank * 7 % levels) as u16).collect();
    codec::encode_png(&values, shape, None).unwrap()
}

/// Messages that are taken, behind the number of their kind.
fn messages() -> Seeds {
    let of = |kind: u8, message: Vec<u8>| [&[kind], &message[..]].concat();
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 5_000_000 });
    let generation = StreamGenerateImagesRequest {
        spec: Some(GenerationSpec {
            model: "models/mod_rgb_class".into(),
            image_count: Some(3),
            conditioning: Some(Conditioning {
                class_label: Some(1),
                prefix: vec![0, 1, 2, 0].into(),
                ..Conditioning::default()
            }),
            sampling: Some(SamplingParams {
                temperature: Some(0.7),
                top_k: Some(3),
                top_p: Some(0.9),
                seed: Some(7),
                ..SamplingParams::default()
            }),
            scheduling: Some(SchedulingParams { priority: Priority::Batch.into(), queue_timeout: seconds(3) }),
            request_id: "some-request".into(),
            first_image_index: 2,
        }),
        flush: Some(FlushPolicy { granularity: Granularity::Row.into(), max_delay: seconds(1) }),
        include_log_probs: true,
    };
    let low = Image { data: png([2, 3, 3, 5]).into(), encoding: ImageEncoding::Png.into(), shape: None };
    let enlarged = StreamGenerateImagesRequest {
        spec: Some(GenerationSpec {
            model: "contiguous_rgb_low".into(),
            conditioning: Some(Conditioning { low_resolution: Some(low.clone()), ..Conditioning::default() }),
            ..GenerationSpec::default()
        }),
        ..StreamGenerateImagesRequest::default()
    };
    let shape = ImageShape { height: 4, width: 6, channels: 3, levels: 5 };
    let item = |image| ScoreItem {
        item_id: "an item".into(),
        image: Some(image),
        conditioning: Some(Conditioning { low_resolution: Some(low.clone()), ..Conditioning::default() }),
    };
    let scoring = ScoreImagesRequest {
        spec: Some(ScoringSpec { model: "contiguous_rgb_low".into(), ..ScoringSpec::default() }),
        items: vec![
            item(Image { data: vec![4; 72].into(), encoding: ImageEncoding::Raw.into(), shape: Some(shape) }),
            item(Image { data: png([4, 6, 3, 5]).into(), encoding: ImageEncoding::Png.into(), shape: None }),
        ],
    };
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let tensor = |name: &str, datatype: &str, shape: Vec<i64>, contents| InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape,
        contents,
    };
    let sampled = ModelInferRequest {
        model_name: "mod_rgb_class".into(),
        // One only: the order of more in the message is left to chance.
        parameters: [("temperature".to_owned(), parameter(infer_parameter::ParameterChoice::DoubleParam(0.5)))].into(),
        inputs: vec![tensor(
            "class_label",
            "UINT32",
            vec![1],
            Some(InferTensorContents { uint_contents: vec![1], ..InferTensorContents::default() }),
        )],
        ..ModelInferRequest::default()
    };
    vec![
        ("generation", of(0, generation.encode_to_vec())),
        ("enlarged", of(0, enlarged.encode_to_vec())),
        ("scoring", of(1, scoring.encode_to_vec())),
        ("inference", of(2, sampled.encode_to_vec())),
    ]
}

/// Files that are taken, behind the number of their shape.
fn files() -> Seeds {
    let of = |choice: u8, file: Vec<u8>| [&[choice], &file[..]].concat();
    vec![
        ("grey", of(0, png([2, 2, 1, 256]))),
        ("colour", of(1, png([4, 5, 3, 16]))),
        ("deep", of(2, png([3, 3, 1, 65_536]))),
        ("alpha", of(3, png([2, 3, 4, 257]))),
        ("palette", of(4, png([3, 5, 3, 256]))),
    ]
}

/// Configurations that are taken.
fn configurations() -> Seeds {
    let flags =
        "[engine]\nslots = 3\n\0engine.shards=2\0models.aliases.stable=models/digits\0log.filter=info,pixeld=debug";
    let unix =
        "[admin]\nlisten = \"unix:/run/a.sock\"\n[models.aliases]\na = \"b\"\n[limits]\nqueue_timeout = \"1m 3s\"\n";
    vec![("flags", flags.into()), ("sections", unix.into())]
}

/// Every target with what feeds it and its seeds.
type Target = (&'static str, fn(&[u8]) -> bool, Seeds);

static TARGETS: LazyLock<[Target; 3]> = LazyLock::new(|| {
    [
        ("message", subjects::message, messages()),
        ("png", subjects::png, files()),
        ("configuration", subjects::configuration, configurations()),
    ]
});

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever wants the seeds written says so there")]
fn the_seeds_of_the_fuzz_targets_are_taken_and_are_those_that_lie_there() {
    for (target, feed, seeds) in &*TARGETS {
        for (name, bytes) in seeds {
            assert!(feed(bytes), "{target} {name} is refused");
            let path = folder(target).join(name);
            if std::env::var_os("PIXELD_WRITE_DOCS").is_some() {
                fs::create_dir_all(folder(target)).unwrap();
                fs::write(&path, bytes).unwrap();
            }
            assert!(fs::read(&path).unwrap() == *bytes, "{} is out of date: make lists", path.display());
        }
    }
}

proptest! {
    #[test]
    fn whatever_was_damaged_is_read_to_an_answer(
        target in 0usize..3, seed: prop::sample::Index, changes in prop::collection::vec(change(), 1..6)
    ) {
        let (_, feed, seeds) = &TARGETS[target];
        // The first byte says what the others are read as.
        let mut bytes = seeds[seed.index(seeds.len())].1.clone();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        feed(&bytes);
    }
}
