//! `pixeld complete`: the upper part of an image is kept, and the model draws the rest.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::from_images::{FromImages, Kind, Subject};
use super::images::Images;
use crate::image::{Canvas, Order, codec};
use crate::rpc::proto::Conditioning;

const AFTER_HELP: &str = "\
Images are PNG files of the model's own size, as `pixeld sample --out-dir` writes them. A line of the sheet shows an image,
what is kept of it, and its completions.

A model that enlarges needs the low-resolution images too. A model of two stages draws those itself if they are not given,
before the images and without regard to what is kept of them.

Examples:
  pixeld complete --models ./models --class 3 --keep-rows 4 --count 6 --out completed.png images/3-0.png
  pixeld complete --endpoint http://127.0.0.1:50051 --keep-rows 16 --out-dir completed/ images/*.png
  pixeld complete --model faces --keep-rows 16 --out completed.png larger/face-0.png --low-resolution face.png";

/// Flags of `pixeld complete`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Complete {
    #[command(flatten)]
    images: FromImages,
    /// Rows of pixels that are kept, from the top
    #[arg(long, value_name = "ROWS", allow_negative_numbers = true)]
    keep_rows: u32,
    /// PNG files of the low-resolution images: one for all, or one for each image in their order
    #[arg(long, value_name = "FILE", num_args = 1..)]
    low_resolution: Vec<PathBuf>,
}

impl Complete {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let (count, given) = (self.images.count(), self.low_resolution.len());
        if ![0, 1, count].contains(&given) {
            return Err(Failure::Usage(format!("--low-resolution: must be 1 image or {count}, got {given}")));
        }
        let lows: Vec<_> = Images::open(&self.low_resolution, None)?.read(None)?.collect::<Result<_, _>>()?;
        let read = |kind: &Kind, index: usize, file: &[u8]| {
            let mut subject = subject(kind, file, self.keep_rows)?;
            let low = if given == 1 { lows.first() } else { lows.get(index) };
            subject.conditioning.low_resolution = low.cloned();
            Ok(subject)
        };
        let done = self.images.run(read).await;
        let field = "spec.conditioning.low_resolution";
        done.map_err(|failure| {
            let failure = failure.renaming(&format!("{field}.data"), "--low-resolution");
            failure.renaming(field, "--low-resolution")
        })
    }
}

/// What is known of the image in `file` if its first `rows` rows are.
fn subject(kind: &Kind, file: &[u8], rows: u32) -> Result<Subject, String> {
    let shape = kind.shape;
    if rows == 0 || rows >= shape.height() {
        return Err(format!("--keep-rows must be 1 to {}, got {rows}", shape.height() - 1));
    }
    if let Order::BlockRaster(blocks) = kind.order
        && !rows.is_multiple_of(blocks.height())
    {
        let height = blocks.height();
        return Err(format!("--keep-rows must be a multiple of the {height} rows of a block, got {rows}"));
    }
    let palette = kind.palette.as_ref();
    let raster = codec::decode_png(file, shape, palette)?;
    let whole = Canvas::from_raster(shape, kind.order, &raster).ok_or("its values do not fit the model")?;
    let known = (rows * shape.width() * shape.channels()) as usize;
    let kept = whole.values().get(..known).unwrap_or_default();
    let mut shown = raster.clone();
    let darkest = palette.map_or(0, |palette| palette.nearest([0; 3]));
    shown.iter_mut().skip(known).for_each(|value| *value = darkest);
    let prefix = codec::values_to_raw(kept, shape).into();
    Ok(Subject { conditioning: Conditioning { prefix, ..Conditioning::default() }, before: vec![raster, shown] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Blocks, Shape};

    #[test]
    fn whole_rows_of_blocks_are_a_prefix_in_the_order_of_blocks_and_other_rows_are_refused() {
        let shape = Shape::new(4, 2, 1, 256).unwrap();
        let order = Order::BlockRaster(Blocks::new(shape, 2, 1).unwrap());
        let raster: Vec<u16> = (1..=8).collect();
        let file = codec::encode_png(&raster, shape, None).unwrap();
        let kind = Kind { shape, palette: None, order, low: None };
        let found = subject(&kind, &file, 2).unwrap();
        assert_eq!(found.conditioning.prefix.as_ref(), [1, 3, 2, 4]);
        assert_eq!(found.before, [raster, vec![1, 2, 3, 4, 0, 0, 0, 0]]);
        assert!(subject(&kind, &file, 1).unwrap_err().contains("multiple of the 2 rows"));
        for rows in [0, 4] {
            assert_eq!(subject(&kind, &file, rows).unwrap_err(), format!("--keep-rows must be 1 to 3, got {rows}"));
        }
        let raster = Kind { order: Order::Raster, ..kind };
        assert_eq!(subject(&raster, &file, 1).unwrap().conditioning.prefix.as_ref(), [1, 2]);
    }
}
