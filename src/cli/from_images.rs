//! Images made from images: what `pixeld complete` and `pixeld upscale` have in common.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::access::Channel;
use super::assembly::{order, shape};
use super::draw::{Controls, draw};
use super::failure::Failure;
use super::report::Report;
use super::source::Source;
use super::{client, connect, input, output};
use crate::image::{Order, Palette, Shape, codec};
use crate::rpc::proto::{Conditioning, Model};

/// Largest PNG file that is read; no image of this project comes near it.
const MAX_PNG_BYTES: u64 = 64 << 20;

/// Flags of the commands that make images from images.
#[derive(Args, Debug)]
pub(super) struct FromImages {
    #[command(flatten)]
    source: Source,
    /// PNG files
    #[arg(value_name = "IMAGES", required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    controls: Controls,
    /// Class label of every image
    #[arg(long, value_name = "LABEL", allow_negative_numbers = true)]
    class: Option<u32>,
    /// Contact sheet (PNG, enlarged): a line for each image given, with that image before what was made from it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Directory for one PNG for each image made, named IMAGE-NUMBER.png, that `pixeld score` reads back exactly
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
    /// Tell everything about the images as one JSON object
    #[arg(long)]
    json: bool,
}

/// The images that a model makes, and takes.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) shape: Shape,
    pub(super) palette: Option<Palette>,
    pub(super) order: Order,
    /// Shape of the low-resolution image that it takes.
    pub(super) low: Option<Shape>,
}

/// An image given, read for a model.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) conditioning: Conditioning,
    /// What the sheet shows before the images made, each of the model's shape.
    pub(super) before: Vec<Vec<u16>>,
}

impl FromImages {
    /// How many images are given.
    pub(super) fn count(&self) -> usize {
        self.images.len()
    }

    /// Reads every image with `read`, which is told its place among them, makes others from it, and writes them.
    pub(super) async fn run(
        self,
        read: impl Fn(&Kind, usize, &[u8]) -> Result<Subject, String>,
    ) -> Result<(), Failure> {
        self.out.iter().try_for_each(|path| output::expect_writable(path))?;
        self.out_dir.iter().try_for_each(|path| output::directory(path))?;
        let files: Vec<_> = self.images.iter().map(|path| read_png(path)).collect::<Result<_, _>>()?;
        let seed = self.controls.seed();
        let work = async |channel: &Channel| {
            let kind = kind(&client::get(channel, &self.controls.model).await?)?;
            let (mut requests, mut before) = (Vec::new(), Vec::new());
            for (k, (path, file)) in self.images.iter().zip(&files).enumerate() {
                let refuse = |what| Failure::Usage(format!("{}: {what}", path.display()));
                let subject = read(&kind, k, file).map_err(refuse)?;
                let conditioning = Conditioning { class_label: self.class, ..subject.conditioning };
                requests.push(self.controls.request(k, seed, Some(conditioning))?);
                before.push(subject.before);
            }
            let began = Instant::now();
            Ok((draw(channel, requests).await?, before, began.elapsed().as_secs_f64()))
        };
        let (batches, before, seconds) = connect::with(self.source.target()?, work).await?;

        let Some((shape, palette)) = batches.first().map(|batch| (batch.shape, batch.palette.as_ref())) else {
            return Ok(());
        };
        if let Some(path) = &self.out {
            let mut cells = Vec::new();
            for (before, batch) in before.into_iter().zip(&batches) {
                cells.extend(before);
                cells.extend(batch.images.iter().map(|image| image.raster.clone()));
            }
            let columns = cells.len() / batches.len();
            let sheet = codec::contact_sheet(&cells, shape, palette, columns as u32);
            output::file(path, &sheet.map_err(|what| Failure::Usage(format!("--out: {what}; use --out-dir")))?)?;
        }
        if let Some(dir) = &self.out_dir {
            for (path, batch) in self.images.iter().zip(&batches) {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                batch.write_pngs(dir, &stem, "")?;
            }
        }
        let Some(report) = Report::new(&batches, &self.images, seed, seconds) else { return Ok(()) };
        report.tell(self.json, &[self.out.as_ref(), self.out_dir.as_ref()])
    }
}

/// What `model` makes, as it says itself.
pub(super) fn kind(model: &Model) -> Result<Kind, Failure> {
    let not_serving = |what: String| {
        let name = client::short(&model.name);
        Failure::NotServing(format!("model {name} is not serving: {what} {}", model.state_message))
    };
    let whole = shape(model.shape.as_ref()).map_err(not_serving)?;
    let low = model.low_resolution_shape.as_ref().map(|low| shape(Some(low))).transpose().map_err(not_serving)?;
    let colours = model.exact_palette.as_chunks::<3>().0.to_vec();
    let palette = (!colours.is_empty()).then(|| Palette::new(colours, whole)).transpose();
    let palette = palette.map_err(|rule| not_serving(format!("its palette {rule}")))?;
    let order = order(model.order(), model.blocks, whole).map_err(not_serving)?;
    Ok(Kind { shape: whole, palette, order, low })
}

/// The bytes of a file that should be a PNG of one image.
pub(super) fn read_png(path: &Path) -> Result<Vec<u8>, Failure> {
    let refuse = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
    let bytes = input::bytes(path, MAX_PNG_BYTES).map_err(|error| refuse(error.to_string()))?;
    bytes.ok_or_else(|| refuse(format!("must be a PNG file of one image, at most {MAX_PNG_BYTES} bytes")))
}
