//! The programs of both streams, and when they run (sections 2.3 and 2.4, figure 2).
//!
//! A program covers what a stream does at one scale: the way up there, or the way down, or both where it turns. The stream u
//! sees whole rows above, so its programs run at the start of a row, for all nodes of the row; those of ul run at a pixel, and
//! only where its coordinates are multiples of the scale: between such pixels the coarser maps stay what they were.
//!
//! Maps of a stream are numbered in the order in which it passes them. Of each, phi(map) is remembered, which is what every
//! convolution and every skip reads; the blocks on the way down take the maps of the way up in reverse.

use tch::{TchError, Tensor};

use super::super::raster::features::Features;
use super::super::raster::grid::{Grid, Pixels, Scaling};
use super::super::raster::masked::{self, Masked, Shelf};
use super::super::raster::{Phase, Schedule};
use super::config::{Config, Stage, Way};
use crate::decode::{Activation, Linear, Network, Part, Passing, Register};
use crate::model::Placement;
use crate::torch::weights::Weights;

/// Rows of a map that are kept: convolutions read the row of their node and the one above.
pub(super) const KEPT: u32 = 2;

/// u sees the rows above, ul also what is to the left in the row: the downward stream of figure 2, and the downward and
/// rightward one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    U,
    Ul,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::U => "u",
            Stream::Ul => "ul",
        }
    }

    /// What its convolutions see from a node, in the order of the kernel.
    fn around(self) -> Vec<(i32, i32)> {
        let columns = match self {
            Stream::U => -1..=1,
            Stream::Ul => -1..=0,
        };
        (-1..=0).flat_map(|down| columns.clone().map(move |right| (down, right))).collect()
    }
}

/// The network that keeps `kept` rows of every map, and its schedule.
///
/// # Errors
/// Weights that do not fit `config`, or no memory.
pub(super) fn network(
    config: &Config,
    weights: &Weights,
    placement: Placement,
    kept: u32,
) -> Result<(Network, Schedule), TchError> {
    let _guard = tch::no_grad_guard();
    let (mut network, mut shelf) = (Network::new(placement.precision, placement.device), Shelf::default());
    let stages = config.stages();
    let mut phases = |stream| -> Result<Vec<Phase>, TchError> {
        let legs = stages.chunk_by(|before, after| before.scale == after.scale);
        let leg = |leg: &[Stage]| {
            let masked = Masked::new(&mut network, weights, &mut shelf, masked::Stage::Whole, 1);
            let scale = leg.first().map_or(1, |stage| stage.scale);
            Leg { masked, weights, config, stream, scale, kept, pixels: Pixels::default() }.build(leg)
        };
        legs.map(leg).collect()
    };
    let (before_row, steps) = (phases(Stream::U)?, vec![phases(Stream::Ul)?]);
    let schedule = Schedule {
        grids: shelf.grids,
        scaling: Scaling::Symmetric,
        opening: Vec::new(),
        upsample: None,
        before_row,
        steps,
        whole: Vec::new(),
        after_row: Vec::new(),
        together: true,
    };
    Ok((network, schedule))
}

/// What a stream does at one scale until it leaves it, as a program under construction.
struct Leg<'n> {
    /// Of which nothing is masked: whole pixels are all there is.
    masked: Masked<'n>,
    weights: &'n Weights,
    config: &'n Config,
    stream: Stream,
    scale: u32,
    kept: u32,
    pixels: Pixels,
}

