//! `pixeld models`: what there is to sample from.

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::failure::Failure;
use super::source::Source;
use super::{client, connect, output};
use crate::rpc::proto::{ImageShape, Model};

const AFTER_HELP: &str = "\
Columns: shape is height x width x channels, from is the low-resolution image that each image is made from (its shape, or
the model that draws it where a request brings none), slots are images that can be in the making at once, memory is what
one of them takes on the device, step is a pass over the image so far for a module that cannot go on from where it was,
bits/dim is what the package's author measured on held-out images.

Examples:
  pixeld models --models ./models
  pixeld models --endpoint http://127.0.0.1:50051 --json";

/// Flags of `pixeld models`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Models {
    #[command(flatten)]
    source: Source,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    state: &'static str,
    state_message: &'a str,
    revision: &'a str,
    architecture: &'a str,
    description: &'a str,
    shape: Option<[u32; 3]>,
    levels: Option<u32>,
    low_resolution_shape: Option<[u32; 3]>,
    low_resolution_model: Option<&'a str>,
    class_count: u32,
    class_required: bool,
    max_running_images: u32,
    device_bytes_per_image: u64,
    held_out_bits_per_dim: Option<f64>,
    backend: &'static str,
    precision: &'static str,
    device: &'a str,
    recomputes: bool,
    aliases: &'a [String],
}

impl Models {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let models = connect::with(self.source.target()?, client::list).await?;
        if self.json {
            return models.iter().try_for_each(|model| output::json(&json(model)));
        }
        output::line(&table(&models))
    }
}

fn json(model: &Model) -> Line<'_> {
    let shape = model.shape.as_ref();
    let sizes = |shape: &ImageShape| [shape.height, shape.width, shape.channels];
    Line {
        name: client::short(&model.name),
        state: client::state(model),
        state_message: &model.state_message,
        revision: &model.revision,
        architecture: &model.architecture,
        description: &model.description,
        shape: shape.map(sizes),
        levels: shape.map(|shape| shape.levels),
        low_resolution_shape: model.low_resolution_shape.as_ref().map(sizes),
        low_resolution_model: drawn_by(model),
        class_count: model.class_count,
        class_required: model.class_required,
        max_running_images: model.max_running_images,
        device_bytes_per_image: model.device_bytes_per_image,
        held_out_bits_per_dim: model.held_out_bits_per_dim,
        recomputes: model.recomputes,
        aliases: &model.aliases,
        backend: client::backend(model.backend()),
        precision: client::precision(model.precision()),
        device: &model.device,
    }
}

/// The model that draws its low-resolution images.
fn drawn_by(model: &Model) -> Option<&str> {
    Some(client::short(&model.low_resolution_model)).filter(|name| !name.is_empty())
}

/// The models as a table with a line for each, and below it their aliases and why any of them is not ready.
pub(super) fn table(models: &[Model]) -> String {
    let heads = [
        "NAME", "STATE", "FAMILY", "SHAPE", "LEVELS", "FROM", "CLASSES", "SLOTS", "MEMORY", "STEP", "BITS/DIM",
        "REVISION",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(models.iter().map(|model| {
        let shape = model.shape.as_ref();
        let sizes = |shape: &ImageShape| format!("{}x{}x{}", shape.height, shape.width, shape.channels);
        let low = || model.low_resolution_shape.as_ref().map_or_else(|| "none".to_owned(), sizes);
        [
            client::short(&model.name).to_owned(),
            client::state(model).to_owned(),
            model.architecture.clone(),
            shape.map(sizes).unwrap_or_default(),
            shape.map(|shape| shape.levels.to_string()).unwrap_or_default(),
            drawn_by(model).map_or_else(low, str::to_owned),
            match (model.class_count, model.class_required) {
                (0, _) => "none".to_owned(),
                (count, true) => format!("{count} (required)"),
                (count, false) => count.to_string(),
            },
            model.max_running_images.to_string(),
            ByteSize::b(model.device_bytes_per_image).to_string(),
            match (shape, model.recomputes) {
                (None, _) => "",
                (_, true) => "whole pass",
                (_, false) => "goes on",
            }
            .to_owned(),
            model.held_out_bits_per_dim.map(|bits| format!("{bits:.3}")).unwrap_or_default(),
            model.revision.chars().take(12).collect(),
        ]
    }));
    let mut widths = [0; 12];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect();
    let known_as = models.iter().filter(|model| !model.aliases.is_empty());
    lines.extend(known_as.map(|model| format!("{}: also {}", client::short(&model.name), model.aliases.join(", "))));
    let faults = models.iter().filter(|model| !model.state_message.is_empty());
    lines.extend(faults.map(|model| format!("{}: {}", client::short(&model.name), model.state_message)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::proto::ModelState;

    #[test]
    fn the_table_lines_up_and_tells_faults() {
        let good = Model {
            name: "models/good".into(),
            revision: "0123456789abcdef".into(),
            state: ModelState::Ready.into(),
            shape: Some(ImageShape { height: 8, width: 9, channels: 3, levels: 4 }),
            architecture: "toy".into(),
            class_count: 10,
            max_running_images: 16,
            device_bytes_per_image: 2048,
            held_out_bits_per_dim: Some(1.23456),
            recomputes: true,
            aliases: vec!["a".into(), "b".into()],
            ..Model::default()
        };
        let low_resolution_shape = Some(ImageShape { height: 4, width: 3, channels: 3, levels: 4 });
        let larger = Model {
            name: "models/larger".into(),
            low_resolution_shape,
            recomputes: false,
            aliases: Vec::new(),
            ..good.clone()
        };
        let linked =
            Model { name: "models/linked".into(), low_resolution_model: "models/good".into(), ..larger.clone() };
        let bad = Model {
            name: "models/bad".into(),
            state: ModelState::Failed.into(),
            state_message: "no weights".into(),
            ..Model::default()
        };
        let expected = "\
NAME    STATE   FAMILY  SHAPE  LEVELS  FROM   CLASSES  SLOTS  MEMORY   STEP        BITS/DIM  REVISION
good    ready   toy     8x9x3  4       none   10       16     2.0 KiB  whole pass  1.235     0123456789ab
larger  ready   toy     8x9x3  4       4x3x3  10       16     2.0 KiB  goes on     1.235     0123456789ab
linked  ready   toy     8x9x3  4       good   10       16     2.0 KiB  goes on     1.235     0123456789ab
bad     failed                         none   none     0      0 B
good: also a, b
bad: no weights";
        assert_eq!(table(&[good, larger, linked, bad]), expected);
    }
}
