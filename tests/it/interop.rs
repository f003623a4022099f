//! The wire as another gRPC stack sees it: the standard Python one, with the client of `python/`, with
//! reflection alone, and with the client of Triton.

use std::process::Stdio;
use std::time::Duration;

use pixeld::security::Group;
use tokio::process::Command;

use crate::harness::{Daemon, config, next, stream};
use crate::pki::{Authority, Files, over_tls};

/// Runs a script of `tests/interop` against a daemon.
async fn run(script: &str, packages: Option<&str>) {
    let daemon = Daemon::steady().await;
    run_with(script, packages, &[&daemon.address.to_string()]).await;
}

/// Runs a script of `tests/interop`. Which Python, and where its packages are, stands in
/// `.cargo/config.toml`, which the set-up script writes beside the stubs of the client; without it the test fails instead
/// of passing unseen.
async fn run_with(script: &str, packages: Option<&str>, arguments: &[&str]) {
    let (Some(python), Some(packages)) = (option_env!("PIXELD_TEST_PYTHON"), packages) else {
        panic!("PIXELD_TEST_PYTHON and its paths are not set: run scripts/setup.py (or `make setup`)")
    };
    let root = env!("CARGO_MANIFEST_DIR");
    let ran = Command::new(python)
        .arg(format!("{root}/tests/interop/{script}"))
        .args(arguments)
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
async fn the_python_client_shows_a_certificate_and_a_token_where_they_are_wanted() {
    let (authority, files) = (Authority::new("ours"), Files::new());
    let mut config = over_tls(files.tls(&authority.issue(), Some(&authority)));
    let (token, client) = ("a-token-for-everything", authority.issue());
    config.auth = [Group::Generation, Group::Scoring, Group::Models].map(|group| files.tokens(group, &[token])).into();
    let (daemon, _gate) = Daemon::gated(4, config).await;
    let shown = [
        files.write("ca.pem", &authority.pem()),
        files.write("client.pem", &client.certificate),
        files.write("client.key", &client.key),
    ];
    let [authority, certificate, key] = shown.each_ref().map(|path| path.to_str().unwrap());
    let arguments = [&daemon.address.to_string(), authority, certificate, key, token];
    run_with("secured.py", option_env!("PIXELD_TEST_PYTHONPATH"), &arguments).await;
}

#[tokio::test]
async fn python_with_reflection_alone_samples_scores_and_lists() {
    run("reflection.py", option_env!("PIXELD_TEST_PYTHONPATH")).await;
}

#[tokio::test]
async fn tritons_client_lists_samples_streams_and_scores() {
    run("triton.py", option_env!("PIXELD_TEST_TRITONPATH")).await;
}

#[tokio::test]
async fn python_with_the_service_configuration_spreads_calls_and_leaves_a_replica_that_drains() {
    let packages = option_env!("PIXELD_TEST_PYTHONPATH");
    // Two scripts run while the first drains, and Python is slow to start on a busy machine.
    let mut patient = config();
    patient.server.drain_timeout = Duration::from_secs(300);
    let (mut first, gate) = Daemon::gated(4, patient).await;
    let (second, _open) = Daemon::gated(8, config()).await;
    let both = format!("{},{}", first.address, second.address);
    run_with("balance.py", packages, &["both", &both]).await;
    gate.allow(5);
    let mut running = first.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    assert!(next(&mut running).await.unwrap().is_some());
    first.stop();
    run_with("balance.py", packages, &["healthy", &both]).await;
    run_with("balance.py", packages, &["blind", &both]).await;
    gate.open();
    while next(&mut running).await.unwrap().is_some() {}
    first.ended().await.unwrap();
}
