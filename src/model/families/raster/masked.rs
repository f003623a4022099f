//! Layers whose features belong to the channels of a pixel, and which see of the pixel itself only what comes before
//! (PixelRNN, section 3.4).
//!
//! Features are kept ordered by group, so that what one channel needs of a matrix is a block of it. A net has one program
//! for each channel, which computes the features of that channel's group alone and remembers them for those of later
//! channels, and one program for whole pixels whose values are all known. Both give the same bits: a matrix of the second
//! differs from those of the first by columns of zeros after what the first has.

use std::collections::HashMap;

use tch::{Kind, TchError, Tensor};

use super::Phase;
use super::features::{Features, Outputs};
use super::grid::{Grid, Pixels, Stencil};
use super::low::{self, Low};
use crate::decode::{Activation, Builder, Linear, Memory, Network, Part, Register, Taps};
use crate::torch::weights::Weights;

/// What the centre of a masked convolution lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::families) enum Mask {
    /// Earlier channels.
    A,
    /// Those and the same.
    B,
}

/// Which features a program computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::families) enum Stage {
    /// Those of one channel.
    Channel(u32),
    /// All.
    Whole,
}

/// Memories by name, and the grids they lie in; shared by the programs of a net.
#[derive(Debug, Default)]
pub(in crate::model::families) struct Shelf {
    memories: HashMap<String, Memory>,
    pub(in crate::model::families) grids: Vec<Grid>,
    low: Option<Low>,
}

impl Shelf {
    /// Nothing yet. `low`: what every layer sees beside its input.
    pub(in crate::model::families) fn new(low: Option<Low>) -> Self {
        Self { low, ..Self::default() }
    }

    /// The memory `name`, `width` numbers at each of `places`.
    pub(in crate::model::families) fn memory(
        &mut self,
        program: &mut Builder<'_>,
        name: &str,
        width: u32,
        places: u32,
    ) -> Memory {
        *self.memories.entry(name.to_owned()).or_insert_with(|| program.memory(width, places))
    }
}

/// Features of a node, as far as a program has computed them.
#[derive(Clone, Debug)]
pub(in crate::model::families) struct Value<'f> {
    pub(in crate::model::families) register: Register,
    /// Where in the register they begin.
    pub(in crate::model::families) column: u32,
    pub(in crate::model::families) features: &'f Features,
    /// Where those of earlier channels, and of other nodes, are.
    memory: Option<(Memory, usize)>,
}

/// A program under construction.
pub(in crate::model::families) struct Masked<'n> {
    pub(in crate::model::families) program: Builder<'n>,
    weights: &'n Weights,
    shelf: &'n mut Shelf,
    stage: Stage,
    channels: u32,
    stencils: Vec<Stencil>,
    taps: Vec<Taps>,
    pixels: Pixels,
}

impl<'n> Masked<'n> {
    pub(in crate::model::families) fn new(
        network: &'n mut Network,
        weights: &'n Weights,
        shelf: &'n mut Shelf,
        stage: Stage,
        channels: u32,
    ) -> Self {
        Self {
            program: network.program(),
            weights,
            shelf,
            stage,
            channels,
            stencils: Vec::new(),
            taps: Vec::new(),
            pixels: Pixels::default(),
        }
    }

    /// Ends the program, which gives `output`.
    pub(in crate::model::families) fn finish(self, output: Option<Register>) -> Result<Phase, TchError> {
        let program = self.program.finish(output)?;
        Ok(Phase { program, scale: 1, from_row: 0, stencils: self.stencils, pixels: self.pixels })
    }

    /// The features of `features` that this program computes.
    pub(in crate::model::families) fn columns(&self, features: &Features) -> (u32, u32) {
        match self.stage {
            Stage::Channel(channel) => (features.bound(channel), features.bound(channel + 1)),
            Stage::Whole => (0, features.count()),
        }
    }

    fn grid(&mut self, grid: Grid) -> usize {
        let found = self.shelf.grids.iter().position(|known| *known == grid);
        found.unwrap_or_else(|| {
            self.shelf.grids.push(grid);
            self.shelf.grids.len() - 1
        })
    }

