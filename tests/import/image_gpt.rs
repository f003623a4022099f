//! ImageGPT checkpoints of Hugging Face transformers on random weights, against the outputs of that code
//! (tests/golden/import/README.md).

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use pixeld::error::Violations;
use pixeld::image::{Shape, codec};
use pixeld::import::{self, Divisor, ImageGpt, Reading, Tensors, clusters};
use pixeld::repository;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::law::{self, expect, folder, golden};

/// A folder, and what is said beside: height and width, and how scores are divided.
type Case = (&'static str, Option<[u32; 2]>, Option<Divisor>);

const CASES: [Case; 4] = [
    ("quick_gelu", Some([2, 8]), None),
    ("gelu_by_layer", None, Some(Divisor::Whole)),
    ("gelu_new_unscaled", None, None),
    ("relu_wide", None, None),
];

/// A random picture, pixel after pixel, and what the original image processor makes of it.
#[derive(Deserialize)]
struct Photo {
    photo: Vec<[u16; 3]>,
    quantised: Vec<u16>,
}

fn read(case: &str, file: &str) -> Vec<u8> {
    fs::read(folder("image_gpt").join(case).join(file)).unwrap()
}

fn colours(case: &str) -> Vec<[f64; 3]> {
    clusters(&read(case, "preprocessor_config.json")).unwrap().unwrap()
}

fn tensors(case: &str) -> Tensors {
    let files = ["model.safetensors", "pytorch_model.bin"].map(|file| folder("image_gpt").join(case).join(file));
    let file = files.iter().find(|file| file.exists()).unwrap();
    import::read(file, Reading { limit: 1 << 20, key: None })
        .unwrap_or_else(|violations| panic!("{case}: {violations}"))
}

fn format((case, size, divisor): Case) -> ImageGpt {
    ImageGpt::new(&read(case, "config.json"), &colours(case), size, divisor).unwrap()
}

fn fields(violations: &Violations) -> Vec<&str> {
    violations.iter().map(|violation| violation.field.as_str()).collect()
}

#[test]
fn image_gpt_gives_what_the_original_gives() {
    for choices @ (case, ..) in CASES {
        let (_root, source) = law::write(format(choices).draft(tensors(case)).unwrap());
        expect(&source, &golden(&folder("image_gpt").join(case).join("golden.json")), case, |ours| ours);
    }
}

#[test]
fn pictures_are_quantised_as_the_original_does_and_levels_survive_a_png() {
    for choices @ (case, ..) in CASES {
        let (_root, source) = law::write(format(choices).draft(tensors(case)).unwrap());
        let manifest = repository::manifest(&source).unwrap();
        let (shape, palette) = (manifest.shape, manifest.palette.as_deref());
        let Photo { photo, quantised } = serde_json::from_slice(&read(case, "golden.json")).unwrap();
        let rgb = Shape::new(shape.height(), shape.width(), 3, 256).unwrap();
        let png = codec::encode_png(photo.as_flattened(), rgb, None).unwrap();
        assert_eq!(codec::decode_png(&png, shape, palette).unwrap(), quantised, "{case}");
        for first in (0..shape.levels()).step_by(shape.values() as usize) {
            let values: Vec<u16> =
                (first..).take(shape.values() as usize).map(|v| (v % shape.levels()) as u16).collect();
            let png = codec::encode_png(&values, shape, palette).unwrap();
            assert_eq!(codec::decode_png(&png, shape, palette).unwrap(), values, "{case}");
        }
    }
}

#[test]
fn every_tensor_of_an_image_gpt_that_does_not_fit_is_named() {
    for choices @ (case, ..) in CASES {
        let (format, whole) = (format(choices), tensors(case));
        let told = |tensors: Tensors| match format.clone().draft(tensors) {
            Err(violations) => fields(&violations).join(" "),
            Ok(_) => "nothing".to_owned(),
        };
        for (victim, tensor) in &whole {
            let short = victim.trim_start_matches("transformer.");
            let (mut fewer, mut flat) = (whole.clone(), whole.clone());
            fewer.remove(victim);
            flat.get_mut(victim).unwrap().shape.push(1);
            let expected = if short.ends_with(".attn.bias") || short.ends_with(".masked_bias") {
                "nothing".to_owned()
            } else {
                format!("tensors.{short}")
            };
            assert_eq!([told(fewer), told(flat)], [expected.clone(), expected], "{case}: {victim}");
            let mut twice = whole.clone();
            twice.insert(short.to_owned(), tensor.clone());
            twice.insert(format!("transformer.{short}"), tensor.clone());
            assert_eq!(told(twice), format!("tensors.{short}"), "{case}");
        }
        let mut more = whole.clone();
        more.insert("transformer.h.9.attn.bias".to_owned(), whole["lm_head.weight"].clone());
        assert_eq!(told(more), "tensors.h.9.attn.bias", "{case}: a layer too many");
    }
}

#[test]
fn whatever_in_the_configuration_changes_the_law_is_taken_or_refused_by_name() {
    let config: Value = serde_json::from_slice(&read("gelu_by_layer", "config.json")).unwrap();
    let colours = colours("gelu_by_layer");
    let told = |key: &str, value: Value| {
        let mut config = config.clone();
        config.as_object_mut().unwrap().insert(key.to_owned(), value);
        match ImageGpt::new(config.to_string().as_bytes(), &colours, None, Some(Divisor::Root)) {
            Err(violations) => fields(&violations).join(" "),
            Ok(_) => "nothing".to_owned(),
        }
    };
    let refused = [
        ("model_type", "gpt2".into()),
        ("add_cross_attention", true.into()),
        ("tie_word_embeddings", true.into()),
        ("is_encoder_decoder", true.into()),
        ("pruned_heads", serde_json::json!({"0": [1]})),
        ("activation_function", "silu".into()),
        ("vocab_size", 11.into()),
        ("n_positions", 63.into()),
        ("n_layer", 0.into()),
        ("n_head", 5.into()),
        ("n_embd", "wide".into()),
        ("scale_attn_weights", 1.into()),
        ("quantization_config", serde_json::json!({"bits": 4})),
        ("n_ctx", 64.into()),
    ];
    for (key, value) in refused {
        assert_eq!(told(key, value), format!("config.{key}"));
    }
    for (key, value) in [
        ("pruned_heads", serde_json::json!({})),
        ("tie_word_embeddings", false.into()),
        ("activation_function", "gelu_pytorch_tanh".into()),
        ("reorder_and_upcast_attn", true.into()),
        ("n_inner", Value::Null),
        ("resid_pdrop", 0.5.into()),
    ] {
        assert_eq!(told(key, value), "nothing", "{key}");
    }
    let defaults = br#"{"model_type": "imagegpt"}"#;
    let grey = vec![[0.0; 3]; 512];
    let whole = br#"{"model_type": "imagegpt", "vocab_size": 513, "n_positions": 1024, "n_embd": 512, "n_layer": 24, "n_head": 8,
                     "n_inner": 2048, "activation_function": "quick_gelu", "layer_norm_epsilon": 1e-5,
                     "scale_attn_weights": true, "scale_attn_by_inverse_layer_idx": false}"#;
    let read_as = |text: &[u8], size, divisor| ImageGpt::new(text, &grey, size, divisor);
    assert_eq!(read_as(defaults, None, None).unwrap(), read_as(whole, Some([32, 32]), Some(Divisor::Whole)).unwrap());
    // Heads 85 wide, whose root is no whole number.
    let six = br#"{"model_type": "imagegpt", "n_embd": 510, "n_head": 6}"#;
    let why = read_as(six, None, None).unwrap_err().to_string();
    assert!(why.contains("config.n_head: makes heads 85 wide") && why.contains("9.220"), "{why}");
    let [root, part] = [Divisor::Root, Divisor::Whole].map(|divisor| read_as(six, None, Some(divisor)).unwrap());
    assert_ne!(root, part);
    for (switch, same) in [("\"reorder_and_upcast_attn\": true", Some(root)), ("\"scale_attn_weights\": false", None)] {
        let text = std::str::from_utf8(six).unwrap().replace("6}", &format!("6, {switch}}}"));
        let plain = read_as(text.as_bytes(), None, None).unwrap();
        assert_eq!(plain, read_as(text.as_bytes(), None, Some(Divisor::Whole)).unwrap(), "{switch}");
        assert!(same.is_none_or(|root| root == plain), "{switch}");
    }
    let told = |colours: &[[f64; 3]], size| {
        let config = read("gelu_by_layer", "config.json");
        ImageGpt::new(&config, colours, size, Some(Divisor::Root)).unwrap_err().to_string()
    };
    assert!(told(&colours, Some([8, 9])).contains("the pixels of an image, 8 x 9, got 64"));
    assert!(told(&colours, Some([u32::MAX, u32::MAX])).starts_with("config.n_positions"));
    let mut loud = colours.clone();
    loud[3][1] = 1.5;
    assert!(told(&loud, None).starts_with("clusters[3]: must be numbers of -1..=1"));
    for broken in [&b""[..], b"[]", b"{\"model_type\": ", &[b'['; 5000]] {
        assert_eq!(fields(&read_as(broken, None, None).unwrap_err()), ["config"]);
        assert!(clusters(broken).is_err() || broken == b"[]");
    }
    assert_eq!(clusters(b"{}").unwrap(), None);
    let raw = clusters(br#"{"clusters": [[0, 128, 255]], "do_normalize": false}"#).unwrap_err();
    assert_eq!(fields(&raw), ["preprocessor.do_normalize"]);
}

proptest! {
    #[test]
    fn damaged_texts_are_refused_or_read_and_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let [mut config, mut colours] =
            ["config.json", "preprocessor_config.json"].map(|file| read("quick_gelu", file));
        for (at, byte) in edits {
            for text in [&mut config, &mut colours] {
                let at = at.index(text.len());
                text[at] = byte;
            }
        }
        let colours = clusters(&colours).ok().flatten().unwrap_or_default();
        let format = ImageGpt::new(&config, &colours, None, Some(Divisor::Whole));
        let _ = format.map(|format| format.draft(Tensors::new()));
        let whole = read("quick_gelu", "config.json");
        let whole = whole.trim_ascii_end();
        prop_assert!(ImageGpt::new(&whole[..cut.index(whole.len())], &colours, None, None).is_err());
    }
}

