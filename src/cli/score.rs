//! `pixeld score`: exact likelihood of images from files.

use std::iter;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgGroup, Args};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::access::Channel;
use super::failure::Failure;
use super::from_images;
use super::images::{Images, Reading};
use super::source::Source;
use super::{client, connect, npy, output, progress};
use crate::image::Shape;
use crate::rpc::proto::scoring_service_client::ScoringServiceClient;
use crate::rpc::proto::stream_score_images_request::Part;
use crate::rpc::proto::stream_score_images_response::Event;
use crate::rpc::proto::{
    Conditioning, Image, ImageScore, ScoreDetail, ScoreItem, ScoringCompleted, ScoringSpec, StreamScoreImagesRequest,
};

/// Items read ahead of what was sent.
const READ_AHEAD: usize = 16;

const AFTER_HELP: &str = "\
Images are PNG files as `pixeld sample --out-dir` writes them (a contact sheet is none), or one NumPy file of
[n, h, w, c] or [n, h, w] in uint8 or uint16 whose values are levels, 0 to levels - 1. Bits/dim are the negative base-2
log-likelihood of an image divided by its values: fewer means likelier. A model that enlarges scores an image given its
low-resolution image, so it needs that too, in the same forms.

Examples:
  pixeld score --models ./models images/*.png
  pixeld score --model mnist --npy test.npy --classes labels.npy
  pixeld score --model faces --npy test.npy --low-resolution-npy small.npy
  pixeld score --model faces larger/face-0.png larger/face-1.png --low-resolution face.png
  pixeld score --endpoint http://127.0.0.1:50051 --class 3 --json --per-value digit.png";

/// Flags of `pixeld score`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
#[command(group = ArgGroup::new("input").required(true).args(["images", "npy"]))]
pub(super) struct Score {
    #[command(flatten)]
    source: Source,
    /// Model that scores; may be left out if there is only one
    #[arg(long, default_value = "", hide_default_value = true)]
    model: String,
    /// PNG files
    #[arg(value_name = "IMAGES")]
    images: Vec<PathBuf>,
    /// NumPy file of images
    #[arg(long, value_name = "FILE")]
    npy: Option<PathBuf>,
    /// Class label of every image
    #[arg(long, value_name = "LABEL", allow_negative_numbers = true)]
    class: Option<u32>,
    /// NumPy file with the class label of each image
    #[arg(long, value_name = "FILE", conflicts_with = "class")]
    classes: Option<PathBuf>,
    /// PNG files of the low-resolution images: one for all, or one for each image in their order
    #[arg(long, value_name = "FILE", num_args = 1..)]
    low_resolution: Vec<PathBuf>,
    /// NumPy file of the low-resolution images: one for all, or one for each
    #[arg(long, value_name = "FILE", conflicts_with = "low_resolution")]
    low_resolution_npy: Option<PathBuf>,
    /// Also tell the nats of each value, in raster order
    #[arg(long, requires = "json")]
    per_value: bool,
    /// One JSON object a line: one for each image, then one with the totals
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    item: String,
    class: Option<u32>,
    nll_nats: f64,
    bits_per_dim: f64,
    scored_values: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_nll_nats: Option<&'a [f32]>,
}

#[derive(Serialize)]
struct Totals<'a> {
    items: u64,
    mean_bits_per_dim: f64,
    bits_per_dim_standard_error: f64,
    revision: &'a str,
}

/// The class labels of all images.
enum Labels {
    Same(Option<u32>),
    Each(Vec<u32>),
}

impl Labels {
    fn of(&self, index: usize) -> Option<u32> {
        match self {
            Labels::Same(label) => *label,
            Labels::Each(labels) => labels.get(index).copied(),
        }
    }
}

/// Low-resolution images and the flag that named them.
struct Lows {
    images: Images,
    flag: &'static str,
}

/// All that is read from files.
struct Input {
    images: Images,
    labels: Arc<Labels>,
    lows: Option<Lows>,
}

impl Score {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let input = self.open()?;
        let count = input.images.count();
        let work = async |channel: &Channel| {
            let shapes = self.shapes(channel, &input).await?;
            let done = self.score(channel, input, shapes, count).await;
            // The server knows the images by number, the user by file.
            done.map_err(|failure| (0..count).fold(failure, |failure, index| self.naming(failure, index as usize)))
        };
        let completed = connect::with(self.source.target()?, work).await?;

        let ScoringCompleted { item_count, mean_bits_per_dim, bits_per_dim_standard_error, model_revision, .. } =
            completed;
        if self.json {
            let revision = model_revision.as_str();
            return output::json(&Totals {
                items: item_count,
                mean_bits_per_dim,
                bits_per_dim_standard_error,
                revision,
            });
        }
        output::line(&format!(
            "{item_count} images: {mean_bits_per_dim:.4} +- {bits_per_dim_standard_error:.4} bits/dim (revision {model_revision})"
        ))
    }

    /// Opens the files, of which there must be as many labels and low-resolution images as the images need.
    fn open(&self) -> Result<Input, Failure> {
        let images = Images::open(&self.images, self.npy.as_deref())?;
        let count = images.count();
        let labels = match &self.classes {
            Some(path) => Labels::Each(npy::labels(path)?),
            None => Labels::Same(self.class),
        };
        if let Labels::Each(labels) = &labels
            && labels.len() as u64 != count
        {
            return Err(Failure::Usage(format!("--classes: must hold {count} labels, got {}", labels.len())));
        }
        let npy = self.low_resolution_npy.as_deref();
        let flag = if npy.is_some() { "--low-resolution-npy" } else { "--low-resolution" };
        let lows = if npy.is_none() && self.low_resolution.is_empty() {
            None
        } else {
            Some(Lows { images: Images::open(&self.low_resolution, npy)?, flag })
        };
        if let Some(Lows { images, flag }) = &lows
            && ![1, count].contains(&images.count())
        {
            return Err(Failure::Usage(format!("{flag}: must be 1 image or {count}, got {}", images.count())));
        }
        Ok(Input { images, labels: Arc::new(labels), lows })
    }

    /// The shapes of images and of low-resolution images, where raw values of them are to be sent: those are as wide as the
    /// model says, so it has to be asked before the first is.
    async fn shapes(&self, channel: &Channel, input: &Input) -> Result<[Option<Shape>; 2], Failure> {
        if self.npy.is_none() && self.low_resolution_npy.is_none() {
            return Ok([None; 2]);
        }
        let kind = from_images::kind(&client::get(channel, &self.model).await?)?;
        input.images.expect(kind.shape)?;
        if let Some(Lows { images, flag }) = &input.lows {
            let none = || Failure::Usage(format!("{flag}: the model takes no low-resolution image"));
            images.expect(kind.low.ok_or_else(none)?)?;
        }
        Ok([Some(kind.shape), kind.low])
    }

    /// `failure` with the files of image `index` in the place of its fields.
    fn naming(&self, mut failure: Failure, index: usize) -> Failure {
        let low =
            if self.low_resolution.len() == 1 { self.low_resolution.first() } else { self.low_resolution.get(index) };
        for (field, path) in [("image.data", self.images.get(index)), ("conditioning.low_resolution.data", low)] {
            if let Some(path) = path {
                failure = failure.renaming(&format!("item[{index}].{field}"), &path.display().to_string());
            }
        }
        failure.renaming(&format!("item[{index}].conditioning.low_resolution"), "--low-resolution")
    }

    /// Sends every image and tells every score.
    async fn score(
        &self,
        channel: &Channel,
        input: Input,
        shapes: [Option<Shape>; 2],
        count: u64,
    ) -> Result<ScoringCompleted, Failure> {
        let detail = if self.per_value { ScoreDetail::PerValue } else { ScoreDetail::Total };
        let spec = ScoringSpec { model: self.model.clone(), detail: detail.into(), scheduling: None };
        let labels = Arc::clone(&input.labels);

        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let reader = tokio::task::spawn_blocking(move || send(spec, input, shapes, &sender));
        let mut client = ScoringServiceClient::new(channel.clone()).max_decoding_message_size(client::MAX_ANSWER);
        let bar = progress::bar("images");
        bar.set_length(count);
        let mut stream = client.stream_score_images(ReceiverStream::new(receiver)).await?.into_inner();
        let (mut index, mut completed) = (0, None);
        while let Some(message) = stream.message().await? {
            match message.event {
                Some(Event::Score(score)) => {
                    if score.item_id != index.to_string() {
                        return Err(Failure::Internal(format!("score {index} was that of item {:?}", score.item_id)));
                    }
                    if self.json {
                        let path = self.images.get(index).map(|path| path.display().to_string());
                        let item = path.unwrap_or_else(|| score.item_id.clone());
                        bar.suspend(|| self.tell(item, labels.of(index), &score))?;
                    }
                    index += 1;
                    bar.inc(1);
                }
                Some(Event::Completed(end)) => completed = Some(end),
                None => {}
            }
        }
        bar.finish_and_clear();
        // An image that could not be read ended the input early, which the server took for the end of it.
        reader.await.map_err(|error| Failure::Internal(error.to_string()))??;
        completed
            .filter(|end| end.item_count == count)
            .ok_or_else(|| Failure::Internal("the stream was cut".to_owned()))
    }

    fn tell(&self, item: String, class: Option<u32>, score: &ImageScore) -> Result<(), Failure> {
        output::json(&Line {
            item,
            class,
            nll_nats: score.nll_nats,
            bits_per_dim: score.bits_per_dim,
            scored_values: score.scored_values,
            value_nll_nats: self.per_value.then_some(&score.value_nll_nats),
        })
    }
}

/// Reads images and sends them until all are sent or nobody listens any more.
fn send(
    spec: ScoringSpec,
    input: Input,
    [shape, low]: [Option<Shape>; 2],
    sender: &mpsc::Sender<StreamScoreImagesRequest>,
) -> Result<(), Failure> {
    let send = |part| sender.blocking_send(StreamScoreImagesRequest { part: Some(part) }).is_ok();
    if !send(Part::Spec(spec)) {
        return Ok(());
    }
    let images = input.images.read(shape)?;
    for (index, (image, low)) in images.zip(low_images(input.lows, low)?).enumerate() {
        let (image, low_resolution) = (Some(image?), low?);
        let class_label = input.labels.of(index);
        let conditioning = Conditioning { class_label, low_resolution, ..Conditioning::default() };
        let item_id = index.to_string();
        if !send(Part::Item(ScoreItem { item_id, image, conditioning: Some(conditioning) })) {
            break;
        }
    }
    Ok(())
}

/// The low-resolution image of each image to score, for as many as there may be.
fn low_images(lows: Option<Lows>, shape: Option<Shape>) -> Result<Reading<Option<Image>>, Failure> {
    let Some(Lows { images, .. }) = lows else { return Ok(Box::new(iter::repeat(Ok(None)))) };
    let one = images.count() == 1;
    let mut each = images.read(shape)?.map(|image| image.map(Some));
    Ok(if one { Box::new(iter::repeat(each.next().unwrap_or(Ok(None)))) } else { Box::new(each) })
}
