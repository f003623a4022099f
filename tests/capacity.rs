//! `pixeld bench capacity` as a program: what it prints, and what it refuses.

#![allow(clippy::unwrap_used, reason = "everything here is a test, helpers too")]

use std::process::{Command, Output};

use serde_json::Value;

const DEMAND: [&str; 8] = ["--rate", "70", "--slo-image", "200ms", "--duration", "20s", "--arrivals", "constant"];

fn capacity(flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.args(["bench", "capacity"]).args(flags).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn steps_that_were_recorded_tell_what_replicas_carry_and_how_many_are_needed() {
    let steps = tempfile::NamedTempFile::new().unwrap();
    // An image of 100 steps of a millisecond in two slots: 20 a second.
    let step = |batch: u32| {
        format!(
            r#"{{"kind":"step","model":"m","backend":"native","precision":"f32","threads":1,"batch":{batch},"repeat":0,
            "steps":9,"step_us":{{"mean":1000,"median":900,"min":800,"max":2000}},"images_per_s":{}}}"#,
            batch * 10
        )
    };
    std::fs::write(steps.path(), step(1) + &step(2)).unwrap();
    let path = steps.path().to_str().unwrap();
    let fleet = [path, "--slots", "2", "--queue-images", "3", "--json"];
    let found = lines(&capacity(&[&fleet[..], &DEMAND, &["--find"]].concat()));
    // One, two, four, and then three: seventy a second are more than forty, and sixty are too few.
    let replicas: Vec<_> = found.iter().map(|line| line["replicas"].as_u64().unwrap()).collect();
    assert_eq!(replicas, [1, 2, 4, 3]);
    let carried = |line: &Value| line["images_per_s"].as_f64().unwrap().round();
    assert_eq!(found.iter().map(carried).collect::<Vec<_>>(), [20.0, 40.0, 70.0, 60.0]);
    assert!(found[2]["goodput_share"].as_f64().unwrap() > 0.999 && found[3]["refused_share"].as_f64().unwrap() > 0.1);
    let again = lines(&capacity(&[&fleet[..], &DEMAND, &["--replicas", "3"]].concat()));
    assert_eq!(again, found[3..]);
}

#[test]
fn what_cannot_be_simulated_is_refused_with_the_reason() {
    for (flags, word) in [
        (&["--replicas", "1"][..], "<STEPS"),
        (&["--step", "1:100", "--replicas", "1"], "--steps-per-image"),
        (&["--step", "16", "--steps-per-image", "9", "--replicas", "1"], "a colon and microseconds, got 16"),
        (&["--step", "1:100", "--steps-per-image", "9"], "--find"),
        (
            &["--step", "4:100", "--steps-per-image", "9", "--replicas", "1"],
            "no step of as many as 16 images was timed",
        ),
        (
            &["--step", "16:9", "--steps-per-image", "9", "--replicas", "1", "--queue-images", "4", "--images", "21"],
            "--images: must be at most 20",
        ),
        (&["--step", "16:9", "--steps-per-image", "9", "--replicas", "0"], "--replicas"),
        (
            &["--step", "4096:9", "--steps-per-image", "9", "--slots", "4096", "--replicas", "99999"],
            "must be at most 16777216, got 409595904",
        ),
        (&["--step", "16:100000", "--steps-per-image", "900", "--find"], "an image alone takes 90s"),
        (&["/no/such/steps.json", "--replicas", "1"], "/no/such/steps.json"),
    ] {
        let output = capacity(&[flags, &DEMAND].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {said}");
        assert!(said.contains(word), "{flags:?}: {said}");
    }
}
