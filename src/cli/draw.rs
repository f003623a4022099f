//! Drawing images: the flags that the commands share which do, their requests, and what the streams bring.

use std::path::Path;

use clap::Args;
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use super::access::Channel;
use super::assembly::{Assembly, Finished};
use super::failure::Failure;
use super::source::Granularity;
use super::{client, output, progress};
use crate::image::{Palette, Shape, codec};
use crate::rpc::proto::generation_service_client::GenerationServiceClient;
use crate::rpc::proto::stream_generate_images_response::Event;
use crate::rpc::proto::{Conditioning, GenerationSpec, SamplingParams, StreamGenerateImagesRequest};

/// What is drawn, and how.
#[derive(Args, Debug)]
pub(super) struct Controls {
    /// Model that draws; may be left out if there is only one
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) model: String,
    /// Images of each class, or of each image given
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(super) count: u32,
    /// Seed of the noise; drawn at random, and told, if left out
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Noise number of the first image
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    first_index: u32,
    /// Divides the logits, 0 to 100: below 1 keeps to the likely, 0 always takes the likeliest value [default: 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Draw from the K likeliest values only, at least 1 [default: all]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,
    /// Draw from the fewest values that have this much probability together, above 0 and at most 1 [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Smallest unit that the stream carries; values are the most immediate, rows the least work
    #[arg(long, value_enum, default_value_t = Granularity::Value)]
    granularity: Granularity,
}

impl Controls {
    /// The seed given, or a fresh one: one for all streams. 48 random bits, since every JSON reader keeps whole numbers
    /// below 2^53 exact.
    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16)
    }

    /// The `k`-th request; noise numbers follow each other from one to the next.
    pub(super) fn request(
        &self,
        k: usize,
        seed: u64,
        conditioning: Option<Conditioning>,
    ) -> Result<StreamGenerateImagesRequest, Failure> {
        let before = u32::try_from(k).ok().and_then(|k| k.checked_mul(self.count)?.checked_add(self.first_index));
        let too_many = || Failure::Usage("--count: noise numbers must stay below 4294967296".to_owned());
        let spec = GenerationSpec {
            model: self.model.clone(),
            image_count: Some(self.count),
            conditioning,
            sampling: Some(SamplingParams {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: Some(seed),
                ..SamplingParams::default()
            }),
            first_image_index: before.ok_or_else(too_many)?,
            ..GenerationSpec::default()
        };
        let flush = Some(self.granularity.flush());
        Ok(StreamGenerateImagesRequest { spec: Some(spec), flush, include_log_probs: false })
    }
}

/// Directory of the low-resolution images below that of the images.
const LOW_RESOLUTION: &str = "low-resolution";

/// What one stream brought.
pub(super) struct Batch {
    pub(super) class: Option<u32>,
    pub(super) first_index: u32,
    pub(super) model: String,
    pub(super) revision: String,
    pub(super) shape: Shape,
    pub(super) palette: Option<Palette>,
    pub(super) images: Vec<Finished>,
    /// Values of them that were not given.
    pub(super) drawn: u64,
}

impl Batch {
    /// The images with their noise numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (&Finished, u32)> {
        self.images.iter().zip(self.first_index..=u32::MAX)
    }

    /// Writes each image to `dir`, as STEM-NUMBER.png, and the low-resolution image that was drawn for it below `dir`,
    /// under the same name.
    pub(super) fn write_pngs(&self, dir: &Path, stem: &str, advice: &str) -> Result<(), Failure> {
        let refuse = |what| Failure::Usage(format!("--out-dir: {what}{advice}"));
        let below = dir.join(LOW_RESOLUTION);
        if self.images.iter().any(|image| image.low.is_some()) {
            output::directory(&below)?;
        }
        for (image, index) in self.numbered() {
            let name = format!("{stem}-{index}.png");
            let png = codec::encode_png(&image.raster, self.shape, self.palette.as_ref()).map_err(refuse)?;
            output::file(&dir.join(&name), &png)?;
            if let Some(low) = &image.low {
                let png = codec::encode_png(&low.raster, low.shape, None).map_err(refuse)?;
                output::file(&below.join(&name), &png)?;
            }
        }
        Ok(())
    }
}

