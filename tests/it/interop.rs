//! The wire as another gRPC stack sees it: the standard Python one, with the client of `python/`, with
//! reflection alone, and with the client of Triton.

use std::process::Stdio;

use tokio::process::Command;

use crate::harness::Daemon;

/// Runs a script of `tests/interop` against a daemon. Which Python, and where its packages are, stands in
/// `.cargo/config.toml`, which the set-up script writes beside the stubs of the client; without it the test fails instead
/// of passing unseen.
async fn run(script: &str, packages: Option<&str>) {
    let (Some(python), Some(packages)) = (option_env!("PIXELD_TEST_PYTHON"), packages) else {
        panic!("PIXELD_TEST_PYTHON and its paths are not set: run scripts/setup.py (or `make setup`)")
    };
    let daemon = Daemon::steady().await;
    let root = env!("CARGO_MANIFEST_DIR");
    let ran = Command::new(python)
        .arg(format!("{root}/tests/interop/{script}"))
        .arg(daemon.address.to_string())
        .env("PYTHONPATH", format!("{root}/python:{packages}"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("cannot run {python}: {error}; run scripts/setup.py again"));
    let (said, complained) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{script} failed:\n{said}\n{complained}");
}

#[tokio::test]
async fn the_python_client_samples_scores_and_lists() {
    run("client.py", option_env!("PIXELD_TEST_PYTHONPATH")).await;
}

#[tokio::test]
async fn python_with_reflection_alone_samples_scores_and_lists() {
    run("reflection.py", option_env!("PIXELD_TEST_PYTHONPATH")).await;
}

#[tokio::test]
async fn tritons_client_lists_samples_streams_and_scores() {
    run("triton.py", option_env!("PIXELD_TEST_TRITONPATH")).await;
}
