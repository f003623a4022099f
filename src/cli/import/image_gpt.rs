//! `pixeld import image-gpt`.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::{Checkpoint, refused};
use crate::cli::failure::Failure;
use crate::cli::{input, npy};
use crate::import::{Divisor, ImageGpt, clusters};
use crate::repository::Limits;

/// Largest text that is read of a checkpoint's directory.
const MAX_TEXT: u64 = 1 << 20;

const AFTER_HELP: &str = "\
DIRECTORY holds config.json, model.safetensors or pytorch_model.bin, and preprocessor_config.json with the colour clusters, as
save_pretrained of Hugging Face transformers writes them. Clusters in a NumPy file ([n, 3], numbers of -1 to 1) take the place of
preprocessor_config.json.

Attention divides its scores by the root of a head's width, n_embd / n_head. Hugging Face transformers takes the whole part of the
root from version 4.42 on. Where the root is no whole number, it must be said which was meant: root for the models that OpenAI
published, whole for one that such a version trained.

Examples:
  pixeld import image-gpt imagegpt-small/ --out models/imagegpt-small
  pixeld import image-gpt checkpoint/ --clusters kmeans_centers.npy --height 16 --width 64 --out models/wide";

/// Flags of `pixeld import image-gpt`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Flags {
    /// Directory of the checkpoint
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    /// Directory of the new package, named as the model: models/NAME
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
    /// NumPy file of the colour clusters
    #[arg(long, value_name = "FILE")]
    clusters: Option<PathBuf>,
    /// Rows of the images, which are squares if nothing is said
    #[arg(long, requires = "width")]
    height: Option<u32>,
    /// Columns of the images
    #[arg(long, requires = "height")]
    width: Option<u32>,
    /// What attention divides its scores by, where the width of a head is no square
    #[arg(long, value_enum)]
    score_divisor: Option<ScoreDivisor>,
    /// Largest checkpoint that is read, as a file and in memory
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::b(Limits::default().weights_bytes))]
    size_limit: ByteSize,
}

/// The root of a head's width, or what some versions take for it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScoreDivisor {
    /// The root: OpenAI's models, and transformers before 4.42
    Root,
    /// Its whole part: transformers from 4.42 on
    Whole,
}

impl Flags {
    pub(super) fn run(self) -> Result<(), Failure> {
        let clusters = match &self.clusters {
            Some(file) => npy::colours(file)?,
            None => {
                let file = self.directory.join("preprocessor_config.json");
                let found = clusters(&text(&file)?).map_err(refused)?;
                let missing = || format!("{}: has no clusters; name a NumPy file with --clusters", file.display());
                found.ok_or_else(|| Failure::Usage(missing()))?
            }
        };
        let config = text(&self.directory.join("config.json"))?;
        let divisor = self.score_divisor.map(|divisor| match divisor {
            ScoreDivisor::Root => Divisor::Root,
            ScoreDivisor::Whole => Divisor::Whole,
        });
        let size = self.height.zip(self.width).map(<[u32; 2]>::from);
        let format = ImageGpt::new(&config, &clusters, size, divisor);
        let format = format.map_err(refused)?;
        let names = ["model.safetensors", "pytorch_model.bin"];
        let source =
            names.iter().map(|name| self.directory.join(name)).find(|path| path.exists()).ok_or_else(|| {
                Failure::Usage(format!("{}: has neither {} nor {}", self.directory.display(), names[0], names[1]))
            })?;
        let checkpoint = Checkpoint { source, out: self.out, key: None, size_limit: self.size_limit };
        checkpoint.import(|tensors| format.draft(tensors))
    }
}

fn text(path: &Path) -> Result<Vec<u8>, Failure> {
    let refuse = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
    let bytes = input::bytes(path, MAX_TEXT).map_err(|error| refuse(error.to_string()))?;
    bytes.ok_or_else(|| refuse(format!("must be at most {MAX_TEXT} bytes")))
}
