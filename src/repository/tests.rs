//! Tests of packages on disk and in memory: bounds, digests, names, and known answers.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::spec::{Backend, Device, Precision};

const TOY: &str = "format = 1\nname = \"toy\"\nfamily = \"toy\"\n[image]\nheight = 1\nwidth = 2\nchannels = 1\nlevels = 4\n\
                   order = \"raster\"\n[head]\nkind = \"categorical\"\n[condition]\nclasses = 2\n[architecture]\n";
const PLACEMENT: Placement =
    Placement { slots: 1, score_images: 1, backend: Backend::Native, device: Device::Cpu, precision: Precision::F32 };

fn embedded(text: impl Into<Bytes>) -> Source {
    Source::Embedded { manifest: text.into(), weights: Bytes::new() }
}

fn refused(source: &Source, limits: Limits) -> Violations {
    match load(source, PLACEMENT, limits) {
        Ok(_) => panic!("{source:?} was loaded"),
        Err(violations) => violations,
    }
}

fn refused_fields(text: &str) -> Vec<String> {
    refused(&embedded(text.to_owned()), Limits::default()).iter().map(|violation| violation.field.clone()).collect()
}

fn write(root: &Path, name: &str, text: &str) -> Source {
    let directory = root.join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("model.toml"), text).unwrap();
    Source::Directory(directory)
}

#[test]
fn a_package_loads_the_same_from_a_directory_and_from_memory() {
    let root = tempfile::tempdir().unwrap();
    let on_disk = load(&write(root.path(), "toy", TOY), PLACEMENT, Limits::default()).unwrap();
    let in_memory = load(&embedded(TOY), PLACEMENT, Limits::default()).unwrap();
    assert_eq!(on_disk.spec(), in_memory.spec());
    assert_eq!(on_disk.spec().revision.len(), 16);
}

#[test]
fn an_unknown_family_is_told_which_are_known() {
    let why = refused(&embedded(TOY.replace("\"toy\"\n[image]", "\"tory\"\n[image]")), Limits::default()).to_string();
    assert!(why.contains("toy") && why.contains("image_transformer") && why.contains("tory"), "{why}");
}

#[test]
fn a_known_answer_that_the_model_does_not_give_is_named() {
    // p(0) = 1 / (1 + q + q^2 + q^3) twice over, q = exp(-1/2), for the image 0 0 without a class.
    let q = (-0.5f64).exp();
    let nats = 2.0 * (1.0 + q + q * q + q * q * q).ln();
    let golden = |nats: f64| format!("{TOY}[[golden.score]]\nvalues = [0, 0]\nnats = {nats}\n");
    assert!(load(&embedded(golden(nats)), PLACEMENT, Limits::default()).is_ok());
    assert!(load(&embedded(golden(nats + 9e-4)), PLACEMENT, Limits::default()).is_ok());
    assert_eq!(refused_fields(&golden(nats + 2e-3)), ["golden.score[0].nats"]);

    let sample = |crc32c: u32| format!("{TOY}[[golden.sample]]\nseed = 5\nimage = 2\nclass = 1\ncrc32c = {crc32c}\n");
    let right: Vec<u32> = (0..16u8)
        .map(|image| crc32c::crc32c(&[image / 4, image % 4]))
        .filter(|&crc32c| load(&embedded(sample(crc32c)), PLACEMENT, Limits::default()).is_ok())
        .collect();
    assert_eq!(right.len(), 1, "exactly one image is what the seed samples");
    assert_eq!(refused_fields(&sample(!right[0])), ["golden.sample[0].crc32c"]);
}

#[test]
fn weights_must_be_there_exactly_if_the_family_has_any() {
    let section = |sha256: &str| format!("[weights]\nfile = \"weights.pt\"\nsha256 = \"{sha256}\"\n");
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(refused_fields(&format!("{TOY}{}", section(nothing))), ["weights"]);
    let architecture = "layers = 1\nmodel_width = 4\nheads = 1\nkey_width = 4\nvalue_width = 4\nfeed_forward_width = 4\n\
                        query_block = 2\npositions = \"learned\"\nnorm = \"pre\"\n";
    let transformer = TOY.replace("\"toy\"\n[image]", "\"image_transformer\"\n[image]") + architecture;
    assert_eq!(refused_fields(&transformer), ["weights"]);
    // Sixty-four zeros are not the digest of nothing.
    assert_eq!(refused_fields(&format!("{transformer}{}", section(&"0".repeat(64)))), ["weights.sha256"]);
}

