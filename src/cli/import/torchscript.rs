//! `pixeld import torchscript`. A module is somebody's code: it is probed in a process of its own, which has no files and no
//! TCP, and takes no more memory or time than it is given.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use humantime_serde::re::humantime;
use landlock::{
    ABI, Access, AccessFs, AccessNet, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{Format, refused};
use crate::cli::failure::Failure;
use crate::cli::{npy, output};
use crate::error::Violations;
use crate::image::Shape;
use crate::import::{self, package};
use crate::model::families::torchscript::{Found, Hints, entries, probe};
use crate::model::{Placement, WeightsFile, WeightsFormat};
use crate::repository::{self, Limits, Source};
use crate::torch;

/// Images that tell readings apart, at most.
const EXAMPLES: usize = 8;
/// Bytes that are kept of what the probing process writes, the last: a module may print without end.
const KEPT: usize = 1 << 20;
/// Lines of it that are repeated.
const SAID: usize = 20;
/// What the probing process may read, and what it may write: chance, and how much memory there is and is used.
const READABLE: [&str; 5] = ["/proc/self", "/proc/meminfo", "/proc/cpuinfo", "/sys", "/dev/urandom"];
const WRITABLE: [&str; 1] = ["/proc/self/clear_refs"];

const AFTER_HELP: &str = "\
The module is called in every form that is known, until it takes an image and gives what could be parameters; then values of an
image are changed in turn, to see whether a step looks at any that it must not know. What shapes cannot tell, the scale of the
input or the layout of a mixture, images do: give some with --examples. Otherwise the manifest says what was assumed.

A module can do whatever a program can. It is probed in a process of its own, with limits on memory and time, that can neither
open files nor use TCP (Landlock, Linux 6.7 or later; otherwise you are warned). A server has no such limits: serve
only modules whose author you trust.

Examples:
  pixeld import torchscript model.pt --height 32 --width 32 --examples test.npy --out models/mine
  pixeld import torchscript gpt.pt --height 28 --width 28 --channels 1 --levels 2 --out models/binary
  pixeld import torchscript model.pt --set 'input_scale = \"unit\"' --set 'mean = [0.5]' --out models/mine";

/// Flags of `pixeld import torchscript`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Flags {
    /// What torch.jit.save wrote
    source: PathBuf,
    /// Directory of the new package, named as the model: models/NAME
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
    /// Rows of the images; with neither this nor --width, usual sizes are tried
    #[arg(long, requires = "width")]
    height: Option<u32>,
    /// Columns of the images
    #[arg(long, requires = "height")]
    width: Option<u32>,
    /// Channels of the images; 3 and 1 are tried
    #[arg(long)]
    channels: Option<u32>,
    /// Levels of a value
    #[arg(long, default_value_t = 256)]
    levels: u32,
    /// Classes, if the module takes a label
    #[arg(long, default_value_t = 0)]
    classes: u32,
    /// Rows of the low-resolution image, if the module takes one
    #[arg(long, requires = "low_width")]
    low_height: Option<u32>,
    /// Columns of the low-resolution image
    #[arg(long, requires = "low_height")]
    low_width: Option<u32>,
    /// Layout of a mixture's parameters, where it is known: oai, saha or t2t
    #[arg(long, value_parser = ["oai", "saha", "t2t"])]
    layout: Option<String>,
    /// Images that the module was trained for, [n, h, w, c] or [n, h, w], to tell readings apart
    #[arg(long, value_name = "FILE.npy")]
    examples: Option<PathBuf>,
    /// A line of the manifest's `architecture` table that is known
    #[arg(long = "set", value_name = "KEY = VALUE")]
    fixed: Vec<String>,
    /// Largest file that is read
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::gib(2))]
    size_limit: ByteSize,
    /// Memory that the probing process may have
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::gib(16))]
    memory_limit: ByteSize,
    /// Time that probing may take
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    time_limit: humantime::Duration,
    /// This is the probing process
    #[arg(long, hide = true)]
    probing: bool,
}

