//! `pixeld upscale`: larger versions of small images.

use clap::Args;

use super::failure::Failure;
use super::from_images::{FromImages, Kind, Subject};
use crate::image::codec;
use crate::rpc::proto::{Conditioning, Image, ImageEncoding};

const AFTER_HELP: &str = "\
Images are PNG files of the low resolution that the model takes; `pixeld models --json` tells it. A line of the sheet shows
an image, enlarged by repeating its pixels, and what the model makes of it.

Examples:
  pixeld upscale --models ./models --count 4 --temperature 0.9 --out larger.png small/*.png
  pixeld upscale --endpoint http://127.0.0.1:50051 --model faces --seed 7 --out-dir larger/ face.png";

/// Flags of `pixeld upscale`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Upscale {
    #[command(flatten)]
    images: FromImages,
}

impl Upscale {
    pub(super) async fn run(self) -> Result<(), Failure> {
        self.images.run(|kind, _, file| subject(kind, file)).await
    }
}

fn subject(kind: &Kind, file: &[u8]) -> Result<Subject, String> {
    let (shape, low) = (kind.shape, kind.low.ok_or("the model takes no low-resolution image")?);
    let values = codec::decode_png(file, low, None)?;
    let mut enlarged = Vec::with_capacity(shape.values() as usize);
    for row in 0..shape.height() {
        for column in 0..shape.width() {
            let scaled = |at: u32, from: u32, to: u32| (u64::from(at) * u64::from(to) / u64::from(from)) as usize;
            let (row, column) = (scaled(row, shape.height(), low.height()), scaled(column, shape.width(), low.width()));
            let first = (row * low.width() as usize + column) * low.channels() as usize;
            enlarged.extend((first..).take(shape.channels() as usize).filter_map(|at| values.get(at).copied()));
        }
    }
    let image = Image { data: file.to_vec().into(), encoding: ImageEncoding::Png.into(), shape: None };
    let conditioning = Conditioning { low_resolution: Some(image), ..Conditioning::default() };
    Ok(Subject { conditioning, before: vec![enlarged] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Order, Shape};

    #[test]
    fn a_small_image_is_shown_enlarged_and_sent_as_it_is() {
        let [shape, low] = [(4, 2), (2, 1)].map(|(height, width)| Shape::new(height, width, 3, 256).unwrap());
        let file = codec::encode_png(&[1, 2, 3, 4, 5, 6], low, None).unwrap();
        let found = subject(&Kind { shape, palette: None, order: Order::Raster, low: Some(low) }, &file).unwrap();
        let [above, below] = [[1, 2, 3, 1, 2, 3], [4, 5, 6, 4, 5, 6]];
        assert_eq!(found.before, [[above, above, below, below].concat()]);
        assert_eq!(found.conditioning.low_resolution.unwrap().data, file);
        let none = subject(&Kind { shape, palette: None, order: Order::Raster, low: None }, &file).unwrap_err();
        assert!(none.contains("takes no low-resolution image"));
        assert!(
            subject(&Kind { shape, palette: None, order: Order::Raster, low: Some(shape) }, &file).is_err(),
            "another size"
        );
    }
}