#[test]
fn files_are_bounded_before_they_are_read() {
    let root = tempfile::tempdir().unwrap();
    let large = format!("{TOY}#{}", "x".repeat(MAX_MANIFEST_BYTES as usize));
    let source = write(root.path(), "toy", &large);
    assert!(refused(&source, Limits::default()).to_string().starts_with("model.toml: "));

    let with_weights = |name: &str| {
        let text = TOY.replace("\"toy\"\nfamily = \"toy\"", &format!("\"{name}\"\nfamily = \"image_transformer\""))
            + "layers = 1\nmodel_width = 4\nheads = 1\nkey_width = 4\nvalue_width = 4\nfeed_forward_width = 4\n\
               query_block = 2\npositions = \"learned\"\nnorm = \"pre\"\n";
        format!("{text}[weights]\nfile = \"weights.pt\"\nsha256 = \"{}\"\n", "0".repeat(64))
    };
    let source = write(root.path(), "heavy", &with_weights("heavy"));
    assert!(refused(&source, Limits::default()).to_string().starts_with("weights.file: "), "there is no such file");
    fs::write(root.path().join("heavy/weights.pt"), [0; 100]).unwrap();
    let why = refused(&source, Limits { weights_bytes: 99 }).to_string();
    assert!(why.contains("99") && why.contains("100"), "{why}");
    let source = write(root.path(), "folder", &with_weights("folder"));
    fs::create_dir(root.path().join("folder/weights.pt")).unwrap();
    assert!(refused(&source, Limits::default()).to_string().contains("not a regular file"));
}

#[test]
fn an_architecture_cannot_ask_for_more_than_the_weights_may_take() {
    let wide = "layers = 1\nmodel_width = 4\nheads = 1\nkey_width = 4\nvalue_width = 4\nfeed_forward_width = 65536\n\
                query_block = 2\npositions = \"learned\"\nnorm = \"pre\"\n";
    let text = TOY.replace("\"toy\"\n[image]", "\"image_transformer\"\n[image]") + wide;
    let weights = format!("[weights]\nfile = \"weights.pt\"\nsha256 = \"{}\"\n", "0".repeat(64));
    let why = refused(&embedded(format!("{text}{weights}")), Limits { weights_bytes: 1 << 20 }).to_string();
    assert!(why.starts_with("architecture: must have at most 1048576 bytes of weights, got 2"), "{why}");
}

#[test]
fn scanning_lists_every_package_by_name_however_broken_its_neighbours_are() {
    let root = tempfile::tempdir().unwrap();
    let named = |name: &str| TOY.replacen("\"toy\"", &format!("\"{name}\""), 1);
    write(root.path(), "b", &named("b"));
    write(root.path(), "a", &named("a"));
    write(root.path(), "broken", "this is no toml");
    write(root.path(), "misnamed", &named("other"));
    write(root.path(), ".hidden", &named("hidden"));
    write(root.path(), "Upper", &named("Upper"));
    let foreign = OsStr::from_bytes(b"not\xffutf8\n");
    fs::create_dir(root.path().join(foreign)).unwrap();
    fs::write(root.path().join(foreign).join("model.toml"), TOY).unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    fs::write(root.path().join("file"), "").unwrap();
    fs::create_dir_all(root.path().join("pipe/model.toml")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.path().join("dangling")).unwrap();
    std::os::unix::fs::symlink(".", root.path().join("loop")).unwrap();
    std::os::unix::fs::symlink("a", root.path().join("linked")).unwrap();

    let found = scan(root.path()).unwrap();
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Upper", "a", "b", "broken", "linked", "misnamed", "not\u{fffd}utf8\\n", "pipe"]);
    let loads = |(_, source): &(String, Source)| load(source, PLACEMENT, Limits::default()).is_ok();
    assert_eq!(found.iter().map(loads).collect::<Vec<_>>(), [false, true, true, false, false, false, false, false]);
    let why = load(&found[0].1, PLACEMENT, Limits::default()).err().unwrap().to_string();
    assert!(why.contains("name: of the directory must be") && why.contains("\"Upper\""), "{why}");
    assert!(scan(&root.path().join("nowhere")).is_err());
}
