//! `pixeld import openai-pixel-cnn`.

use clap::Args;

use super::{Checkpoint, Size};
use crate::cli::failure::Failure;
use crate::import::OpenaiPixelCnn;

const AFTER_HELP: &str = "\
Takes the variables of a TensorFlow checkpoint as a NumPy archive, which this makes of it:

  reader = tensorflow.train.load_checkpoint(\"params_cifar.ckpt\")
  names = reader.get_variable_to_shape_map()
  numpy.savez(\"params.npz\", **{name: reader.get_tensor(name) for name in names})

Example:
  pixeld import openai-pixel-cnn params.npz --out models/cifar";

/// Flags of `pixeld import openai-pixel-cnn`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Flags {
    #[command(flatten)]
    checkpoint: Checkpoint,
    #[command(flatten)]
    size: Size,
}

impl Flags {
    pub(super) fn run(self) -> Result<(), Failure> {
        let format = OpenaiPixelCnn { height: self.size.height, width: self.size.width };
        self.checkpoint.import(|variables| format.draft(variables))
    }
}
