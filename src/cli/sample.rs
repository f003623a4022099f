//! `pixeld sample`: images from a model, one stream for each class, several at once.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::access::Channel;
use super::assembly::Finished;
use super::draw::{Batch, Controls, draw};
use super::failure::Failure;
use super::report::Report;
use super::source::Source;
use super::{connect, npy, output};
use crate::image::codec;
use crate::rpc::proto::{Conditioning, StreamGenerateImagesRequest};

/// Images on one line of a contact sheet at most, if classes do not say it.
const SHEET_COLUMNS: u32 = 8;

/// A line for each class if there are several images of each; as square as it gets otherwise.
fn sheet_columns(classes: u32, count: u32) -> u32 {
    if classes > 1 && count > 1 {
        return count;
    }
    let images = classes.saturating_mul(count);
    (1..SHEET_COLUMNS).find(|columns| columns * columns >= images).unwrap_or(SHEET_COLUMNS)
}

const AFTER_HELP: &str = "\
Noise: image i of the k-th class is drawn with noise number FIRST_INDEX + k * COUNT + i under the seed. The same seed,
number and class give the same image at any time, alone or in a crowd; --json tells the numbers. To repeat one image
alone: --seed SEED --first-index NUMBER --count 1.

A model of two stages has a low-resolution image drawn for each image first; likelihoods and bits/dim are those of the
image given that one, and --json tells the low-resolution image's own beside. --out-dir keeps the low-resolution images in
DIR/low-resolution/, as `pixeld score --low-resolution` takes them.

Examples:
  pixeld sample --models ./models --class 3 --count 4 --seed 7 --out digits.png
  pixeld sample --class 0,1,2 --count 8 --out sheet.png --npy images.npy --json
  pixeld sample --endpoint http://127.0.0.1:50051 --model mnist --temperature 0.9 --top-p 0.98 --out-dir images/";

/// Flags of `pixeld sample`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Sample {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    controls: Controls,
    /// Class label, or several as 0,1,2: one stream for each, several at once
    #[arg(long, value_name = "LABEL", value_delimiter = ',', allow_negative_numbers = true)]
    class: Vec<u32>,
    /// Contact sheet of all images (PNG, enlarged), a line for each class that has several
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Directory for one PNG for each image, named CLASS-NUMBER.png, that `pixeld score` reads back exactly
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
    /// NumPy file of all images: [n, h, w, c], uint8 up to 256 levels and uint16 above
    #[arg(long, value_name = "FILE")]
    npy: Option<PathBuf>,
    /// Tell everything about the images as one JSON object
    #[arg(long)]
    json: bool,
}

impl Sample {
    pub(super) async fn run(self) -> Result<(), Failure> {
        [&self.out, &self.npy].into_iter().flatten().try_for_each(|path| output::expect_writable(path))?;
        self.out_dir.iter().try_for_each(|path| output::directory(path))?;
        let seed = self.controls.seed();
        let requests = self.requests(seed)?;

        let work = async |channel: &Channel| {
            let began = Instant::now();
            let batches = draw(channel, requests).await?;
            Ok((batches, began.elapsed().as_secs_f64()))
        };
        let (batches, seconds) = connect::with(self.source.target()?, work)
            .await
            .map_err(|failure| failure.renaming("spec.conditioning.low_resolution", "use `pixeld upscale`"))?;
        self.write_files(&batches)?;
        let Some(report) = Report::new(&batches, &[], seed, seconds) else { return Ok(()) };
        report.tell(self.json, &[self.out.as_ref(), self.out_dir.as_ref(), self.npy.as_ref()])
    }

    /// One request for each class, with noise numbers that follow each other.
    fn requests(&self, seed: u64) -> Result<Vec<StreamGenerateImagesRequest>, Failure> {
        let classes =
            if self.class.is_empty() { vec![None] } else { self.class.iter().copied().map(Some).collect::<Vec<_>>() };
        let request = |(k, class_label): (usize, Option<u32>)| {
            let conditioning = class_label.map(|_| Conditioning { class_label, ..Conditioning::default() });
            self.controls.request(k, seed, conditioning)
        };
        classes.into_iter().enumerate().map(request).collect()
    }

    fn write_files(&self, batches: &[Batch]) -> Result<(), Failure> {
        let Some((shape, palette)) = batches.first().map(|batch| (batch.shape, batch.palette.as_ref())) else {
            return Ok(());
        };
        let images: Vec<&Finished> = batches.iter().flat_map(|batch| &batch.images).collect();
        if let Some(path) = &self.out {
            let columns = sheet_columns(batches.len() as u32, self.controls.count);
            let rasters: Vec<Vec<u16>> = images.iter().map(|image| image.raster.clone()).collect();
            let sheet = codec::contact_sheet(&rasters, shape, palette, columns);
            output::file(path, &sheet.map_err(|what| Failure::Usage(format!("--out: {what}; use --out-dir")))?)?;
        }
        if let Some(path) = &self.npy {
            output::file(path, &npy::encode(images.iter().map(|image| image.raster.as_slice()), shape)?)?;
        }
        if let Some(dir) = &self.out_dir {
            for batch in batches {
                let class = batch.class.map_or_else(|| "image".to_owned(), |class| class.to_string());
                batch.write_pngs(dir, &class, ", with --npy")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_has_a_line_for_each_class_or_is_nearly_square() {
        assert_eq!(sheet_columns(3, 5), 5);
        for (images, columns) in [(1, 1), (4, 2), (16, 4), (17, 5), (1000, 8)] {
            assert_eq!(sheet_columns(images, 1), columns);
            assert_eq!(sheet_columns(1, images), columns);
        }
    }
}
