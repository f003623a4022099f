//! `pixeld sample`: images from a model, one stream for each class, all at once.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::assembly::{Assembly, Finished};
use super::failure::Failure;
use super::source::{Granularity, Source};
use super::{client, connect, npy, output, progress};
use crate::image::{Shape, codec};
use crate::rpc::proto::generation_service_client::GenerationServiceClient;
use crate::rpc::proto::stream_generate_images_response::Event;
use crate::rpc::proto::{Conditioning, GenerationSpec, SamplingParams, StreamGenerateImagesRequest};

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
    /// Model to sample; may be left out if there is only one
    #[arg(long, default_value = "", hide_default_value = true)]
    model: String,
    /// Class label, or several as 0,1,2: one stream for each, all at once
    #[arg(long, value_name = "LABEL", value_delimiter = ',', allow_negative_numbers = true)]
    class: Vec<u32>,
    /// Images of each class
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    count: u32,
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

/// What one stream brought.
struct Batch {
    class: Option<u32>,
    first_index: u32,
    model: String,
    revision: String,
    shape: Shape,
    images: Vec<Finished>,
}

impl Batch {
    /// The images with their noise numbers.
    fn numbered(&self) -> impl Iterator<Item = (&Finished, u32)> {
        self.images.iter().zip(self.first_index..=u32::MAX)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    revision: &'a str,
    seed: u64,
    images: Vec<Line>,
    totals: Totals,
}

#[derive(Serialize)]
struct Line {
    class: Option<u32>,
    index: u32,
    seed: u64,
    crc32c: String,
    log_likelihood: f64,
    bits_per_dim: f64,
}

#[derive(Serialize)]
struct Totals {
    images: usize,
    values: u64,
    seconds: f64,
    values_per_second: f64,
}

impl Sample {
    pub(super) async fn run(self) -> Result<(), Failure> {
        [&self.out, &self.npy].into_iter().flatten().try_for_each(|path| output::expect_writable(path))?;
        if let Some(dir) = &self.out_dir {
            std::fs::create_dir_all(dir)
                .map_err(|error| Failure::Usage(format!("cannot make {}: {error}", dir.display())))?;
        }
        // One seed for all streams. 48 random bits: every JSON reader keeps whole numbers below 2^53 exact.
        let seed = self.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16);
        let requests = self.requests(seed)?;

        let work = async |channel: &Channel| {
            let began = Instant::now();
            let batches = sample_all(channel, requests).await?;
            Ok((batches, began.elapsed().as_secs_f64()))
        };
        let (batches, seconds) = connect::with(self.source.target()?, work).await?;
        self.write_files(&batches)?;
        self.tell(&batches, seed, seconds)
    }

    /// One request for each class, with noise numbers that follow each other.
    fn requests(&self, seed: u64) -> Result<Vec<StreamGenerateImagesRequest>, Failure> {
        let classes =
            if self.class.is_empty() { vec![None] } else { self.class.iter().copied().map(Some).collect::<Vec<_>>() };
        let request = |(k, class_label): (usize, Option<u32>)| {
            let first = u32::try_from(k).ok()?.checked_mul(self.count)?.checked_add(self.first_index)?;
            let spec = GenerationSpec {
                model: self.model.clone(),
                image_count: Some(self.count),
                conditioning: class_label.map(|_| Conditioning { class_label, ..Conditioning::default() }),
                sampling: Some(SamplingParams {
                    temperature: self.temperature,
                    top_k: self.top_k,
                    top_p: self.top_p,
                    seed: Some(seed),
                    ..SamplingParams::default()
                }),
                first_image_index: first,
                ..GenerationSpec::default()
            };
            let flush = Some(self.granularity.flush());
            Some(StreamGenerateImagesRequest { spec: Some(spec), flush, include_log_probs: false })
        };
        let requests: Option<Vec<_>> = classes.into_iter().enumerate().map(request).collect();
        requests.ok_or_else(|| Failure::Usage("--count: noise numbers must stay below 4294967296".to_owned()))
    }

    fn write_files(&self, batches: &[Batch]) -> Result<(), Failure> {
        let Some(shape) = batches.first().map(|batch| batch.shape) else { return Ok(()) };
        let images: Vec<&Finished> = batches.iter().flat_map(|batch| &batch.images).collect();
        if let Some(path) = &self.out {
            let columns = sheet_columns(batches.len() as u32, self.count);
            let rasters: Vec<Vec<u16>> = images.iter().map(|image| image.raster.clone()).collect();
            let sheet = codec::contact_sheet(&rasters, shape, columns);
            output::file(path, &sheet.map_err(|what| Failure::Usage(format!("--out: {what}; use --out-dir")))?)?;
        }
        if let Some(path) = &self.npy {
            output::file(path, &npy::encode(images.iter().map(|image| image.raster.as_slice()), shape)?)?;
        }
        if let Some(dir) = &self.out_dir {
            for batch in batches {
                let class = batch.class.map_or_else(|| "image".to_owned(), |class| class.to_string());
                for (image, index) in batch.numbered() {
                    let png = codec::encode_png(&image.raster, shape)
                        .map_err(|what| Failure::Usage(format!("--out-dir: {what}, with --npy")))?;
                    output::file(&dir.join(format!("{class}-{index}.png")), &png)?;
                }
            }
        }
        Ok(())
    }

