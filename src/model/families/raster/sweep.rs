//! Going through images: which programs are due where.

use std::ops::Range;
use std::sync::Arc;

use super::{Phase, Schedule};
use crate::decode::{Decoder, Row, Rows};
use crate::image::{Canvas, Rank, Shape};
use crate::model::{Condition, ModelError, Slot, StepRow};

/// A schedule with the state of some images.
#[derive(Debug)]
pub(super) struct Sweep {
    schedule: Arc<Schedule>,
    decoder: Box<dyn Decoder>,
    shape: Shape,
    /// What the image in each slot is conditioned on, as the row of the tables of classes.
    classes: Vec<u32>,
    room: Room,
}

/// Kept from one evaluation to the next.
#[derive(Debug, Default)]
struct Room {
    rows: Rows,
    places: Vec<u32>,
    numbers: Vec<f32>,
    out: Vec<f32>,
}

/// A pixel of the image in a slot.
#[derive(Clone, Copy)]
struct Node<'a> {
    slot: Slot,
    canvas: &'a Canvas,
    row: u32,
    column: u32,
}

impl<'a> Node<'a> {
    /// The pixel so many columns to the right.
    fn right(self, columns: u32) -> Node<'a> {
        Node { column: self.column + columns, ..self }
    }
}

impl Sweep {
    pub(super) fn new(schedule: Arc<Schedule>, decoder: Box<dyn Decoder>, shape: Shape, slots: u32) -> Self {
        Self { schedule, decoder, shape, classes: vec![0; slots as usize], room: Room::default() }
    }

    /// The same with state of its own.
    pub(super) fn another(&self, slots: u32) -> Result<Self, ModelError> {
        Ok(Self::new(Arc::clone(&self.schedule), self.decoder.another(slots)?, self.shape, slots))
    }