/// Images that are asked for at once, or one request: no more than a daemon lets wait as it comes.
const AT_ONCE: u32 = 512;

/// Carries requests out, several at once; the first failure ends the others. Answers come in the order of the requests.
pub(super) async fn draw(channel: &Channel, requests: Vec<StreamGenerateImagesRequest>) -> Result<Vec<Batch>, Failure> {
    let bar = progress::bar("values");
    let images =
        |request: &StreamGenerateImagesRequest| request.spec.as_ref().map_or(1, |spec| spec.image_count().max(1));
    let largest = requests.iter().map(images).max().unwrap_or(1);
    let mut waiting = requests.into_iter().enumerate();
    let mut tasks = JoinSet::new();
    let mut batches = Vec::new();
    loop {
        while tasks.len() < (AT_ONCE / largest).max(1) as usize
            && let Some((k, request)) = waiting.next()
        {
            let (channel, bar) = (channel.clone(), bar.clone());
            tasks.spawn(async move { one(channel, request, &bar).await.map(|batch| (k, batch)) });
        }
        let Some(done) = tasks.join_next().await else { break };
        batches.push(done.map_err(|error| Failure::Internal(error.to_string()))??);
    }
    bar.finish_and_clear();
    batches.sort_by_key(|(k, _)| *k);
    Ok(batches.into_iter().map(|(_, batch)| batch).collect())
}

async fn one(channel: Channel, request: StreamGenerateImagesRequest, bar: &ProgressBar) -> Result<Batch, Failure> {
    let spec = request.spec.clone().unwrap_or_default();
    let class = spec.conditioning.as_ref().and_then(|conditioning| conditioning.class_label);
    let prefix = spec.conditioning.as_ref().map(|conditioning| conditioning.prefix.as_ref()).unwrap_or_default();
    let broken = |what: &str| match class {
        Some(class) => Failure::Internal(format!("the stream of class {class} is broken: {what}")),
        None => Failure::Internal(format!("the stream is broken: {what}")),
    };
    let mut client = GenerationServiceClient::new(channel).max_decoding_message_size(client::MAX_ANSWER);
    let mut stream = client.stream_generate_images(request).await?.into_inner();
    let (mut assembly, mut drawn) = (None, 0);
    while let Some(message) = stream.message().await? {
        match (message.event, &mut assembly) {
            (Some(Event::Started(started)), None) => {
                let fresh = Assembly::new(started, spec.image_count(), prefix).map_err(|what| broken(&what))?;
                drawn = fresh.total();
                bar.inc_length(drawn);
                assembly = Some(fresh);
            }
            (Some(Event::Sampled(sampled)), Some(assembly)) => {
                for run in &sampled.runs {
                    bar.inc(assembly.add(run).map_err(|what| broken(&what))?);
                }
            }
            (Some(Event::Completed(completed)), Some(_)) => {
                let Some(assembly) = assembly.take() else { break };
                let images = assembly.finish(&completed).map_err(|what| broken(&what))?;
                let Assembly { started, shape, palette, .. } = assembly;
                let (model, revision, first_index) = (started.model, started.model_revision, spec.first_image_index);
                return Ok(Batch { class, first_index, model, revision, shape, palette, images, drawn });
            }
            _ => return Err(broken("its events came in an order that makes no sense")),
        }
    }
    Err(broken("it was cut"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::rpc::proto;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        controls: Controls,
    }

    #[test]
    fn every_request_asks_for_the_granularity_that_was_named() {
        for (arguments, wanted) in [
            (&["draw"][..], proto::Granularity::Value),
            (&["draw", "--granularity", "pixel"], proto::Granularity::Pixel),
            (&["draw", "--granularity", "row"], proto::Granularity::Row),
        ] {
            let controls = Command::parse_from(arguments).controls;
            let request = controls.request(0, 1, None).unwrap();
            assert_eq!(request.flush.unwrap().granularity(), wanted);
        }
    }
}
