//! Conditioning on a low-resolution image (PixelRNN, section 3.6): a transposed convolution makes maps of it, once for each
//! image, of which every layer sees those of the pixel.

use tch::{TchError, Tensor};

use super::grid::{Grid, Pixels};
use super::masked::Shelf;
use super::settings::tensor;
use crate::decode::{Activation, Linear, Network, Part, ProgramId};
use crate::image::Shape;
use crate::model::TensorSpec;
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;
use crate::torch::weights::Weights;

const MAX_MAPS: u32 = 1 << 12;
/// Most pixels that one of the low-resolution image stands for, along either side.
const MAX_FACTOR: u32 = 16;
/// Name of the memory that holds the maps.
pub(super) const MEMORY: &str = "low";

/// The low-resolution image of a model, and what is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::families) struct Low {
    shape: Shape,
    /// Of the image.
    whole: Shape,
    maps: u32,
}

impl Low {
    /// Reads `condition_maps`, which is there exactly if the model takes a low-resolution image.
    pub(in crate::model::families) fn read(manifest: &Manifest, fields: &mut Fields<'_>) -> Option<Option<Self>> {
        let Some(shape) = manifest.condition.low else { return Some(None) };
        let (maps, whole) = (fields.number("condition_maps", 1..=MAX_MAPS), manifest.shape);
        let sides = [("low_height", whole.height(), shape.height()), ("low_width", whole.width(), shape.width())];
        let mut fits = true;
        for (key, whole, low) in sides {
            if whole % low != 0 || whole / low > MAX_FACTOR {
                let rule = format!("condition.{key} must divide {whole} into at most {MAX_FACTOR}, got {low}");
                fields.refuse("condition_maps", rule);
                fits = false;
            }
        }
        fits.then_some(Some(Self { shape, whole, maps: maps? }))
    }

    /// Pixels that one of the low-resolution image stands for: rows and columns.
    fn factors(self) -> [u32; 2] {
        [self.whole.height() / self.shape.height(), self.whole.width() / self.shape.width()]
    }

    /// Maps made of it.
    pub(in crate::model::families) fn maps(self) -> u32 {
        self.maps
    }

    /// The tensors of the transposed convolution.
    pub(in crate::model::families) fn tensors(self) -> [TensorSpec; 2] {
        let [rows, columns] = self.factors();
        let weight = [self.shape.channels(), self.maps, 3 * rows, 3 * columns];
        [tensor("upsample.weight".to_owned(), &weight), tensor("upsample.bias".to_owned(), &[self.maps])]
    }

    /// Where the maps of each pixel are.
    pub(super) fn grid(self) -> Grid {
        Grid::of(self.whole, 1, u32::MAX)
    }

    /// The program that makes the maps: each pixel of the low-resolution image gives those of the pixels it stands for,
    /// from itself and its neighbours.
    pub(in crate::model::families) fn upsample(
        self,
        network: &mut Network,
        shelf: &mut Shelf,
        weights: &Weights,
    ) -> Result<Upsample, TchError> {
        let [rows, columns] = self.factors();
        let blocks = i64::from(rows * columns);
        let offsets: Vec<_> = (-1..=1).flat_map(|down| (-1..=1).map(move |right| (down, right))).collect();
        let weight = weights.get("upsample.weight")?;
        let part = |(down, right): (i32, i32)| {
            let [rows, columns] = [rows, columns].map(i64::from);
            weight
                .f_narrow(2, rows * i64::from(1 - down), rows)?
                .f_narrow(3, columns * i64::from(1 - right), columns)?
                .f_permute([2i64, 3, 1, 0].as_slice())?
                .f_reshape([blocks * i64::from(self.maps), -1])
        };
        let parts = offsets.iter().map(|&offset| part(offset)).collect::<Result<Vec<_>, TchError>>()?;
        let mut program = network.program();
        let seen = program.input(offsets.len() as u32 * self.shape.channels())?;
        let linear = Linear {
            weight: Tensor::f_cat(&parts, 1)?,
            bias: Some(weights.get("upsample.bias")?.f_repeat([blocks])?),
            activation: Some(Activation::Relu),
            residual: None,
        };
        let maps = program.linear(seen, linear)?;
        let places = self.grid().places();
        let memory = shelf.memory(&mut program, MEMORY, self.maps, places);
        for block in 0..rows * columns {
            let place = program.taps(1, places);
            let part = Part::Register { register: maps, column: block * self.maps, width: self.maps };
            let part = program.gather(vec![part])?;
            program.remember(part, memory, place, 0)?;
        }
        Ok(Upsample { low: self, program: program.finish(None)?, pixels: Pixels { offsets, ..Pixels::default() } })
    }
}

/// The program that makes the maps, and what its rows bring.
#[derive(Debug)]
pub(in crate::model::families) struct Upsample {
    low: Low,
    pub(super) program: ProgramId,
    pub(super) pixels: Pixels,
}

impl Upsample {
    /// Shape of the low-resolution image.
    pub(super) fn shape(&self) -> Shape {
        self.low.shape
    }

    /// The pixels that one of the low-resolution image stands for.
    pub(super) fn places(&self, row: u32, column: u32) -> impl Iterator<Item = u32> {
        let [rows, columns] = self.low.factors();
        let width = self.low.whole.width();
        (0..rows)
            .flat_map(move |down| (0..columns).map(move |right| (row * rows + down) * width + column * columns + right))
    }
}