fn pixeld(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.env("PIXELD__MODELS__EMBEDDED", "false").args(arguments).output().unwrap()
}

/// A NumPy file of `colours`, as `np.save` writes it.
fn npy(colours: &[[f64; 3]]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, 3), }}", colours.len());
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(117u16.to_le_bytes());
    bytes.extend(format!("{header:<116}\n").as_bytes());
    bytes.extend(colours.iter().flatten().flat_map(|&number| (number as f32).to_le_bytes()));
    bytes
}

#[test]
fn a_directory_becomes_a_package_that_draws_in_its_colours_and_scores_pictures() {
    let root = tempfile::tempdir().unwrap();
    let file = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let from = |case: &str| folder("image_gpt").join(case).to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| {
        let done = pixeld(arguments);
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let (models, dir) = (file("models"), file("drawn"));
    let eight = ["import", "image-gpt", &from("gelu_by_layer"), "--score-divisor", "whole", "--out"];
    let told = run(&[&eight[..], &[&file("models/eight")]].concat());
    assert!(told.contains("image_gpt, 8x8x1"), "{told}");
    run(&["sample", "--models", &models, "--count", "2", "--seed", "4", "--out-dir", &dir]);
    let rgb = Shape::new(8, 8, 3, 256).unwrap();
    let drawn = fs::read(Path::new(&dir).join("image-0.png")).unwrap();
    let colour = |cluster: &[f64; 3]| cluster.map(|number| (127.5 * (number + 1.0)).round() as u16);
    let palette: Vec<_> = colours("gelu_by_layer").iter().map(colour).collect();
    let samples = codec::decode_png(&drawn, rgb, None).unwrap();
    assert!(samples.as_chunks::<3>().0.iter().all(|pixel| palette.contains(pixel)), "{samples:?}");
    // A picture scores as the levels that it is quantised to.
    let Photo { photo, quantised } = serde_json::from_slice(&read("gelu_by_layer", "golden.json")).unwrap();
    let coloured: Vec<u16> = quantised.iter().flat_map(|&level| palette[usize::from(level)]).collect();
    for (name, samples) in [("photo.png", photo.as_flattened()), ("coloured.png", &coloured)] {
        fs::write(file(name), codec::encode_png(samples, rgb, None).unwrap()).unwrap();
    }
    let scores = run(&["score", "--models", &models, "--json", &file("photo.png"), &file("coloured.png")]);
    let nats: Vec<_> =
        scores.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["nll_nats"].as_f64()).collect();
    assert!(nats.len() == 2 && nats[0] == nats[1], "{scores}");

    fs::write(file("centers.npy"), npy(&colours("quick_gelu"))).unwrap();
    let wide = ["--clusters", &file("centers.npy"), "--height", "2", "--width", "8"];
    let told = run(&[&["import", "image-gpt", &from("quick_gelu"), "--out", &file("models/wide")], &wide[..]].concat());
    assert!(told.contains("image_gpt, 2x8x1"), "{told}");

    let refused = |arguments: &[&str]| {
        let done = pixeld(&[&["import", "image-gpt"], arguments, &["--out", &file("models/none")]].concat());
        assert_eq!(done.status.code(), Some(64), "{arguments:?}");
        String::from_utf8(done.stderr).unwrap()
    };
    assert!(refused(&[&from("quick_gelu"), "--height", "3", "--width", "5"]).contains("config.n_positions"));
    fs::write(file("one.npy"), npy(&[[0.0; 3]])).unwrap();
    let told = refused(&[&from("gelu_by_layer"), "--clusters", &file("one.npy")]);
    assert!(told.contains("config.vocab_size: must be one more than the 1 clusters, got 10"), "{told}");
    fs::write(file("flat.npy"), &npy(&[[0.0; 3]; 4])[..160]).unwrap();
    assert!(refused(&[&from("gelu_by_layer"), "--clusters", &file("flat.npy")]).contains("flat.npy"));
    assert!(refused(&[&from("gelu_by_layer")]).contains("name one (--score-divisor)"));
    assert!(refused(&[&file("models")]).contains("preprocessor_config.json"));
    fs::create_dir(file("empty")).unwrap();
    for name in ["config.json", "preprocessor_config.json"] {
        fs::copy(folder("image_gpt").join("gelu_by_layer").join(name), Path::new(&file("empty")).join(name)).unwrap();
    }
    assert!(
        refused(&[&file("empty"), "--score-divisor", "root"])
            .contains("has neither model.safetensors nor pytorch_model.bin")
    );
    fs::write(Path::new(&file("empty")).join("preprocessor_config.json"), "{}").unwrap();
    assert!(refused(&[&file("empty")]).contains("has no clusters; name a NumPy file with --clusters"));
    assert!(!Path::new(&file("models/none")).exists());
}
