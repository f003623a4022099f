//! `pixeld import pixel-cnn-pp`.

use clap::Args;

use super::{Checkpoint, Size};
use crate::cli::failure::Failure;
use crate::import::PixelCnnPp;

const AFTER_HELP: &str = "\
The number of filters, residual blocks, components and channels (1 or 3) follow from the tensors; the size of the images does
not: it is 32x32 for CIFAR-10, and 28x28 for MNIST.

Examples:
  pixeld import pixel-cnn-pp pcnn_lr0.00020_889.pth --out models/cifar
  pixeld import pixel-cnn-pp mnist.pth --height 28 --width 28 --out models/mnist";

/// Flags of `pixeld import pixel-cnn-pp`.
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
        let format = PixelCnnPp { height: self.size.height, width: self.size.width };
        self.checkpoint.import(|tensors| format.draft(tensors))
    }
}
