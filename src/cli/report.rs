//! What the commands that draw images tell about them: a line for people, or all of it as JSON.

use std::path::PathBuf;

use serde::Serialize;

use super::draw::Batch;
use super::failure::Failure;
use super::{client, output};

/// Images that were drawn.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    model: &'a str,
    revision: &'a str,
    seed: u64,
    images: Vec<Line>,
    totals: Totals,
}

#[derive(Serialize)]
struct Line {
    /// The file of the image given that it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    class: Option<u32>,
    /// Its noise number.
    index: u32,
    seed: u64,
    crc32c: String,
    /// In nats, of the whole image.
    log_likelihood: f64,
    bits_per_dim: f64,
    /// Of the low-resolution image that was drawn for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    low_resolution_log_likelihood: Option<f64>,
}

#[derive(Serialize)]
struct Totals {
    images: usize,
    /// Those drawn: what was given is not counted.
    values: u64,
    seconds: f64,
    values_per_second: f64,
}

impl<'a> Report<'a> {
    /// `batches` took so many `seconds`. `given`: for each batch the file it was made from, if there are any. Nothing if
    /// there are no batches.
    pub(super) fn new(batches: &'a [Batch], given: &[PathBuf], seed: u64, seconds: f64) -> Option<Self> {
        let first = batches.first()?;
        let dims = f64::from(first.shape.values());
        let mut images = Vec::new();
        for (k, batch) in batches.iter().enumerate() {
            images.extend(batch.numbered().map(|(image, index)| Line {
                from: given.get(k).map(|path| path.display().to_string()),
                class: batch.class,
                index,
                seed,
                crc32c: format!("{:08x}", image.crc32c),
                log_likelihood: image.log_likelihood,
                bits_per_dim: -image.log_likelihood / (dims * std::f64::consts::LN_2),
                low_resolution_log_likelihood: image.low.as_ref().map(|low| low.log_likelihood),
            }));
        }
        let values = batches.iter().map(|batch| batch.drawn).sum();
        let totals = Totals { images: images.len(), values, seconds, values_per_second: values as f64 / seconds };
        Some(Self { model: client::short(&first.model), revision: &first.revision, seed, images, totals })
    }

    /// Tells it, and the `files` that were written.
    pub(super) fn tell(&self, json: bool, files: &[Option<&PathBuf>]) -> Result<(), Failure> {
        if json {
            return output::json(self);
        }
        let Self { model, seed, images, totals, .. } = self;
        let bits = images.iter().map(|line| line.bits_per_dim).sum::<f64>() / images.len() as f64;
        let mut files: Vec<_> = files.iter().flatten().map(|path| path.display().to_string()).collect();
        if files.is_empty() {
            files.push("nowhere: name a file with --out".to_owned());
        }
        let Totals { images, values, seconds, values_per_second } = totals;
        output::line(&format!(
            "{images} images of {model}, {values} values in {seconds:.2} s ({values_per_second:.0} values/s), {bits:.3} \
             bits/dim, seed {seed} -> {}",
            files.join(", "),
        ))
    }
}
