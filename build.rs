//! Compiles the protos, tells the binary where libtorch is, and records the git revision. Nothing generated lands in `src/`.

#![allow(clippy::disallowed_methods, reason = "cargo talks to a build script through the environment")]

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

const PROTOS: [&str; 4] = [
    "pixeld/v1/generation_service.proto",
    "pixeld/v1/scoring_service.proto",
    "pixeld/v1/model_service.proto",
    "inference/grpc_service.proto",
];
/// Served on a listener of its own, so that reflection elsewhere must not know it.
const ADMIN: &str = "pixeld/v1/admin_service.proto";
/// A trailer, and in no service.
const ORCA: &str = "xds/data/orca/v3/orca_load_report.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);

    println!("cargo::rerun-if-changed=proto");
    let [public, admin] = [&PROTOS[..], &[ADMIN]].map(|protos| protox::compile(protos, ["proto"]));
    fs::write(out.join("pixeld_descriptor.bin"), prost::Message::encode_to_vec(&public?))?;
    fs::write(out.join("pixeld_admin_descriptor.bin"), prost::Message::encode_to_vec(&admin?))?;
    let all = protox::compile(PROTOS.iter().chain([&ADMIN, &ORCA]), ["proto"])?;
    tonic_prost_build::configure().bytes(".").codec_path("crate::rpc::codec::Bounded").compile_fds(all)?;

    // Beside the binary first, as in a container image or a release archive; then where it was built.
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    if let Ok(libtorch) = env::var("LIBTORCH") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }

    // Said by who builds without the repository, an image for one. Otherwise git knows: where HEAD has moved is logged in a
    // file that every commit and checkout appends to; in a worktree it lies elsewhere.
    println!("cargo::rerun-if-env-changed=PIXELD_GIT_REVISION");
    let said = env::var("PIXELD_GIT_REVISION").ok().filter(|revision| !revision.is_empty());
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| PathBuf::from(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
    let revision = said.or_else(|| git(&["rev-parse", "--short=12", "HEAD"])).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=PIXELD_GIT_REVISION={revision}");
    Ok(())
}

/// What git answers; nothing in a source archive.
fn git(arguments: &[&str]) -> Option<String> {
    let answer = Command::new("git").args(arguments).output().ok().filter(|answer| answer.status.success())?;
    Some(String::from_utf8(answer.stdout).ok()?.trim().to_owned())
}
