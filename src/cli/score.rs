//! `pixeld score`: exact likelihood of images from files.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgGroup, Args};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::access::Channel;
use super::assembly::shape;
use super::failure::Failure;
use super::from_images::read_png;
use super::source::Source;
use super::{client, connect, npy, output, progress};
use crate::image::{Shape, codec};
use crate::rpc::proto::scoring_service_client::ScoringServiceClient;
use crate::rpc::proto::stream_score_images_request::Part;
use crate::rpc::proto::stream_score_images_response::Event;
use crate::rpc::proto::{
    Conditioning, Image, ImageEncoding, ImageScore, ScoreDetail, ScoreItem, ScoringCompleted, ScoringSpec,
    StreamScoreImagesRequest,
};

/// Items read ahead of what was sent.
const READ_AHEAD: usize = 16;

const AFTER_HELP: &str = "\
Images are PNG files as `pixeld sample --out-dir` writes them (a contact sheet is none), or one NumPy file of
[n, h, w, c] or [n, h, w] in uint8 or uint16 whose values are levels, 0 to levels - 1. Bits/dim are the negative base-2
log-likelihood of an image divided by its values: fewer means likelier.

Examples:
  pixeld score --models ./models images/*.png
  pixeld score --model mnist --npy test.npy --classes labels.npy
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

/// Images yet to be read.
enum Input {
    Png(Vec<PathBuf>),
    Npy { images: Box<npy::Images>, path: PathBuf, shape: Shape },
}

impl Score {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let npy = self.npy.as_deref().map(npy::Images::open).transpose()?;
        let count = npy.as_ref().map_or(self.images.len() as u64, |images| images.count);
        let labels = match &self.classes {
            Some(path) => Labels::Each(npy::labels(path)?),
            None => Labels::Same(self.class),
        };
        if let Labels::Each(labels) = &labels
            && labels.len() as u64 != count
        {
            return Err(Failure::Usage(format!("--classes: must hold {count} labels, got {}", labels.len())));
        }

        let work = async |channel: &Channel| {
            let input = match npy.zip(self.npy.clone()) {
                Some((images, path)) => self.npy_input(channel, images, path).await?,
                None => Input::Png(self.images.clone()),
            };
            let done = self.score(channel, input, labels, count).await;
            // The server knows the images by number, the user by file.
            done.map_err(|failure| {
                let files = self.images.iter().enumerate();
                files.fold(failure, |failure, (index, path)| {
                    failure.renaming(&format!("item[{index}].image.data"), &path.display().to_string())
                })
            })
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

    /// Raw values are as wide as the model says, so it has to be asked before the first is sent.
    async fn npy_input(&self, channel: &Channel, images: npy::Images, path: PathBuf) -> Result<Input, Failure> {
        let model = client::get(channel, &self.model).await?;
        let shape = shape(model.shape.as_ref()).map_err(|what| {
            let name = client::short(&model.name);
            Failure::NotServing(format!("model {name} is not serving: {what} {}", model.state_message))
        })?;
        images.expect(shape).map_err(|what| Failure::Usage(format!("{}: {what}", path.display())))?;
        Ok(Input::Npy { images: Box::new(images), path, shape })
    }

    /// Sends every image and tells every score.
    async fn score(
        &self,
        channel: &Channel,
        input: Input,
        labels: Labels,
        count: u64,
    ) -> Result<ScoringCompleted, Failure> {
        let detail = if self.per_value { ScoreDetail::PerValue } else { ScoreDetail::Total };
        let spec = ScoringSpec { model: self.model.clone(), detail: detail.into(), scheduling: None };
        let labels = Arc::new(labels);

        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let for_reader = Arc::clone(&labels);
        let reader = tokio::task::spawn_blocking(move || send(spec, input, &for_reader, &sender));
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
    labels: &Labels,
    sender: &mpsc::Sender<StreamScoreImagesRequest>,
) -> Result<(), Failure> {
    let send = |part| sender.blocking_send(StreamScoreImagesRequest { part: Some(part) }).is_ok();
    if !send(Part::Spec(spec)) {
        return Ok(());
    }
    let item = |index: usize, encoding: ImageEncoding, data: Vec<u8>| {
        let class_label = labels.of(index);
        Part::Item(ScoreItem {
            item_id: index.to_string(),
            image: Some(Image { data: data.into(), encoding: encoding.into(), shape: None }),
            conditioning: class_label.map(|_| Conditioning { class_label, ..Conditioning::default() }),
        })
    };
    match input {
        Input::Png(paths) => {
            for (index, path) in paths.iter().enumerate() {
                let data = read_png(path)?;
                if !send(item(index, ImageEncoding::Png, data)) {
                    break;
                }
            }
        }
        Input::Npy { images, path, shape } => {
            let refuse = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
            for (index, values) in images.values(shape).map_err(refuse)?.enumerate() {
                let values = values.map_err(refuse)?;
                // A value beyond one byte would be cut to another value that is valid.
                if let Some(value) = values.iter().find(|&&value| u32::from(value) >= shape.levels()) {
                    let last = shape.levels() - 1;
                    return Err(refuse(format!("image {index}: values must be 0..={last}, got {value}")));
                }
                if !send(item(index, ImageEncoding::Raw, codec::values_to_raw(&values, shape))) {
                    break;
                }
            }
        }
    }
    Ok(())
}
