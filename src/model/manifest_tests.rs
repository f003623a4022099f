//! Tests of the manifest: what is accepted, and that every fault is named at once.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::model::FAMILIES;

const FULL: &str = r#"
format = 1
name = "digits-8.v1_a"
family = "toy"
description = "handwritten digits"
[image]
height = 1
width = 2
channels = 1
levels = 4
order = "raster"
[head]
kind = "categorical"
[condition]
classes = 10
required = true
[architecture]
sharpness = 0.5
[weights]
file = "weights.pt"
sha256 = "00112233445566778899AABBCCDDEEFF00112233445566778899aabbccddeeff"
[data]
source = "somewhere"
licence = "CC0-1.0"
split = "90/10"
[training]
script = "train.py"
seed = 1
seconds = 12.5
parameters = 1000
learning_rate = 1e-3
[results]
held_out_images = 100
held_out_bits_per_dim = 1.25
[[golden.score]]
values = [3, 0]
class = 9
nats = 2.5
[[golden.sample]]
seed = 7
image = 1
class = 0
crc32c = 4294967295
"#;

fn fields(text: &str) -> Vec<String> {
    Manifest::parse(text.as_bytes()).unwrap_err().iter().map(|violation| violation.field.clone()).collect()
}

#[test]
fn everything_a_manifest_may_say_is_read() {
    let manifest = Manifest::parse(FULL.as_bytes()).unwrap();
    assert_eq!(manifest.shape, Shape::new(1, 2, 1, 4).unwrap());
    assert_eq!(manifest.condition, ConditionSpec { classes: 10, class_required: true, low: None });
    let weights = manifest.weights.as_ref().unwrap();
    assert_eq!((weights.format, weights.sha256[1], weights.sha256[31]), (WeightsFormat::TorchScript, 0x11, 0xff));
    assert_eq!(manifest.training.len(), 5);
    assert_eq!(manifest.results.held_out_bits_per_dim, Some(1.25));
    assert_eq!(manifest.golden.scores, [GoldenScore { values: vec![3, 0], class: Some(9), low: None, nats: 2.5 }]);
    let sample = GoldenSample { seed: 7, image: 1, class: Some(0), low: None, crc32c: u32::MAX };
    assert_eq!(manifest.golden.samples, [sample]);
    let spec = manifest.spec("toy", Placement::new(3, 1), 9);
    assert_eq!((spec.slots, spec.bytes_per_slot, spec.name.as_str()), (3, 9, "digits-8.v1_a"));
}

#[test]
fn the_revision_is_the_digest_of_the_text_and_the_weights() {
    let revision = |text: &str| Manifest::parse(text.as_bytes()).unwrap().revision;
    let mut hashed = FULL.as_bytes().to_vec();
    let digits: Vec<u8> = (0..16).map(|n| n * 0x11).collect();
    hashed.extend(digits.iter().chain(&digits));
    let expected: String = Sha256::digest(&hashed).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(revision(FULL), expected);
    assert_ne!(revision(FULL), revision(&FULL.replace("00112233445566778899AA", "01112233445566778899AA")));
    assert_ne!(revision(FULL), revision(&FULL.replace("handwritten", "written")));
}

#[test]
fn what_may_be_absent_may_be_absent() {
    let text = "format = 1\nname = \"a\"\nfamily = \"toy\"\n[image]\nheight = 1\nwidth = 1\nchannels = 1\nlevels = 2\n\
                order = \"raster\"\n[head]\nkind = \"categorical\"\n[architecture]\n";
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    assert_eq!(manifest.condition, ConditionSpec::default());
    assert_eq!((manifest.weights, manifest.golden), (None, Golden::default()));
}

#[test]
fn every_missing_key_is_named_at_once() {
    assert_eq!(fields(""), ["format", "name", "family", "image", "head", "architecture"]);
    let empty = "[image]\n[head]\n[condition]\n[architecture]\n[weights]\n[[golden.score]]\n[[golden.sample]]\n";
    let sections = ["format", "name", "family", "image.height", "image.width", "image.channels", "image.levels"];
    let more = ["image.order", "head.kind", "condition.classes", "weights.file", "weights.sha256"];
    assert_eq!(fields(empty), [&sections[..], &more].concat());
}

