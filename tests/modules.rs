//! TorchScript modules of somebody else's: what is found out about them, what is refused, and what loading them leaves behind.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests count as product code to clippy")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use pixeld::model::Placement;
use pixeld::repository::{self, Limits, Source};

fn goldens(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(part)
}

fn pixeld(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pixeld"))
        .env("PIXELD__MODELS__EMBEDDED", "false")
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Imports `archive` with `flags`; the lines of the manifest that were found.
fn import(archive: &Path, flags: &str) -> Result<Vec<String>, String> {
    let root = tempfile::tempdir().unwrap();
    let (archive, out) = (archive.to_str().unwrap(), root.path().join("found"));
    let mut arguments = vec!["import", "torchscript", archive, "--out", out.to_str().unwrap()];
    arguments.extend(flags.split_whitespace());
    let output = pixeld(&arguments);
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(64), "{}", said(&output));
        assert!(fs::read_dir(root.path()).unwrap().next().is_none(), "nothing is left of what was refused");
        return Err(said(&output));
    }
    let checked = pixeld(&["check", "--models", root.path().to_str().unwrap()]);
    assert!(checked.status.success(), "{}", said(&checked));
    Ok(fs::read_to_string(out.join("model.toml")).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn how_a_module_is_called_is_found_out() {
    for (case, flags, found) in [
        (
            "scripted_steps",
            "--height 6 --width 3 --channels 2 --levels 5 --classes 4",
            &["input = \"(h w c) b\"", "input_type = \"int64\"", "output = \"(h w c) b v\"", "incremental = true"][..],
        ),
        (
            "traced_planes_mixture",
            "--height 5 --width 4 --levels 9 --layout oai",
            &[
                "channels = 3",
                "kind = \"logistic_mixture\"",
                "components = 2",
                "layout = \"oai\"",
                "input = \"b c h w\"",
                "output = \"b v h w\"",
                "output_item = 1",
                "batches = [4]",
            ],
        ),
        (
            "traced_sequence",
            "--height 9 --width 4 --levels 17",
            &["channels = 1", "input = \"b (h w c)\"", "start = 17", "output = \"b (h w c) v\"", "prefix = true"],
        ),
        (
            "scripted_factorised_low",
            "--height 4 --width 6 --channels 2 --levels 5 --classes 3 --low-height 2 --low-width 3",
            &["kind = \"factorised_categorical\"", "arguments = [\"low\", \"image\", \"class_one_hot\"]"],
        ),
    ] {
        let lines = import(&goldens("torchscript").join(case).join("weights.pt"), flags).unwrap();
        for line in found {
            assert!(lines.iter().any(|own| own == line), "{case}: {line} is not in\n{}", lines.join("\n"));
        }
    }
}

#[test]
fn modules_that_leak_stand_still_or_want_too_much_are_refused_and_why() {
    let refused = |case: &str, flags: &str| {
        let flags = format!("--height 5 --width 4 --levels 9 {flags}");
        import(&goldens("torchscript_refused").join(case).join("weights.pt"), &flags).unwrap_err()
    };
    let leak = "the parameters at row 0, column 0, channel 0 change with the values from row 0, column 0, channel 0 on";
    assert!(refused("leaking", "").contains(leak), "{}", refused("leaking", ""));
    assert!(refused("endless", "--time-limit 3s").contains("--time-limit"));
    assert!(refused("hungry", "--memory-limit 4GiB").contains("can't allocate memory"));
    assert!(refused("leaking", "--size-limit 1KiB").contains("--size-limit"));
    assert!(refused("leaking", "--memory-limit 1MiB").contains("--memory-limit"));
}

/// Held by tests that load in this process: one of them counts its memory.
static LOADING: Mutex<()> = Mutex::new(());

#[test]
fn a_manifest_cannot_vouch_for_a_module() {
    let _alone = LOADING.lock().unwrap();
    pixeld::torch::limit_threads(1);
    for (case, why) in [
        ("leaking", "weights: the module looks at what is still to come: the parameters at row 0, column 0, channel 0"),
        ("forgetful", "architecture: the module must give the same for the same image; does it still drop out"),
    ] {
        let source = Source::Directory(goldens("torchscript_refused").join(case));
        let faults = repository::load(&source, Placement::new(2, 2), Limits::default()).err().unwrap().to_string();
        assert!(faults.starts_with(why), "{case}: {faults}");
    }
}

/// Pages of this process that are in memory.
fn resident() -> f64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_package_that_comes_and_goes_leaves_no_memory_behind() {
    let _alone = LOADING.lock().unwrap();
    pixeld::torch::limit_threads(1);
    let source = Source::Directory(goldens("torchscript").join("traced_sequence"));
    let cycle = || drop(repository::load(&source, Placement::new(4, 4), Limits::default()).unwrap());
    (0..10).for_each(|_| cycle());
    let before = resident();
    (0..50).for_each(|_| cycle());
    let after = resident();
    assert!(after <= 1.05 * before, "{before} pages grew to {after}");
}