    /// Clears `slot` and runs what runs once.
    pub(super) fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        self.decoder.clear(slot)?;
        if let Some(class) = self.classes.get_mut(slot.0 as usize) {
            *class = condition.class.map_or(0, |class| class + 1);
        }
        let Room { rows, places, numbers, .. } = &mut self.room;
        if let Some(upsample) = &self.schedule.upsample {
            let shape = upsample.shape();
            let low = condition.low.as_deref().and_then(|low| Canvas::with_prefix(shape, low.to_vec()));
            let Some(low) = low.filter(Canvas::is_complete) else {
                return Err(ModelError::Step("there is no low-resolution image, or it does not fit".to_owned()));
            };
            rows.clear();
            for (row, column) in (0..shape.height()).flat_map(|row| (0..shape.width()).map(move |column| (row, column)))
            {
                numbers.clear();
                upsample.pixels.collect(&low, self.schedule.scaling, row, column, numbers);
                places.clear();
                places.extend(upsample.places(row, column));
                rows.push(Row { slot: slot.0, inputs: &[0], numbers, places, ..Row::default() });
            }
            self.decoder.run(upsample.program, rows, &mut [])?;
        }
        for opening in &self.schedule.opening {
            self.room.rows.clear();
            for &(input, place) in &opening.rows {
                self.room.rows.push(Row { slot: slot.0, inputs: &[input], places: &[place], ..Row::default() });
            }
            self.decoder.run(opening.program, &self.room.rows, &mut [])?;
        }
        Ok(())
    }

    /// The next parameters of each image of `rows`.
    pub(super) fn step(&mut self, rows: &[StepRow<'_>], width: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let nodes: Vec<Node<'_>> = rows.iter().map(|row| self.node(row.slot, row.canvas, row.canvas.known())).collect();
        let schedule = Arc::clone(&self.schedule);
        let at = |node: &Node<'_>| self.step_of(node.canvas.known());
        let steps: Vec<usize> = nodes.iter().map(at).collect();
        let starting: Vec<_> =
            nodes.iter().zip(&steps).filter(|(_, step)| **step == 0).map(|(node, _)| *node).collect();
        self.start_rows(&schedule, &starting)?;
        for (step, phases) in schedule.steps.iter().enumerate() {
            let due: Vec<usize> = (0..nodes.len()).filter(|&index| steps.get(index) == Some(&step)).collect();
            let some: Vec<_> = due.iter().filter_map(|&index| nodes.get(index).copied()).collect();
            let mut results = std::mem::take(&mut self.room.out);
            results.resize(some.len() * width, 0.0);
            self.run(phases, &some, &mut results)?;
            for (&index, result) in due.iter().zip(results.chunks_exact(width)) {
                if let Some(out) = out.get_mut(index * width..(index + 1) * width) {
                    out.copy_from_slice(result);
                }
            }
            self.room.out = results;
        }
        Ok(())
    }

    /// Where a piece that starts at `from` ends: whole pixels of one row, about `most` values but at least one pixel; or
    /// one step, where less than a pixel is left of it or before `end`.
    pub(super) fn piece_end(&self, from: Rank, end: Rank, most: u32) -> Rank {
        let channels = self.shape.channels();
        if !from.is_multiple_of(channels) || end - from < channels {
            return from + channels / self.schedule.steps.len().max(1) as u32;
        }
        let row = self.shape.width() * channels;
        let row_end = (from / row + 1) * row;
        let whole = |values: u32| values - values % channels;
        from + whole(end.min(row_end) - from).min(whole(most).max(channels))
    }

    /// Takes in the values at `ranks`, a piece of [`piece_end`](Self::piece_end), of every image; the parameters that
    /// predicted them go to `out`, image by image.
    pub(super) fn take_in(
        &mut self,
        images: &[(Slot, &Canvas)],
        ranks: Range<Rank>,
        width: usize,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let schedule = Arc::clone(&self.schedule);
        let channels = self.shape.channels();
        let first: Vec<_> = images.iter().map(|&(slot, canvas)| self.node(slot, canvas, ranks.start)).collect();
        let step = self.step_of(ranks.start);
        if step == 0 {
            self.start_rows(&schedule, &first)?;
        }
        let pixels = (ranks.end - ranks.start) / channels;
        let phases =
            if pixels == 0 || schedule.whole.is_empty() { schedule.steps.get(step) } else { Some(&schedule.whole) };
        let Some(phases) = phases else { return Ok(()) };
        if pixels <= 1 {
            return self.run(phases, &first, out);
        }

        if schedule.together {
            let all: Vec<_> = first.iter().flat_map(|node| (0..pixels).map(move |right| node.right(right))).collect();
            return self.run(phases, &all, out);
        }
        let each = width * schedule.steps.len();
        let mut results = vec![0.0; each * images.len()];
        for right in 0..pixels {
            let some: Vec<_> = first.iter().map(|node| node.right(right)).collect();
            self.run(phases, &some, &mut results)?;
            let places = out.chunks_exact_mut(each).skip(right as usize).step_by(pixels as usize);
            places.zip(results.chunks_exact(each)).for_each(|(out, result)| out.copy_from_slice(result));
        }
        Ok(())
    }

    fn node<'a>(&self, slot: Slot, canvas: &'a Canvas, rank: Rank) -> Node<'a> {
        let pixel = rank / self.shape.channels();
        Node { slot, canvas, row: pixel / self.shape.width(), column: pixel % self.shape.width() }
    }

    /// Which step of its pixel decides the value at `rank`.
    fn step_of(&self, rank: Rank) -> usize {
        if self.schedule.steps.len() > 1 { (rank % self.shape.channels()) as usize } else { 0 }
    }

    /// Does what is due between rows for those of `nodes` that start one.
    fn start_rows(&mut self, schedule: &Schedule, nodes: &[Node<'_>]) -> Result<(), ModelError> {
        let starting: Vec<_> = nodes.iter().filter(|node| node.column == 0).copied().collect();
        let below: Vec<_> = starting.iter().filter(|node| node.row > 0).collect();
        if !schedule.after_row.is_empty() {
            for column in (0..self.shape.width()).rev() {
                let above: Vec<_> = below.iter().map(|node| Node { row: node.row - 1, column, ..**node }).collect();
                self.run(&schedule.after_row, &above, &mut [])?;
            }
        }
        if !schedule.before_row.is_empty() {
            let columns = 0..self.shape.width();
            let nodes: Vec<_> =
                starting.iter().flat_map(|node| columns.clone().map(move |column| node.right(column))).collect();
            self.run(&schedule.before_row, &nodes, &mut [])?;
        }
        Ok(())
    }

    /// Runs `phases` in turn at those of `nodes` where they are due; the last one gives `out`.
    fn run(&mut self, phases: &[Phase], nodes: &[Node<'_>], out: &mut [f32]) -> Result<(), ModelError> {
        let Self { schedule, decoder, classes, room, .. } = self;
        for (index, phase) in phases.iter().enumerate() {
            room.rows.clear();
            let due = |node: &&Node<'_>| {
                node.row.is_multiple_of(phase.scale)
                    && node.column.is_multiple_of(phase.scale)
                    && node.row >= phase.from_row
            };
            for node in nodes.iter().filter(due) {
                room.places.clear();
                room.numbers.clear();
                for stencil in &phase.stencils {
                    let Some(grid) = schedule.grids.get(stencil.grid) else { continue };
                    let [row, column] = [node.row, node.column].map(|at| i64::from(at / grid.scale));
                    let place =
                        |&(down, right): &(i32, i32)| grid.place(row + i64::from(down), column + i64::from(right));
                    room.places.extend(stencil.offsets.iter().map(place));
                }
                phase.pixels.collect(node.canvas, schedule.scaling, node.row, node.column, &mut room.numbers);
                let class = classes.get(node.slot.0 as usize).copied().unwrap_or_default();
                room.rows.push(Row {
                    slot: node.slot.0,
                    inputs: &[class],
                    numbers: &room.numbers,
                    places: &room.places,
                    ..Row::default()
                });
            }
            if !room.rows.is_empty() {
                let last = index + 1 == phases.len();
                decoder.run(phase.program, &room.rows, if last { &mut *out } else { &mut [] })?;
            }
        }
        Ok(())
    }
}