    /// Names the places of `grid` at `offsets` from the node.
    pub(in crate::model::families) fn taps(&mut self, grid: Grid, offsets: &[(i32, i32)]) -> Taps {
        let stencil = Stencil { grid: self.grid(grid), offsets: offsets.to_vec() };
        let known = self.stencils.iter().zip(&self.taps).find(|(known, _)| **known == stencil);
        if let Some((_, &taps)) = known {
            return taps;
        }
        let taps = self.program.taps(offsets.len(), grid.places());
        self.stencils.push(stencil);
        self.taps.push(taps);
        taps
    }

    /// The memory `name`, `width` numbers at each of `places`.
    pub(in crate::model::families) fn memory(&mut self, name: &str, width: u32, places: u32) -> Memory {
        self.shelf.memory(&mut self.program, name, width, places)
    }

    /// `register` holds this program's part of `features`, which nobody asks for but this program.
    pub(in crate::model::families) fn plain<'f>(&self, register: Register, features: &'f Features) -> Value<'f> {
        Value { register, column: 0, features, memory: None }
    }

    /// `register` holds this program's part of `features`. They are remembered for other nodes if there is a `grid`, and for
    /// later channels of this one if they will ask.
    pub(in crate::model::families) fn value<'f>(
        &mut self,
        name: &str,
        register: Register,
        features: &'f Features,
        grid: Option<Grid>,
    ) -> Result<Value<'f>, TchError> {
        let (first, _) = self.columns(features);
        let value = self.plain(register, features);
        let last = self.stage == Stage::Whole || self.stage == Stage::Channel(self.channels - 1);
        let grid = match grid {
            Some(grid) => grid,
            None if self.channels == 1 || self.stage == Stage::Whole => return Ok(value),
            None => Grid::spot(),
        };
        let memory = self.memory(name, features.count(), grid.places());
        if grid != Grid::spot() || !last {
            let place = self.taps(grid, &[(0, 0)]);
            self.program.remember(register, memory, place, first)?;
        }
        let index = self.grid(grid);
        Ok(Value { memory: Some((memory, index)), ..value })
    }

    /// A value whose register part lies in `register` from `column` on and whose features are remembered by the caller, in
    /// `memory` on `grid`.
    pub(in crate::model::families) fn remembered<'f>(
        &mut self,
        register: Register,
        column: u32,
        features: &'f Features,
        memory: Memory,
        grid: Grid,
    ) -> Value<'f> {
        let index = self.grid(grid);
        Value { register, column, features, memory: Some((memory, index)) }
    }

    /// activation(value).
    pub(in crate::model::families) fn activate<'f>(
        &mut self,
        name: &str,
        value: &Value<'f>,
        activation: Activation,
        grid: Option<Grid>,
    ) -> Result<Value<'f>, TchError> {
        let register = self.program.activate(value.register, activation)?;
        self.value(name, register, value.features, grid)
    }

    /// What of `value` an operation with mask B sees at the node itself.
    pub(in crate::model::families) fn own(&mut self, value: &Value<'_>) -> Vec<Part> {
        let (first, end) = self.columns(value.features);
        let mut parts = Vec::new();
        if let (Some((memory, grid)), true) = (value.memory, first > 0)
            && let Some(&grid) = self.shelf.grids.get(grid)
        {
            let taps = self.taps(grid, &[(0, 0)]);
            parts.push(Part::Memory { memory, taps, column: 0, width: first });
        }
        parts.push(Part::Register { register: value.register, column: value.column, width: end - first });
        parts
    }

    /// What of `value` lies at `offsets` from the node, all features of each.
    pub(in crate::model::families) fn around(&mut self, value: &Value<'_>, offsets: &[(i32, i32)]) -> Option<Part> {
        let (memory, grid) = value.memory?;
        let grid = *self.shelf.grids.get(grid)?;
        let taps = self.taps(grid, offsets);
        Some(Part::Memory { memory, taps, column: 0, width: value.features.count() })
    }

    /// Parts in one register.
    pub(in crate::model::families) fn side_by_side(&mut self, parts: Vec<Part>) -> Result<Register, TchError> {
        if let [Part::Register { register, column: 0, width }] = parts.as_slice()
            && self.program.width(*register)? == *width
        {
            return Ok(*register);
        }
        self.program.gather(parts)
    }

    /// A convolution of `value` with mask B, `name`.weight [gates x outputs, inputs, rows, columns], and what `more` brings.
    pub(in crate::model::families) fn convolve(
        &mut self,
        name: &str,
        outputs: Outputs<'_>,
        value: &Value<'_>,
        window: &Window,
        more: More,
        after: After,
    ) -> Result<Register, TchError> {
        let weight = self.weight(name)?;
        let mut parts: Vec<Part> = Vec::new();
        let mut columns = Vec::new();
        if !window.offsets.is_empty() {
            parts.extend(self.around(value, &window.offsets));
        }
        for &offset in &window.offsets {
            columns.push(self.block(&weight, outputs, Some(value.features), window.index(offset))?);
        }
        more.append(&mut parts, &mut columns);
        parts.extend(self.own(value));
        columns.push(self.masked(&weight, outputs, value.features, window.centre, Mask::B)?);
        self.affine(name, outputs, parts, &columns, after)
    }

    /// The first convolution, over the pixels around, with mask A: `name`.weight [gates x outputs, C, rows, columns].
    pub(in crate::model::families) fn look_at_pixels(
        &mut self,
        name: &str,
        outputs: Outputs<'_>,
        window: &Window,
        more: More,
        after: After,
    ) -> Result<Register, TchError> {
        let weight = self.weight(name)?;
        let inputs = Features::by_channel(1, self.channels);
        let own = match self.stage {
            Stage::Channel(channel) => channel,
            Stage::Whole => self.channels,
        };
        let mut columns = Vec::new();
        for &offset in &window.offsets {
            columns.push(self.block(&weight, outputs, Some(&inputs), window.index(offset))?);
        }
        if own > 0 {
            columns.push(self.masked(&weight, outputs, &inputs, window.centre, Mask::A)?);
        }
        let register = self.pixels(window.offsets.clone(), own)?;
        let mut parts = vec![Part::Register { register, column: 0, width: self.program.width(register)? }];
        // Behind the pixels: what of them a stage does not see is zero in front of nothing.
        more.append(&mut parts, &mut columns);
        self.affine(name, outputs, parts, &columns, after)
    }

    /// `to`, with what [`low`](Self::low) gives added to it.
    pub(in crate::model::families) fn add_low(
        &mut self,
        name: &str,
        outputs: Outputs<'_>,
        offset: (i32, i32),
        mut to: Register,
    ) -> Result<Register, TchError> {
        for (part, weight) in self.low(name, outputs, offset)?.0 {
            let from = self.side_by_side(vec![part])?;
            to = self.program.linear(from, Linear { weight, residual: Some(to), ..Linear::default() })?;
        }
        Ok(to)
    }

    /// What the cell `name` sees of the low-resolution image at an offset from the node, if there is one: `name`.low.weight
    /// [gates x outputs, maps, 1, 1].
    pub(in crate::model::families) fn low(
        &mut self,
        name: &str,
        outputs: Outputs<'_>,
        offset: (i32, i32),
    ) -> Result<More, TchError> {
        let Some(low) = self.shelf.low else { return Ok(More::default()) };
        let memory = self.memory(low::MEMORY, low.maps(), low.grid().places());
        let taps = self.taps(low.grid(), &[offset]);
        let weight = self.weight(&format!("{name}.low"))?;
        let matrix = self.block(&weight, outputs, None, (0, 0))?;
        Ok(More::one(Part::Memory { memory, taps, column: 0, width: low.maps() }, matrix))
    }

    /// All channels of the pixels at `offsets`, and `own` channels of the pixel itself.
    pub(in crate::model::families) fn pixels(
        &mut self,
        offsets: Vec<(i32, i32)>,
        own: u32,
    ) -> Result<Register, TchError> {
        let width = offsets.len() as u32 * self.channels + own;
        self.pixels = Pixels { offsets, own, ones: false };
        self.program.input(width)
    }

    /// `parts` times `columns`, which belong to them in turn, + `name`.bias.
    pub(in crate::model::families) fn affine(
        &mut self,
        name: &str,
        outputs: Outputs<'_>,
        parts: Vec<Part>,
        columns: &[Tensor],
        after: After,
    ) -> Result<Register, TchError> {
        let from = self.side_by_side(parts)?;
        self.linear(name, outputs, from, Tensor::f_cat(columns, 1)?, after)
    }

    /// `from` times `weight` + `name`.bias.
    pub(in crate::model::families) fn linear(
        &mut self,
        name: &str,
        outputs: Outputs<'_>,
        from: Register,
        weight: Tensor,
        after: After,
    ) -> Result<Register, TchError> {
        let bias = self.select(self.weights.get(&format!("{name}.bias"))?, outputs)?;
        let After { activation, residual } = after;
        self.program.linear(from, Linear { weight, bias: Some(bias), activation, residual })
    }

    /// `name`.weight.
    pub(in crate::model::families) fn weight(&self, name: &str) -> Result<Tensor, TchError> {
        Ok(self.weights.get(&format!("{name}.weight"))?.shallow_clone())
    }

    /// The rows of `tensor` [gates x outputs, ..] that this program computes.
    pub(in crate::model::families) fn select(&self, tensor: &Tensor, outputs: Outputs<'_>) -> Result<Tensor, TchError> {
        let Outputs { features, gates } = outputs;
        let (first, end) = self.columns(features);
        let some = features.order.get(first as usize..end as usize).unwrap_or_default();
        let count = i64::from(features.count());
        let rows: Vec<i64> =
            (0..i64::from(gates)).flat_map(|gate| some.iter().map(move |row| gate * count + row)).collect();
        tensor.f_index_select(0, &Tensor::f_from_slice(&rows)?)
    }

    /// `weight` at one place of its kernel: [outputs, inputs], the inputs in the order of their features, or of the file.
    pub(in crate::model::families) fn block(
        &self,
        weight: &Tensor,
        outputs: Outputs<'_>,
        inputs: Option<&Features>,
        (row, column): (u32, u32),
    ) -> Result<Tensor, TchError> {
        let tap = weight.f_select(3, i64::from(column))?.f_select(2, i64::from(row))?;
        let tap = match inputs {
            Some(inputs) => tap.f_index_select(1, &Tensor::f_from_slice(&inputs.order)?)?,
            None => tap,
        };
        self.select(&tap, outputs)
    }

    /// The centre of `weight` as far as `mask` lets through.
    pub(in crate::model::families) fn masked(
        &self,
        weight: &Tensor,
        outputs: Outputs<'_>,
        inputs: &Features,
        centre: (u32, u32),
        mask: Mask,
    ) -> Result<Tensor, TchError> {
        let block = self.block(weight, outputs, Some(inputs), centre)?;
        let visible = |channel: u32| inputs.bound(if mask == Mask::A { channel } else { channel + 1 });
        match self.stage {
            Stage::Channel(channel) => block.f_narrow(1, 0, i64::from(visible(channel))),
            Stage::Whole => {
                let Outputs { features, gates } = outputs;
                let rows = (0..self.channels).flat_map(|channel| {
                    let row = (0..inputs.count()).map(move |column| f32::from(u8::from(column < visible(channel))));
                    let count = features.bound(channel + 1) - features.bound(channel);
                    std::iter::repeat_n(row, count as usize).flatten()
                });
                let open: Vec<f32> = rows.collect();
                let open = Tensor::f_from_slice(&open)?.f_view([i64::from(features.count()), -1])?;
                block.f_mul(&open.f_repeat([i64::from(gates), 1])?)
            }
        }
    }

    /// The row of a table of `classes` vectors, `name` [classes, gates x outputs], that belongs to the image's class; zeros
    /// without one.
    pub(in crate::model::families) fn class(&mut self, name: &str, outputs: Outputs<'_>) -> Result<Register, TchError> {
        let table = self.select(&self.weights.get(name)?.f_tr()?, outputs)?.f_tr()?;
        let none = Tensor::f_zeros([1, table.size2()?.1], (Kind::Float, table.device()))?;
        self.program.embed(Tensor::f_cat(&[none, table], 0)?)
    }

    /// A 1 x 1 convolution with mask B.
    pub(in crate::model::families) fn pointwise(
        &mut self,
        name: &str,
        outputs: &Features,
        from: &Value<'_>,
        after: After,
    ) -> Result<Register, TchError> {
        self.convolve(name, outputs.gates(1), from, &Window::point(), More::default(), after)
    }

    /// The head: hidden.{i} of relu, to each of `maps` after the first in turn, then head of relu, to `levels` logits for
    /// every channel (section 3.3). `z` holds features of the first of `maps`.
    pub(in crate::model::families) fn head(
        mut self,
        mut z: Register,
        maps: &[Features],
        levels: u32,
    ) -> Result<Phase, TchError> {
        let logits = Features::by_channel(levels, self.channels);
        let names = (0..maps.len().saturating_sub(1)).map(|index| format!("hidden.{index}"));
        let targets = maps.iter().skip(1).chain(std::iter::once(&logits));
        for ((name, from), to) in names.chain(std::iter::once("head".to_owned())).zip(maps).zip(targets) {
            let given = self.plain(z, from);
            let given = self.activate(&format!("{name}.given"), &given, Activation::Relu, None)?;
            z = self.pointwise(&name, to, &given, After::default())?;
        }
        self.finish(Some(z))
    }
}