/// What the probing process answers. A module may print on its standard error, so that nothing is read from there.
#[derive(Debug, Deserialize, Serialize)]
enum Answer {
    Package(Package),
    /// Why there is none.
    Refused(String),
}

#[derive(Debug, Deserialize, Serialize)]
struct Package {
    manifest: String,
    warnings: Vec<String>,
    /// SHA-256 of what was probed.
    digest: String,
}

impl Flags {
    pub(super) async fn run(self: Box<Self>) -> Result<(), Failure> {
        if self.probing {
            return output::json(&match self.probe() {
                Err(Failure::Usage(why)) => Answer::Refused(why),
                other => Answer::Package(other?),
            });
        }
        package::name_of(&self.out).map_err(refused)?;
        entries(&self.fixed).map_err(wrong_lines)?;
        if import::holds_tensors(&self.source, self.size_limit.as_u64()).map_err(refused)? {
            return Err(Failure::Usage(self.only_tensors()));
        }
        let Package { manifest, warnings, digest } = self.ask().await?;
        package::write_archive(&self.out, &manifest, &self.source, &digest).map_err(refused)?;
        output::line(&format!("{}:\n\n{}", self.out.display(), manifest.trim_end()))?;
        warnings.iter().for_each(|warning| output::warn(warning));
        Ok(())
    }

    /// What to do with tensors that no code came with.
    fn only_tensors(&self) -> String {
        let formats = Format::augment_subcommands(clap::Command::new(""));
        let others = formats.get_subcommands().map(clap::Command::get_name).filter(|&name| name != "torchscript");
        format!(
            "{} holds tensors, a state dict it seems, and not the code that computes with them. Of some models that is \
             enough: pixeld import {}. Of any other, build the module in Python, have it load them, and write what \
             torch.jit.trace makes of it with torch.jit.save",
            self.source.display(),
            others.collect::<Vec<_>>().join(", ")
        )
    }

    /// Has another process probe, within limits, and reads its answer.
    async fn ask(&self) -> Result<Package, Failure> {
        let broken = |error: std::io::Error| Failure::Internal(format!("cannot start the probing process: {error}"));
        let program = std::env::current_exe().map_err(broken)?;
        let mut process = Command::new(program)
            .args(std::env::args_os().skip(1))
            .arg("--probing")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(broken)?;
        let (answer, said) = (process.stdout.take(), process.stderr.take());
        let done = async { tokio::join!(process.wait(), end_of(answer), end_of(said)) };
        let Ok((status, answer, said)) = tokio::time::timeout(*self.time_limit, done).await else {
            return Err(Failure::Usage(format!(
                "the module was probed for {}, the --time-limit; less is tried where more is said (--height, --width, \
                 --channels, --set)",
                self.time_limit
            )));
        };
        let (status, said) = (status.map_err(broken)?, String::from_utf8_lossy(&said));
        match (status.code(), serde_json::from_slice(&answer)) {
            (Some(0), Ok(Answer::Package(package))) => Ok(package),
            (Some(0), Ok(Answer::Refused(why))) => {
                let limited = why.contains("bad_alloc") || why.contains("allocate memory");
                let hint = format!("\nthe probing process may have {} of memory (--memory-limit)", self.memory_limit);
                Err(Failure::Usage(format!("{why}{}", if limited { hint.as_str() } else { "" })))
            }
            _ => Err(Failure::Usage(format!(
                "the probing process ended by itself ({}); it may have {} of memory (--memory-limit). It said: {}",
                status,
                self.memory_limit,
                last_lines(said.trim())
            ))),
        }
    }

