//! TorchScript modules of somebody else's: what is found out about them, what is refused, and what loading them leaves behind.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests count as product code to clippy")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use pixeld::image::Canvas;
use pixeld::model::{Condition, ParamRows, Placement, ScoreRow, Slot, StepRow};
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

fn words(flags: &str) -> Vec<&str> {
    flags.split_whitespace().collect()
}

/// Imports `archive` with `flags`; the lines of the manifest that were found.
fn import(archive: &Path, flags: &str) -> Result<Vec<String>, String> {
    imported(archive, &words(flags)).map(|(lines, _)| lines)
}

/// As [`import`], and what was said beside them.
fn imported(archive: &Path, flags: &[&str]) -> Result<(Vec<String>, String), String> {
    let root = tempfile::tempdir().unwrap();
    let (archive, out) = (archive.to_str().unwrap(), root.path().join("found"));
    let mut arguments = vec!["import", "torchscript", archive, "--out", out.to_str().unwrap()];
    arguments.extend(flags);
    let output = pixeld(&arguments);
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(64), "{}", said(&output));
        assert!(fs::read_dir(root.path()).unwrap().next().is_none(), "nothing is left of what was refused");
        return Err(said(&output));
    }
    let checked = pixeld(&["check", "--models", root.path().to_str().unwrap()]);
    assert!(checked.status.success(), "{}", said(&checked));
    let manifest = fs::read_to_string(out.join("model.toml")).unwrap();
    Ok((manifest.lines().map(str::to_owned).collect(), said(&output)))
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
            "scripted_unit_steps",
            "--height 4 --width 3 --channels 2 --levels 6",
            &["input = \"b h w c\"", "input_scale = \"unit\"", "output = \"b (h w c) v\"", "incremental = true"],
        ),
        (
            "scripted_printing",
            "--height 4 --width 3 --channels 2 --levels 6",
            &["input = \"b h w c\"", "input_scale = \"signed\"", "output = \"b (h w c) v\""],
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
    let leaking = refused("leaking", "");
    assert!(
        leaking.contains("the module looks at what is still to come: the parameters at row 0, column 0 change by ")
    );
    assert!(leaking.contains(" when nothing but the value at row "), "{leaking}");
    assert!(refused("forgetful", "").contains("the same for the same image; does it still drop out"));
    assert!(refused("endless", "--time-limit 3s").contains("--time-limit"));
    assert!(refused("hungry", "--memory-limit 4GiB").contains("can't allocate memory"));
    assert!(refused("leaking", "--size-limit 1KiB").contains("--size-limit"));
    assert!(refused("leaking", "--memory-limit 1MiB").contains("--memory-limit"));
}

#[test]
fn a_module_that_is_probed_has_no_files() {
    let root = tempfile::tempdir().unwrap();
    let victim = root.path().join("victim");
    fs::write(&victim, "text").unwrap();
    let archive = goldens("torchscript_refused").join("writing/weights.pt");
    let output = Command::new(env!("CARGO_BIN_EXE_pixeld"))
        .current_dir(root.path())
        .args(["import", "torchscript", archive.to_str().unwrap(), "--out", "found"])
        .args(words("--height 5 --width 4 --channels 1 --levels 9"))
        .output()
        .unwrap();
    // A kernel that cannot keep it from them is told of.
    if !said(&output).contains("warning: this kernel could not keep the module from files") {
        assert_eq!(fs::read_to_string(&victim).unwrap(), "text");
        assert!(said(&output).contains("Permission denied"), "{}", said(&output));
        assert_eq!(output.status.code(), Some(64));
    }
}

#[test]
fn the_size_of_the_examples_is_that_of_the_images() {
    let root = tempfile::tempdir().unwrap();
    let examples = root.path().join("examples.npy");
    let (models, file) = (goldens("torchscript"), examples.to_str().unwrap());
    let sample = ["sample", "--model", "traced_sequence", "--models", models.to_str().unwrap(), "--npy", file];
    assert!(pixeld(&sample).status.success());
    let lines = import(&models.join("traced_sequence/weights.pt"), &format!("--levels 17 --examples {file}")).unwrap();
    for line in ["height = 9", "width = 4", "channels = 1", "input = \"b (h w c)\""] {
        assert!(lines.iter().any(|own| own == line), "{line} is not in\n{}", lines.join("\n"));
    }
}

#[test]
fn steps_that_stray_from_forward_are_refused_or_left_alone_as_asked() {
    let straying = goldens("torchscript_refused").join("straying_steps/weights.pt");
    let size = "--height 4 --width 3 --channels 2 --levels 6";
    let why = import(&straying, size).unwrap_err();
    assert!(why.contains("the step at rank 2 gives other parameters than forward"), "{why}");
    assert!(why.contains("--set 'incremental = false'"), "{why}");
    let (lines, said) = imported(&straying, &[&words(size)[..], &["--set", "incremental = false"]].concat()).unwrap();
    let unused =
        "init_state and step are there and not used, as was asked for: the step at rank 1 gives other parameters";
    assert!(lines.iter().any(|line| line.starts_with(&format!("# UNUSED: {unused}"))), "{}", lines.join("\n"));
    assert!(said.contains(&format!("warning: {unused}")) && !said.contains("error:"), "{said}");
    assert!(lines.iter().any(|line| line == "incremental = false"), "{}", lines.join("\n"));
}