impl Leg<'_> {
    fn build(mut self, stages: &[Stage]) -> Result<Phase, TchError> {
        let mut x = None;
        let mut output = None;
        for stage in stages {
            let mut map = match x {
                Some(x) => x,
                None => self.enter(stage)?,
            };
            for block in 0..stage.blocks {
                map = self.block(stage, block, map)?;
            }
            output = self.leave(stage, map)?;
            x = Some(map);
        }
        let Self { masked, scale, pixels, .. } = self;
        Ok(Phase { scale, pixels, ..masked.finish(output)? })
    }

    /// The map that enters the first stage of this leg.
    fn enter(&mut self, stage: &Stage) -> Result<Register, TchError> {
        let before = |way: &str| format!("{way}.{}.{}", stage.index.saturating_sub(1), self.stream.name());
        match stage.way {
            Way::Up if stage.index == 0 => self.look_at_pixels(),
            Way::Up => {
                let (name, finer) = (before("shrink"), self.grid(self.scale / 2));
                self.convolve(&name, &name, self.config.width, finer, None)
            }
            Way::Down => {
                let grown = self.recall(&before("grow"), self.config.width, self.grid(self.scale), &[(0, 0)]);
                self.masked.program.gather(vec![grown])
            }
        }
    }

    /// Hands `x`, which leaves `stage`, to whoever reads it; the last one gives parameters.
    fn leave(&mut self, stage: &Stage, x: Register) -> Result<Option<Register>, TchError> {
        // Where the way turns, the next block remembers the map.
        let turns = stage.way == Way::Up && stage.index == 2;
        // Nobody skips from ul on the way down.
        if !turns && (stage.way == Way::Up || self.stream == Stream::U) {
            self.phi(&map_name(self.stream, stage.first + stage.blocks), x)?;
        }
        match stage.way {
            Way::Up if turns => {}
            Way::Up => self.remember(
                &format!("shrink.{}.{}", stage.index, self.stream.name()),
                x,
                self.grid(self.scale),
                (0, 0),
            )?,
            Way::Down if stage.index < 2 => self.grow(stage.index, x)?,
            Way::Down if self.stream == Stream::Ul => return self.head(x).map(Some),
            Way::Down => {}
        }
        Ok(None)
    }

    /// The first map: convolutions over the rows above, and over the columns to the left, that are shifted away
    /// from the pixel. What is shifted in is zero, without a bias; so each bias goes with the one of the pixel whose convolution
    /// it is.
    fn look_at_pixels(&mut self) -> Result<Register, TchError> {
        let (offsets, taps) = match self.stream {
            Stream::U => {
                let offsets: Vec<_> = (-2..=-1).flat_map(|down| (-1..=1).map(move |right| (down, right))).collect();
                let own = |&(down, right): &(i32, i32)| self.pixel_tap("input.u", [down + 2, right + 1], [1, 1]);
                let taps: Vec<_> = offsets.iter().map(own).collect::<Result<_, _>>()?;
                (offsets, taps)
            }
            Stream::Ul => {
                let above = |column| self.pixel_tap("input.above", [0, column], [0, 1]);
                let left = |row| self.pixel_tap("input.left", [row, 0], [1, 0]);
                let taps = vec![above(0)?.f_add(&left(0)?)?, above(1)?, above(2)?, left(1)?];
                (vec![(-1, -1), (-1, 0), (-1, 1), (0, -1)], taps)
            }
        };
        let weight = Tensor::f_cat(&taps, 1)?;
        let x = self.masked.program.input(offsets.len() as u32 * (self.config.shape.channels() + 1))?;
        self.pixels = Pixels { offsets, ones: true, ..Pixels::default() };
        self.masked.program.linear(x, Linear { weight, ..Linear::default() })
    }

    /// Of the convolution `name` over pixels what belongs to one tap, [F, C + 1]; with the bias if it is the tap `own`.
    fn pixel_tap(&self, name: &str, [row, column]: [i32; 2], own: [i32; 2]) -> Result<Tensor, TchError> {
        let tap = self.weight(name)?.f_select(3, i64::from(column))?.f_select(2, i64::from(row))?;
        if [row, column] != own {
            return Ok(tap);
        }
        let channels = i64::from(self.config.shape.channels());
        let bias = self.weights.get(&format!("{name}.bias"))?.f_unsqueeze(1)?;
        tap.f_add(&bias.f_constant_pad_nd([channels, 0])?)
    }

    /// x + a * sigmoid(b), with a, b = second(phi(first(phi(x)) + skip(phi(..)))) + class. What is skipped to is, for ul, the
    /// map that u makes in the same block, and on the way down a map of the way up (section 2.4).
    fn block(&mut self, stage: &Stage, block: u32, x: Register) -> Result<Register, TchError> {
        let f = self.config.width;
        let name = |part: &str| format!("{}.{block}.{}.{part}", stage.name(), self.stream.name());
        let [first, second, skip, classes, middle] = ["first", "second", "skip", "classes.weight", "middle"].map(name);
        let (map, grid) = (stage.first + block, self.grid(self.scale));
        let given = map_name(self.stream, map);
        self.phi(&given, x)?;

        let mut aside = Vec::new();
        if self.stream == Stream::Ul {
            aside.push(map_name(Stream::U, map + 1));
        }
        aside.extend(stage.skips.map(|last| map_name(self.stream, last.saturating_sub(block))));
        let skipped = if aside.is_empty() { None } else { Some(self.skip(&skip, &aside)?) };
        let c = self.convolve(&first, &given, 2 * f, grid, skipped)?;
        self.phi(&middle, c)?;
        let class = match self.config.classes {
            0 => None,
            _ => Some(self.masked.class(&classes, Features::by_channel(2 * f, 1).gates(1))?),
        };
        let c = self.convolve(&second, &middle, 2 * f, grid, class)?;
        self.masked.program.gate(c, Passing::Identity, Some(x))
    }

    /// The 1 x 1 convolution `name` of phi of the maps `aside` joined, of which phi of each is remembered.
    fn skip(&mut self, name: &str, aside: &[String]) -> Result<Register, TchError> {
        let (f, maps) = (i64::from(self.config.width), aside.len() as i64);
        let grid = self.grid(self.scale);
        let parts = aside.iter().map(|map| self.recall(map, 2 * self.config.width, grid, &[(0, 0)])).collect();
        let from = self.masked.program.gather(parts)?;
        // Its columns come sign by sign, and for each sign map by map.
        let weight = self.weight(name)?.f_view([f, 2, maps, f])?.f_transpose(1, 2)?.f_reshape([f, 2 * maps * f])?;
        self.affine(name, from, weight, None)
    }

    /// The transposed convolution that ends stage `index` down, at the four finer nodes of this node: for u, whose output
    /// begins one column left of the image, those in odd columns also see the node to the right.
    fn grow(&mut self, index: u32, x: Register) -> Result<(), TchError> {
        let name = format!("grow.{index}.{}", self.stream.name());
        let weight = self.weight(&name)?;
        let (grid, finer) = (self.grid(self.scale), self.grid(self.scale / 2));
        let mut beside = x;
        if self.stream == Stream::U {
            let given = format!("{name}.given");
            self.remember(&given, x, grid, (0, 0))?;
            let both = self.recall(&given, self.config.width, grid, &[(0, 0), (0, 1)]);
            beside = self.masked.program.gather(vec![both])?;
        }
        for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let row = weight.f_select(2, down)?;
            // [outputs, inputs], though such a kernel is stored the other way round.
            let tap = |column: i64| row.f_select(2, column)?.f_tr();
            let (from, weight) = match (self.stream, right) {
                (Stream::U, 0) => (x, tap(1)?),
                (Stream::U, _) => (beside, Tensor::f_cat(&[tap(2)?, tap(0)?], 1)?),
                (Stream::Ul, _) => (x, tap(right)?),
            };
            let grown = self.affine(&name, from, weight, None)?;
            self.remember(&name, grown, finer, (down as i32, right as i32))?;
        }
        Ok(())
    }

    /// head(ELU(x)), its parameters in our order.
    fn head(&mut self, x: Register) -> Result<Register, TchError> {
        let f = self.config.width;
        let phi = self.masked.program.activate(x, Activation::ConcatElu)?;
        let elu = self.masked.program.gather(vec![Part::Register { register: phi, column: 0, width: f }])?;
        let places = self.config.layout.places(self.config.components, self.config.parameters());
        let places: Vec<i64> = places.into_iter().map(|place| place as i64).collect();
        let rows = |name: &str| self.weights.get(name)?.f_index_select(0, &Tensor::f_from_slice(&places)?);
        let weight = rows("head.weight")?.f_view([-1, i64::from(f)])?;
        let head = Linear { weight, bias: Some(rows("head.bias")?), ..Linear::default() };
        self.masked.program.linear(elu, head)
    }

    /// Remembers phi(x) as `name`.
    fn phi(&mut self, name: &str, x: Register) -> Result<(), TchError> {
        let phi = self.masked.program.activate(x, Activation::ConcatElu)?;
        self.remember(name, phi, self.grid(self.scale), (0, 0))
    }

    /// The convolution `name` of this stream over what is remembered as `from`, `width` features on `grid`.
    fn convolve(
        &mut self,
        name: &str,
        from: &str,
        width: u32,
        grid: Grid,
        residual: Option<Register>,
    ) -> Result<Register, TchError> {
        let around = self.recall(from, width, grid, &self.stream.around());
        let around = self.masked.program.gather(vec![around])?;
        let weight = self.weight(name)?.f_permute([0, 2, 3, 1])?.f_flatten(1, 3)?;
        self.affine(name, around, weight, residual)
    }

    /// residual + weight x from + `name`.bias.
    fn affine(
        &mut self,
        name: &str,
        from: Register,
        weight: Tensor,
        residual: Option<Register>,
    ) -> Result<Register, TchError> {
        let bias = Some(self.weights.get(&format!("{name}.bias"))?.shallow_clone());
        self.masked.program.linear(from, Linear { weight, bias, activation: None, residual })
    }

    fn weight(&self, name: &str) -> Result<Tensor, TchError> {
        self.masked.weight(name)
    }

    /// The rows kept of a map at `scale`.
    fn grid(&self, scale: u32) -> Grid {
        Grid::of(self.config.shape, scale, self.kept)
    }

    /// Remembers `from` as `name`, at one offset from the node in `grid`.
    fn remember(&mut self, name: &str, from: Register, grid: Grid, at: (i32, i32)) -> Result<(), TchError> {
        let width = self.masked.program.width(from)?;
        let memory = self.masked.memory(name, width, grid.places());
        let taps = self.masked.taps(grid, &[at]);
        self.masked.program.remember(from, memory, taps, 0)
    }

    /// What is remembered as `name`, `width` features on `grid`, at `offsets` from the node.
    fn recall(&mut self, name: &str, width: u32, grid: Grid, offsets: &[(i32, i32)]) -> Part {
        let memory = self.masked.memory(name, width, grid.places());
        let taps = self.masked.taps(grid, offsets);
        Part::Memory { memory, taps, column: 0, width }
    }
}

/// What phi of a map is remembered as.
fn map_name(stream: Stream, map: u32) -> String {
    format!("{}.{map}", stream.name())
}