    fn probe(&self) -> Result<Package, Failure> {
        let examples = self.examples.as_deref().map(|path| self.examples(path)).transpose()?;
        let (shape, examples) = examples.map_or((None, Vec::new()), |(shape, images)| (Some(shape), images));
        let unlimited = |error: String| Failure::Internal(format!("the probing process cannot be limited: {error}"));
        limit(self.memory_limit.as_u64(), self.time_limit.as_secs()).map_err(|error| unlimited(error.to_string()))?;
        // Read once, so that what is probed, what is loaded and what the digest is of are the same.
        let bytes = std::fs::read(&self.source)
            .map_err(|error| Failure::Usage(format!("{}: {error}", self.source.display())))?;
        let confined = confine().map_err(|error| unlimited(error.to_string()))?;
        torch::limit_threads(1);
        let hints = Hints {
            name: package::name_of(&self.out).map_err(refused)?.to_owned(),
            size: self.height.zip(self.width).map(<[u32; 2]>::from).or(shape.map(|it| [it.height(), it.width()])),
            channels: self.channels.or(shape.map(Shape::channels)),
            levels: self.levels,
            classes: self.classes,
            low: self.low_height.zip(self.low_width).map(<[u32; 2]>::from),
            fixed: entries(&self.fixed).map_err(wrong_lines)?,
            layout: self.layout.clone(),
            examples,
        };
        let digest = package::digest(bytes.as_slice()).map_err(|error| Failure::Internal(error.to_string()))?;
        let mut stream = Cursor::new(&bytes);
        let file = WeightsFile { format: WeightsFormat::TorchScript, bytes: bytes.len() as u64, stream: &mut stream };
        let Found { manifest, mut warnings } = probe(file, &hints).map_err(Failure::Usage)?;
        // As a server will load it.
        let whole = package::with_archive(&manifest, &digest).into();
        let limits = Limits { weights_bytes: self.size_limit.as_u64() };
        let source = Source::Embedded { manifest: whole, weights: bytes.into() };
        repository::load(&source, Placement::new(1, 1), limits).map_err(refused)?;
        if !confined {
            warnings.push(
                "this kernel could not keep the module from files and TCP while it was probed (Landlock, Linux 6.7 or \
                 later)"
                    .to_owned(),
            );
        }
        Ok(Package { manifest, warnings, digest })
    }

    fn examples(&self, path: &Path) -> Result<(Shape, Vec<Vec<u16>>), Failure> {
        let refuse = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
        let images = npy::Images::open(path)?;
        let [height, width, channels] = images.size.map(|length| u32::try_from(length).unwrap_or(u32::MAX));
        let shape = Shape::new(height, width, channels, self.levels).map_err(|faults| refuse(faults.to_string()))?;
        let images = images.values(shape).map_err(&refuse)?.take(EXAMPLES).collect::<Result<_, _>>().map_err(refuse)?;
        Ok((shape, images))
    }
}

/// The last [`KEPT`] bytes of what comes from `stream`, read to its end.
async fn end_of(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut end, mut piece) = (Vec::new(), vec![0; 1 << 16]);
    let Some(mut stream) = stream else { return end };
    // A stream that breaks has ended.
    while let Some(more) =
        stream.read(&mut piece).await.ok().and_then(|count| piece.get(..count)).filter(|it| !it.is_empty())
    {
        end.extend_from_slice(more);
        end.drain(..end.len().saturating_sub(KEPT));
    }
    end
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().rev().take(SAID).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// What is wrong with lines of `--set`.
fn wrong_lines(faults: Violations) -> Failure {
    Failure::listed("--set must give entries of the architecture table:", &faults)
}

/// Takes from this process what a module does not need.
fn limit(memory: u64, seconds: u64) -> rustix::io::Result<()> {
    for (resource, most) in [
        (Resource::As, memory),
        (Resource::Cpu, seconds.saturating_mul(2).max(1)),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
    ] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// Takes from this thread, and from those it starts, all files but a few and TCP; false where the kernel cannot, or not
/// all of it.
fn confine() -> Result<bool, RulesetError> {
    let abi = ABI::V4;
    let rules = landlock::Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(READABLE, AccessFs::from_read(abi)))
        .and_then(|rules: RulesetCreated| {
            rules.add_rules(path_beneath_rules(WRITABLE, AccessFs::WriteFile | AccessFs::Truncate))
        })?;
    Ok(rules.restrict_self()?.ruleset == RulesetStatus::FullyEnforced)
}