#[test]
fn what_is_no_module_or_no_line_of_a_manifest_is_said_at_once() {
    let archive = goldens("torchscript").join("traced_sequence/weights.pt");
    let set = |line: &str| imported(&archive, &["--set", line]).unwrap_err();
    assert!(set("inptu = \"b\"").contains("inptu = \"b\": inptu is not a known key"), "{}", set("inptu = \"b\""));
    assert!(set("input = \"b x\"").contains("input may hold b, h, w, c, v and ( ), got 'x'"));
    let size = words("--height 9 --width 4 --channels 1 --levels 17");
    let why = imported(&archive, &[&size[..], &["--set", "input = \"b c h w\""]].concat()).unwrap_err();
    assert!(why.contains("nothing agrees with what was said beforehand, input = \"b c h w\": "), "{why}");
    for tensors in ["pixel_cnn_pp/grey.pth", "openai_pixel_cnn/plain.npz"] {
        let why = import(&goldens("import").join(tensors), "").unwrap_err();
        assert!(why.contains("holds tensors, a state dict it seems") && why.contains("torch.jit.trace"), "{why}");
        assert!(why.contains("pixeld import pixel-cnn-pp, openai-pixel-cnn, image-transformer, image-gpt."), "{why}");
    }
}

#[test]
fn what_a_module_prints_is_no_answer_of_ours() {
    let archive = goldens("torchscript").join("scripted_printing/weights.pt");
    let size = "--height 4 --width 3 --channels 2 --levels 6";
    // Refused for what is wrong, not for what it printed.
    let why = imported(&archive, &[&words(size)[..], &["--set", "input_type = \"int64\""]].concat()).unwrap_err();
    assert!(why.starts_with("error: nothing agrees with what was said beforehand, input_type = \"int64\": "), "{why}");
    assert!(!why.contains("error: none"), "{why}");
    let models = goldens("torchscript");
    let arguments = "--model scripted_printing --count 1 --json --models";
    let sampled = pixeld(&[&["sample"], &words(arguments)[..], &[models.to_str().unwrap()]].concat());
    assert!(sampled.status.success(), "{}", said(&sampled));
    let lines: Vec<_> = std::str::from_utf8(&sampled.stdout).unwrap().lines().collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.starts_with('{')), "{lines:?}");
    assert!(said(&sampled).contains("error: none, "), "it went to standard error: {}", said(&sampled));
}

#[test]
fn what_is_no_tensor_is_told_with_what_would_be_taken() {
    let why = import(&goldens("torchscript_refused").join("named/weights.pt"), "--height 5 --width 4 --levels 9");
    let why = why.unwrap_err();
    assert!(why.contains("the module takes an image and gives a dictionary with \"logits\", \"loss\""), "{why}");
    assert!(why.contains("must give a tensor of parameters, or a tuple or list that begins with tensors"), "{why}");
    assert!(!why.contains("--classes"), "{why}");
}

/// Held by tests that load in this process: one of them counts its memory.
static LOADING: Mutex<()> = Mutex::new(());

#[test]
fn a_manifest_cannot_vouch_for_a_module() {
    let _alone = LOADING.lock().unwrap();
    pixeld::torch::limit_threads(1);
    for (case, why) in [
        ("leaking", "weights: the module looks at what is still to come: the parameters at row 0, column 0 change by"),
        (
            "straying_steps",
            "architecture.incremental: must be false: the step at rank 2 gives other parameters than forward",
        ),
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

/// Loads the package of `source`, takes a few steps of an image on a shard of its own, scores another, and lets go of it all.
fn come_and_go(source: &Source) {
    let mut model = repository::load(source, Placement::new(4, 4), Limits::default()).unwrap();
    let spec = model.spec().clone();
    let (condition, width) = (Condition::least(&spec.condition), spec.head.width(spec.shape));
    let mut shard = model.shard(2).unwrap();
    let (mut canvas, mut rows) = (Canvas::empty(spec.shape), ParamRows::new(width));
    shard.open(Slot(1), &condition).unwrap();
    for _ in 0..4 {
        shard.step(&[StepRow { slot: Slot(1), canvas: &canvas }], &mut rows).unwrap();
        (0..spec.values_per_step()).for_each(|_| assert!(canvas.push(1)));
    }
    let whole = Canvas::with_prefix(spec.shape, vec![1; spec.shape.values() as usize]).unwrap();
    let row = ScoreRow { canvas: &whole, condition: &condition };
    assert_eq!(model.score(&[row], 0, u32::MAX, &mut rows).unwrap(), spec.shape.values());
}

#[test]
fn packages_that_come_and_go_leave_no_memory_behind() {
    let _alone = LOADING.lock().unwrap();
    pixeld::torch::limit_threads(1);
    for case in ["traced_sequence", "scripted_steps"] {
        let source = Source::Directory(goldens("torchscript").join(case));
        (0..10).for_each(|_| come_and_go(&source));
        let before = resident();
        (0..50).for_each(|_| come_and_go(&source));
        let after = resident();
        println!("{case}: {before} pages before 50 cycles, {after} after: {:+.2} %", 100.0 * (after / before - 1.0));
        assert!(after <= 1.05 * before, "{case}: {before} pages grew to {after}");
    }
}