    fn tell(&self, batches: &[Batch], seed: u64, seconds: f64) -> Result<(), Failure> {
        let Some(first) = batches.first() else { return Ok(()) };
        let dims = f64::from(first.shape.values());
        let lines: Vec<Line> = batches
            .iter()
            .flat_map(|batch| batch.numbered().map(move |(image, index)| (batch, image, index)))
            .map(|(batch, image, index)| Line {
                class: batch.class,
                index,
                seed,
                crc32c: format!("{:08x}", image.crc32c),
                log_likelihood: image.log_likelihood,
                bits_per_dim: -image.log_likelihood / (dims * std::f64::consts::LN_2),
            })
            .collect();
        let values = lines.len() as u64 * u64::from(first.shape.values());
        let totals = Totals { images: lines.len(), values, seconds, values_per_second: values as f64 / seconds };
        if self.json {
            let (model, revision) = (client::short(&first.model), first.revision.as_str());
            return output::json(&Report { model, revision, seed, images: lines, totals });
        }
        let bits = lines.iter().map(|line| line.bits_per_dim).sum::<f64>() / lines.len() as f64;
        let mut files: Vec<_> =
            [&self.out, &self.out_dir, &self.npy].into_iter().flatten().map(|p| p.display().to_string()).collect();
        if files.is_empty() {
            files.push("nowhere: name a file with --out".to_owned());
        }
        output::line(&format!(
            "{} images of {}, {values} values in {seconds:.2} s ({:.0} values/s), {bits:.3} bits/dim, seed {seed} -> {}",
            lines.len(),
            client::short(&first.model),
            totals.values_per_second,
            files.join(", "),
        ))
    }
}

/// Runs all requests at once; the first failure ends the others. Answers come in the order of the requests.
async fn sample_all(channel: &Channel, requests: Vec<StreamGenerateImagesRequest>) -> Result<Vec<Batch>, Failure> {
    let bar = progress::bar("values");
    let mut tasks = JoinSet::new();
    for (k, request) in requests.into_iter().enumerate() {
        let (channel, bar) = (channel.clone(), bar.clone());
        tasks.spawn(async move { sample_one(channel, request, &bar).await.map(|batch| (k, batch)) });
    }
    let mut batches = Vec::new();
    while let Some(done) = tasks.join_next().await {
        batches.push(done.map_err(|error| Failure::Internal(error.to_string()))??);
    }
    bar.finish_and_clear();
    batches.sort_by_key(|(k, _)| *k);
    Ok(batches.into_iter().map(|(_, batch)| batch).collect())
}

async fn sample_one(
    channel: Channel,
    request: StreamGenerateImagesRequest,
    bar: &ProgressBar,
) -> Result<Batch, Failure> {
    let spec = request.spec.clone().unwrap_or_default();
    let class = spec.conditioning.as_ref().and_then(|conditioning| conditioning.class_label);
    let broken = |what: &str| match class {
        Some(class) => Failure::Internal(format!("the stream of class {class} is broken: {what}")),
        None => Failure::Internal(format!("the stream is broken: {what}")),
    };
    let mut client = GenerationServiceClient::new(channel).max_decoding_message_size(client::MAX_ANSWER);
    let mut stream = client.stream_generate_images(request).await?.into_inner();
    let mut assembly = None;
    while let Some(message) = stream.message().await? {
        match (message.event, &mut assembly) {
            (Some(Event::Started(started)), None) => {
                let fresh = Assembly::new(started, spec.image_count()).map_err(|what| broken(&what))?;
                bar.inc_length(fresh.total());
                assembly = Some(fresh);
            }
            (Some(Event::Sampled(sampled)), Some(assembly)) => {
                for run in &sampled.runs {
                    bar.inc(assembly.add(run).map_err(|what| broken(&what))?);
                }
            }
            (Some(Event::Completed(completed)), Some(_)) => {
                let Some(assembly) = assembly.take() else { break };
                let (model, revision, shape) =
                    (assembly.started.model.clone(), assembly.started.model_revision.clone(), assembly.shape);
                let images = assembly.finish(&completed).map_err(|what| broken(&what))?;
                return Ok(Batch { class, first_index: spec.first_image_index, model, revision, shape, images });
            }
            _ => return Err(broken("its events came in an order that makes no sense")),
        }
    }
    Err(broken("it was cut"))
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