/// What a kernel covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::model::families) struct Window {
    /// Row and column of the kernel that lie over the node itself.
    pub(in crate::model::families) centre: (u32, u32),
    /// What it covers before, from the node on.
    pub(in crate::model::families) offsets: Vec<(i32, i32)>,
}

impl Window {
    /// The node alone.
    pub(in crate::model::families) fn point() -> Self {
        Self { centre: (0, 0), offsets: Vec::new() }
    }

    /// `size` x `size` nodes around: rows above from left to right, then what is left.
    pub(in crate::model::families) fn square(size: u32) -> Self {
        let reach = (size / 2) as i32;
        let above = (-reach..0).flat_map(|down| (-reach..=reach).map(move |right| (down, right)));
        let offsets = above.chain((-reach..0).map(|right| (0, right))).collect();
        Self { centre: (size / 2, size / 2), offsets }
    }

    /// `reach` nodes to the left.
    pub(in crate::model::families) fn left(reach: u32) -> Self {
        Self { centre: (0, reach), offsets: (-(reach as i32)..0).map(|right| (0, right)).collect() }
    }

    /// Where in the kernel an offset lies.
    pub(in crate::model::families) fn index(&self, (down, right): (i32, i32)) -> (u32, u32) {
        (self.centre.0.saturating_add_signed(down), self.centre.1.saturating_add_signed(right))
    }
}

