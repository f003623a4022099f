//! `pixeld import image-transformer`.

use clap::{Args, ValueEnum};

use super::Checkpoint;
use crate::cli::failure::Failure;
use crate::import::ImageTransformer;

const AFTER_HELP: &str = "\
The flags are the hyperparameters of the port's configuration file (configs/*.yml) that its tensors do not tell: all others,
and whether the law is categorical (cat) or a mixture (dmol), follow from the shapes.

Examples:
  pixeld import image-transformer model.pth --num-heads 4 --out models/cifar_cat
  pixeld import image-transformer model.pth --num-heads 8 --block-length 256 --out models/cifar_dmol
  pixeld import image-transformer tiny.pth --image-size 8 --num-heads 4 --attn-type global --out models/tiny";

/// Flags of `pixeld import image-transformer`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Flags {
    #[command(flatten)]
    checkpoint: Checkpoint,
    /// image_size: rows of the images, and columns
    #[arg(long, default_value_t = 32)]
    image_size: u32,
    /// num_heads
    #[arg(long)]
    num_heads: u32,
    /// attn_type
    #[arg(long, value_enum, default_value_t = AttentionType::Local1d)]
    attn_type: AttentionType,
    /// block_length, where attention is local_1d
    #[arg(long, default_value_t = 256)]
    block_length: u32,
}

/// Which positions a position sees.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum AttentionType {
    /// All before it
    Global,
    /// Those of its block and the block before
    #[value(name = "local_1d")]
    Local1d,
}

impl Flags {
    pub(super) fn run(self) -> Result<(), Failure> {
        let block_length = match self.attn_type {
            AttentionType::Global => None,
            AttentionType::Local1d => Some(self.block_length),
        };
        let format = ImageTransformer { image_size: self.image_size, num_heads: self.num_heads, block_length };
        self.checkpoint.import(|tensors| format.draft(tensors))
    }
}
