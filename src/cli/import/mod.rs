//! `pixeld import`: what other code trained, made into a package. One file for each kind of checkpoint.

mod image_gpt;
mod image_transformer;
mod openai_pixel_cnn;
mod pixel_cnn_pp;
mod torchscript;

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Subcommand};

use super::failure::Failure;
use super::output;
use crate::error::Violations;
use crate::import::package::{self, Draft};
use crate::import::{self, Reading, Tensors};
use crate::repository::Limits;
use crate::torch;

const AFTER_HELP: &str = "\
Every tensor of the checkpoint must have its place in the model, and the reverse; whatever does not fit is named, and nothing
is written. No code in a checkpoint is run; a TorchScript module is code. docs/IMPORT.md says what each format accepts.";

/// Flags of `pixeld import`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Import {
    #[command(subcommand)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Format {
    /// PixelCNN++, a state dict of pclucas14/pixel-cnn-pp
    PixelCnnPp(pixel_cnn_pp::Flags),
    /// PixelCNN++, the variables of openai/pixel-cnn in a NumPy archive
    OpenaiPixelCnn(openai_pixel_cnn::Flags),
    /// Image Transformer, a state dict of sahajgarg/image_transformer
    ImageTransformer(image_transformer::Flags),
    /// ImageGPT, a directory of Hugging Face transformers
    ImageGpt(image_gpt::Flags),
    /// Any scripted or traced module: finds out how it is called
    Torchscript(Box<torchscript::Flags>),
}

/// What every import of tensors takes.
#[derive(Args, Debug)]
struct Checkpoint {
    /// What torch.save wrote of a state dict (.pt, .pth), a .safetensors file, or a NumPy archive (.npz)
    source: PathBuf,
    /// Directory of the new package, named as the model: models/NAME
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
    /// Name of the state dict in a checkpoint that holds more than one
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Largest checkpoint that is read, as a file and in memory
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::b(Limits::default().weights_bytes))]
    size_limit: ByteSize,
}

/// The size of the images of a PixelCNN++, which its tensors do not tell.
#[derive(Args, Debug)]
struct Size {
    /// Rows of the images, a multiple of 4
    #[arg(long, default_value_t = 32)]
    height: u32,
    /// Columns of the images, a multiple of 4
    #[arg(long, default_value_t = 32)]
    width: u32,
}

impl Import {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self.format {
            Format::PixelCnnPp(flags) => flags.run(),
            Format::OpenaiPixelCnn(flags) => flags.run(),
            Format::ImageTransformer(flags) => flags.run(),
            Format::ImageGpt(flags) => flags.run(),
            Format::Torchscript(flags) => flags.run().await,
        }
    }
}

impl Checkpoint {
    /// Reads the tensors, has `draft` make a package of them, writes it, and tells what it is.
    fn import(&self, draft: impl FnOnce(Tensors) -> Result<Draft, Violations>) -> Result<(), Failure> {
        torch::limit_threads(1);
        let limits = Limits { weights_bytes: self.size_limit.as_u64() };
        let reading = Reading { limit: limits.weights_bytes, key: self.key.as_deref() };
        let tensors = import::read(&self.source, reading).map_err(refused)?;
        let mut draft = draft(tensors).map_err(refused)?;
        let unreadable = |error| Failure::Usage(format!("{}: {error}", self.source.display()));
        let digest = package::sha256(&self.source).map_err(unreadable)?;
        draft.tables.push(("training", vec![("checkpoint_sha256", digest.into())]));
        let spec = package::write(&self.out, draft, limits).map_err(refused)?;
        let shape = spec.shape;
        let [height, width, channels] = [shape.height(), shape.width(), shape.channels()];
        output::line(&format!(
            "{}: {}, {height}x{width}x{channels}, revision {}",
            self.out.display(),
            spec.family,
            spec.revision
        ))
    }
}

fn refused(violations: Violations) -> Failure {
    Failure::listed("the checkpoint was not imported:", &violations)
}