/// Parts that a product takes beside its input, and the columns of the matrix that belong to them.
#[derive(Debug, Default)]
pub(in crate::model::families) struct More(Vec<(Part, Tensor)>);

impl More {
    /// One part.
    pub(in crate::model::families) fn one(part: Part, columns: Tensor) -> Self {
        Self(vec![(part, columns)])
    }

    /// These and those of `others`.
    pub(in crate::model::families) fn and(mut self, others: More) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Puts them behind others.
    pub(in crate::model::families) fn append(self, parts: &mut Vec<Part>, columns: &mut Vec<Tensor>) {
        for (part, matrix) in self.0 {
            parts.push(part);
            columns.push(matrix);
        }
    }
}

/// The phases that decide a pixel, one for each of its channels, and the one for whole pixels, if it is another. `phase`
/// makes that of a stage.
pub(in crate::model::families) fn pixel(
    channels: u32,
    mut phase: impl FnMut(Stage) -> Result<Phase, TchError>,
) -> Result<(Vec<Vec<Phase>>, Vec<Phase>), TchError> {
    if channels == 1 {
        return Ok((vec![vec![phase(Stage::Whole)?]], Vec::new()));
    }
    let steps = (0..channels).map(|channel| Ok(vec![phase(Stage::Channel(channel))?]));
    let steps = steps.collect::<Result<_, TchError>>()?;
    Ok((steps, vec![phase(Stage::Whole)?]))
}

/// What follows a product.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::model::families) struct After {
    pub(in crate::model::families) activation: Option<Activation>,
    pub(in crate::model::families) residual: Option<Register>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_a_centre_is_above_or_to_the_left() {
        assert_eq!(Window::square(3).offsets, [(-1, -1), (-1, 0), (-1, 1), (0, -1)]);
        assert_eq!(Window::square(3).index((-1, 1)), (0, 2));
        assert_eq!(Window::square(1), Window::point());
        assert_eq!(Window::left(2).offsets, [(0, -2), (0, -1)]);
        assert_eq!(Window::left(2).index((0, -2)), (0, 0));
    }
}
