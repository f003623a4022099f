//! Compiles the protos, tells the binary where libtorch is, and records the git revision. Nothing generated lands in `src/`.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

const PROTOS: [&str; 3] =
    ["pixeld/v1/generation_service.proto", "pixeld/v1/scoring_service.proto", "pixeld/v1/model_service.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);

    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    fs::write(out.join("pixeld_descriptor.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;

    // Beside the binary first, as in a container image or a release archive; then where it was built.
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    if let Ok(libtorch) = env::var("LIBTORCH") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }

    println!("cargo::rerun-if-changed=.git/HEAD");
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let revision =
        git.ok().filter(|found| found.status.success()).and_then(|found| String::from_utf8(found.stdout).ok());
    println!("cargo::rustc-env=PIXELD_GIT_REVISION={}", revision.as_deref().map_or("unknown", str::trim));
    Ok(())
}