#[test]
fn every_wrong_value_and_unknown_key_is_named_at_once() {
    let text = FULL
        .replace("format = 1", "format = 2\nextra = 1")
        .replace("digits-8.v1_a", "../digits")
        .replace("levels = 4", "levels = 1\ndepth = 3")
        .replace("\"raster\"", "\"spiral\"")
        .replace("\"categorical\"", "7")
        .replace("classes = 10", "classes = 0")
        .replace("weights.pt", "../weights.pt")
        .replace("0011", "001g")
        .replace("licence = ", "license = ")
        .replace("seconds = 12.5", "seconds = \"long\"")
        .replace("bits_per_dim = 1.25", "bits_per_dim = nan");
    let mut found = fields(&text);
    found.sort();
    let mut expected = [
        "format",
        "extra",
        "name",
        "image.levels",
        "image.depth",
        "image.order",
        "head.kind",
        "condition.classes",
        "weights.file",
        "weights.sha256",
        "data.license",
        "training.seconds",
        "results.held_out_bits_per_dim",
    ];
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_palette_is_a_colour_for_each_level_of_one_channel() {
    let with = |text: &str, palette: &str| text.replace("levels = 4", &format!("levels = 4\npalette = {palette}"));
    let good = "[[0, 0, 0], [1.5, 2, 3], [255, 255.0, 255], [4, 5, 6]]";
    let manifest = Manifest::parse(with(FULL, good).as_bytes()).unwrap();
    let palette = manifest.palette.clone().unwrap();
    assert_eq!(palette.colours()[..2], [[0.0; 3], [1.5, 2.0, 3.0]]);
    assert_eq!(manifest.spec("toy", Placement::new(1, 1), 0).palette, Some(palette));
    for bad in
        ["[[0, 0, 0]]", "[[0, 0], [0, 0], [0, 0], [0, 0]]", &good.replace("1.5", "-1"), &good.replace("1.5", "nan")]
    {
        assert_eq!(fields(&with(FULL, bad)), ["image.palette"], "{bad}");
    }
    assert_eq!(fields(&with(FULL, good).replace("channels = 1", "channels = 3"))[0], "image.palette");
    let low = FULL.replace("required = true", "required = true\nlow_height = 1\nlow_width = 1");
    assert!(fields(&with(&low, good)).contains(&"image.palette".to_owned()), "made from low-resolution images");
}

#[test]
fn known_answers_must_fit_the_image_and_the_classes() {
    let text = FULL.replace("values = [3, 0]", "values = [3, 4]").replace("class = 9", "class = 10");
    assert_eq!(fields(&text), ["golden.score[0].class", "golden.score[0].values"]);
    let text = FULL.replace("class = 0\n", "").replace("crc32c = 4294967295", "crc32c = -1");
    assert_eq!(fields(&text), ["golden.sample[0].class", "golden.sample[0].crc32c"]);
    let text = FULL.replace("values = [3, 0]", "values = [3]").replace("nats = 2.5", "nats = inf");
    assert_eq!(fields(&text), ["golden.score[0].values", "golden.score[0].nats"]);
}

#[test]
fn a_weights_file_is_a_plain_name_of_known_format() {
    for name in ["", ".pt", "..", "a/b.pt", "..\\\\b.pt", "/etc/passwd", "weights.bin", "weights"] {
        assert_eq!(fields(&FULL.replace("weights.pt", name)), ["weights.file"], "{name}");
    }
}

#[test]
fn a_name_is_short_plain_and_not_hidden() {
    assert!(["a", &"a".repeat(64), "0.1_b-c"].iter().all(|name| check_name(name).is_ok()));
    for name in ["", &"a".repeat(65), ".a", "..", "A", "a b", "a/b", "ä"] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    let violations = Manifest::parse(b"format = 1\nname = \n").unwrap_err();
    assert!(violations.to_string().starts_with("model.toml: line 2: "), "{violations}");
    assert!(Manifest::parse(&[0xff, 0xfe]).is_err());
    assert!(Manifest::parse(format!("a = {}", "[".repeat(100_000)).as_bytes()).is_err());
}

/// Three channels, blocks, a mixture, a low-resolution image; `FULL` has none of them.
const RICH: &str = r#"
format = 1
name = "rich"
family = "toy"
[image]
height = 4
width = 6
channels = 3
levels = 4
order = "block_raster"
block_height = 2
block_width = 3
block_unit = "pixels"
[head]
kind = "logistic_mixture"
components = 5
layout = "oai"
[condition]
low_height = 1
low_width = 2
low_model = "small.v1"
[architecture]
[[golden.score]]
values = [VALUES]
low = [0, 1, 2, 3, 0, 1]
nats = 2.5
[[golden.sample]]
seed = 7
image = 1
low = [0, 1, 2, 3, 0, 0]
crc32c = 1
"#;

fn rich() -> String {
    RICH.replace("VALUES", &"1,".repeat(72))
}

#[test]
fn blocks_a_mixture_and_a_low_resolution_image_are_read() {
    let manifest = Manifest::parse(rich().as_bytes()).unwrap();
    let blocks = Blocks::new(manifest.shape, 2, 9).unwrap();
    assert_eq!((manifest.order, manifest.width_unit), (Order::BlockRaster(blocks), 3));
    assert_eq!((manifest.head, manifest.layout), (Head::LogisticMixture { components: 5 }, Layout::Oai));
    assert_eq!(manifest.spec("toy", Placement::new(1, 1), 0).values_per_step(), 3);
    let low = Some(Shape::new(1, 2, 3, 4).unwrap());
    assert_eq!(manifest.condition, ConditionSpec { classes: 0, class_required: false, low });
    assert_eq!(manifest.low_model.as_deref(), Some("small.v1"));
    assert_eq!(manifest.spec("toy", Placement::new(1, 1), 0).low_model, manifest.low_model);
    assert_eq!(manifest.golden.scores[0].low.as_deref(), Some([0, 1, 2, 3, 0, 1].as_slice()));
    assert_eq!(manifest.golden.samples[0].low.as_deref(), Some([0, 1, 2, 3, 0, 0].as_slice()));
    let in_values = rich().replace("block_width = 3", "block_width = 2").replace("\"pixels\"", "\"values\"");
    let manifest = Manifest::parse(in_values.as_bytes()).unwrap();
    let blocks = Blocks::new(manifest.shape, 2, 2).unwrap();
    assert_eq!((manifest.order, manifest.width_unit), (Order::BlockRaster(blocks), 1));
}

#[test]
fn every_fault_of_blocks_mixture_and_low_resolution_image_is_named() {
    let faults = |from: &str, to: &str| {
        assert!(rich().contains(from));
        fields(&rich().replace(from, to))
    };
    let blocks = "block_height = 2\nblock_width = 3\nblock_unit = \"pixels\"\n";
    let low = "image.block_unit";
    // Where the image or the condition is not known, the known answers have nothing to be checked against.
    let named = |key: &str| [key.to_owned()];
    assert_eq!(faults(blocks, "")[..3], ["image.block_height", "image.block_width", low]);
    assert_eq!(faults("block_height = 2", "block_height = 3")[..1], named("image.block_height"));
    assert_eq!(faults("block_width = 3", "block_width = 4")[..1], named("image.block_width"));
    assert_eq!(faults("block_width = 3", "block_width = 1048576")[..1], named("image.block_width"));
    assert_eq!(faults("\"pixels\"", "\"rows\"")[..1], named(low));
    assert_eq!(faults("order = \"block_raster\"", "order = \"raster\"").len(), 3, "blocks of no use");
    assert_eq!(faults("components = 5\nlayout = \"oai\"", ""), ["head.components", "head.layout"]);
    assert_eq!(faults("components = 5", "components = 65"), ["head.components"]);
    assert_eq!(faults("\"oai\"", "\"kam\""), ["head.layout"]);
    assert_eq!(faults("low_width = 2\n", "")[..1], named("condition.low_width"));
    assert_eq!(faults("\"small.v1\"", "\"../small\"")[..1], named("condition.low_model"));
    assert_eq!(
        faults("low_height = 1\nlow_width = 2\n", "")[..2],
        [named("condition.low_height"), named("condition.low_width")].concat()
    );
    assert_eq!(faults("low_width = 2", "low_width = 0")[..1], named("condition.low_width"));
    assert_eq!(
        faults("low_height = 1\nlow_width = 2", "low_height = 1024\nlow_width = 1024")[..1],
        named("condition.low_height")
    );
    assert_eq!(faults("low_width = 2", "low_width = 2\nrequired = true")[..1], named("condition.classes"));
    assert_eq!(faults("3, 0, 1]", "3, 0, 4]"), ["golden.score[0].low"]);
    assert_eq!(faults("low = [0, 1, 2, 3, 0, 0]\n", ""), ["golden.sample[0].low"]);
    let two = FULL.replace("channels = 1", "channels = 2");
    let mixture =
        |channels, components| FULL.replace("channels = 1", channels).replace("kind = \"categorical\"", components);
    assert!(!fields(&two).contains(&"head.layout".to_owned()));
    let t2t = "kind = \"logistic_mixture\"\ncomponents = 2\nlayout = \"t2t\"";
    assert_eq!(fields(&mixture("channels = 2", t2t))[0], "head.layout");
    let many = "kind = \"logistic_mixture\"\ncomponents = 64\nlayout = \"saha\"";
    assert_eq!(fields(&mixture("channels = 200", many))[0], "head.components");
}

/// Texts in place of others: sizes that overflow, words of other keys, tables where values stand.
const PIECES: [&str; 16] = [
    "0",
    "1",
    "3",
    "4294967295",
    "18446744073709551615",
    "-1",
    "1e308",
    "nan",
    "\"raster\"",
    "\"block_raster\"",
    "[]",
    "{}",
    "\n",
    "[head]",
    "components = 65536",
    "\u{1F600}",
];

proptest! {
    /// Whatever a manifest says, of whichever family, it is read or refused; its tensors are counted, not made.
    #[test]
    fn a_damaged_manifest_is_read_or_refused(
        family in prop::sample::select(FAMILIES),
        shipped in 0..SHIPPED.len() + 1,
        changes in prop::collection::vec((any::<Index>(), 0usize..30, prop::sample::select(&PIECES[..])), 0..6),
    ) {
        let mut text = SHIPPED.get(shipped).copied().unwrap_or(FULL).to_owned();
        for (at, length, piece) in changes {
            let places: Vec<usize> = text.char_indices().map(|(place, _)| place).collect();
            let Some(&start) = places.get(at.index(places.len().max(1))) else { continue };
            let end = places.iter().copied().find(|&place| place >= start + length).unwrap_or(text.len());
            text.replace_range(start..end, piece);
        }
        if let Ok(manifest) = Manifest::parse(text.as_bytes()) {
            let _ = (family.tensors)(&manifest);
        }
    }
}

/// Manifests of most families.
const SHIPPED: [&str; 7] = [
    include_str!("../../models/digits_transformer_mixture/model.toml"),
    include_str!("../../models/digits_row_lstm/model.toml"),
    include_str!("../../models/digits_diagonal_bilstm/model.toml"),
    include_str!("../../models/letters_upscale/model.toml"),
    include_str!("../../models/digits_pixel_cnn_pp/model.toml"),
    include_str!("../../tests/golden/torchscript/scripted_steps/model.toml"),
    include_str!("../../tests/golden/image_gpt/one_channel/model.toml"),
];
