//! `pixeld import` as a user meets it: a package that serves, or one message and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::law::folder;

fn pixeld(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.env("PIXELD__MODELS__EMBEDDED", "false").args(arguments).output().unwrap()
}

fn import(flags: &[&str], checkpoint: &Path, out: &Path) -> Output {
    let (format, flags) = flags.split_first().unwrap();
    let paths = [checkpoint.to_str().unwrap(), "--out", out.to_str().unwrap()];
    pixeld(&[&["import", format], &paths[..], flags].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn what_was_imported_is_sampled_by_the_next_command() {
    let root = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str, &str); 4] = [
        (&["pixel-cnn-pp", "--height", "8", "--width", "8"], "pixel_cnn_pp/rgb_stream.pth", "pixel_cnn_pp, 8x8x3"),
        (
            &["image-transformer", "--image-size", "6", "--num-heads", "4", "--block-length", "7"],
            "image_transformer/dmol_local.pth",
            "image_transformer, 6x6x3",
        ),
        (
            &["image-transformer", "--image-size", "4", "--num-heads", "4", "--attn-type", "global"],
            "image_transformer/cat_global.pth",
            "image_transformer, 4x4x3",
        ),
        (&["openai-pixel-cnn", "--height", "8", "--width", "8"], "openai_pixel_cnn/plain.npz", "pixel_cnn_pp, 8x8x3"),
    ];
    for (index, (flags, checkpoint, told)) in cases.into_iter().enumerate() {
        let name = format!("model-{index}");
        let out = root.path().join("models").join(&name);
        let done = import(flags, &folder("").join(checkpoint), &out);
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert!(text(&done.stdout).contains(told), "{}", text(&done.stdout));
        let png = root.path().join("image.png");
        let models = root.path().join("models");
        let arguments = ["sample", "--models", models.to_str().unwrap(), "--model", &name, "--seed", "1", "--out"];
        let sampled = pixeld(&[&arguments[..], &[png.to_str().unwrap()]].concat());
        assert!(sampled.status.success(), "{}", text(&sampled.stderr));
        assert!(fs::read(&png).unwrap().starts_with(b"\x89PNG"));
        // The checkpoint that it came from is on record, and whoever may read the manifest may read the weights.
        let manifest = fs::read_to_string(out.join("model.toml")).unwrap();
        assert!(manifest.contains("\n[training]\ncheckpoint_sha256 = \""), "{manifest}");
        let mode = |file: &str| fs::metadata(out.join(file)).unwrap().permissions();
        assert_eq!(mode("weights.safetensors"), mode("model.toml"));
    }
    assert_eq!(fs::read_dir(root.path().join("models")).unwrap().count(), 4, "something was left behind");
}

#[test]
fn a_refused_import_says_why_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = folder("pixel_cnn_pp").join("grey.pth");
    let refused = |flags: &[&str], checkpoint: &Path, out: &str| {
        let done = import(flags, checkpoint, &root.path().join(out));
        assert_eq!(done.status.code(), Some(64), "{}", text(&done.stdout));
        text(&done.stderr)
    };
    let cnn: &[&str] = &["pixel-cnn-pp"];
    let told = refused(&["pixel-cnn-pp", "--width", "30"], &checkpoint, "m");
    assert!(told.contains("image.width: must be a multiple of 4 in this family, got 30"), "{told}");
    let told = refused(&["image-transformer", "--num-heads", "2"], &checkpoint, "m");
    assert!(told.contains("tensors.output_dense.weight: is missing or no matrix"), "{told}");
    let told = refused(&["pixel-cnn-pp", "--size-limit", "1KB"], &checkpoint, "m");
    assert!(told.contains("must be at most 1000 bytes"), "{told}");
    assert!(refused(&["pixel-cnn-pp", "--key", "ema"], &checkpoint, "m").contains("no state dict under \"ema\""));
    assert!(refused(cnn, root.path(), "m").contains("is not a regular file"));
    assert!(refused(cnn, &root.path().join("none.pth"), "m").contains("No such file"));
    assert!(refused(cnn, &checkpoint, "Big Name").contains("must be 1 to 64 of a-z"));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "something was left behind");
    fs::create_dir(root.path().join("taken")).unwrap();
    assert!(refused(cnn, &checkpoint, "taken").contains("is there already"));
    assert_eq!(fs::read_dir(root.path().join("taken")).unwrap().count(), 0);
    assert!(text(&import(&["image-transformer"], &checkpoint, root.path()).stderr).contains("--num-heads"));
}
