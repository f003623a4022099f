//! Whether a step looks at what it must not know, and a proof if one does.

use super::check::{Buckets, ROUNDING, any_image, chance, passes};
use super::module::Module;
use crate::head::Head;
use crate::image::{Canvas, Order, Rank, Shape};
use crate::model::ModelError;

/// Ranks at the beginning of an image, where it is often treated otherwise, that are all cut at.
const FIRST: u32 = 6;

/// A step that looks at what it must not know: two images that differ in one value, which comes after the step.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "the module looks at what is still to come: the parameters at {step} change by {change:.2e} when nothing but the \
     value at {value} does"
)]
pub(super) struct Leak {
    step: Place,
    value: Place,
    /// The largest difference between two parameters, relative to numbers above 1.
    change: f32,
}

/// A value, or the pixel of a step that decides all its channels by the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    row: u32,
    column: u32,
    channel: Option<u32>,
}

impl Place {
    /// Of the value at the raster place `place`.
    fn of(place: u32, shape: Shape) -> Self {
        let position = Order::Raster.position(shape, place);
        Self { row: position.row, column: position.column, channel: Some(position.channel) }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "row {}, column {}", self.row, self.column)?;
        self.channel.map_or(Ok(()), |channel| write!(f, ", channel {channel}"))
    }
}

/// Looks for a step that changes with a value it must not know. In the order of `places`, which holds the raster place of
/// every rank, all values from each of `cuts` on become others, `draws` times over, each time in another image. That may
/// change the parameters of later steps alone.
///
/// A trial is one image cut at one rank. Levels take turns from trial to trial, at each place in one half of the trials, at
/// each distance from the cut in the other: after twice as many trials as there are levels, each has come at the last place,
/// and at every distance.
pub(super) fn leak(
    module: &Module,
    buckets: &Buckets,
    places: &[u32],
    cuts: &[Rank],
    draws: u32,
) -> Result<Option<Leak>, ModelError> {
    for draw in 0..draws {
        if let Some(leak) = Search::new(module, buckets, places, draw).run(cuts)? {
            return Ok(Some(leak));
        }
    }
    Ok(None)
}

/// One trial a cut, those of the draws before this one having had their turns.
fn trials(draw: u32, cuts: &[Rank]) -> Vec<Trial> {
    let first = draw * cuts.len() as u32;
    let trial = |(index, &cut): (u32, &Rank)| Trial { turn: first + index, by_distance: (draw + index) % 2 == 1, cut };
    (0..).zip(cuts).map(trial).collect()
}

/// An image, and how its values become others.
struct Search<'a> {
    module: &'a Module,
    buckets: Buckets,
    places: &'a [u32],
    values: Vec<u16>,
    draw: u32,
}

/// The values of an image from the rank `cut` on become others, by the turn of each.
#[derive(Clone, Copy)]
struct Trial {
    turn: u32,
    /// Whether levels are dealt by distance from the cut rather than by place.
    by_distance: bool,
    cut: Rank,
}

impl Trial {
    /// What the value `value` at `rank` becomes, of `levels`.
    fn other(self, rank: Rank, value: u16, levels: u32) -> u16 {
        let key = if self.by_distance { rank.wrapping_sub(self.cut) } else { rank };
        let level = (chance(key)(levels) + self.turn / 2) % levels;
        (if level == u32::from(value) { (level + 1) % levels } else { level }) as u16
    }
}

impl<'a> Search<'a> {
    fn new(module: &'a Module, buckets: &Buckets, places: &'a [u32], draw: u32) -> Self {
        let values = any_image(module.config.shape, 100 + draw).values().to_vec();
        Self { module, buckets: buckets.together(), places, values, draw }
    }

    fn run(&self, cuts: &[Rank]) -> Result<Option<Leak>, ModelError> {
        let shape = self.module.config.shape;
        let per_step = self.module.config.head.values_per_step(shape).max(1);
        let trials: Vec<_> = trials(self.draw, cuts).into_iter().map(|trial| (trial, trial.cut)).collect();
        let Some(&(any, _)) = trials.first() else { return Ok(None) };
        let plain = self.one(any, shape.values())?;
        for (start, count, padded) in self.buckets.split(trials.len()) {
            let some = trials.get(start..start + count).unwrap_or_default();
            for (changed, &(trial, cut)) in self.parameters(some, padded)?.iter().zip(some) {
                // The step that decides the value at the cut is the last that may not change.
                let last = cut - cut % per_step;
                let differs = |place: u32| difference(self.row(&plain, place), self.row(changed, place)).0 > ROUNDING;
                if let Some(&step) = self.places.iter().take(last as usize + 1).find(|&&place| differs(place)) {
                    return self.narrow(step, trial).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// The value that changes the step at the raster place `step` in `trial`. The images at the two ends of a range differ
    /// within it alone; of its halves, the one whose ends are further apart for that step is kept, until one value
    /// is left.
    fn narrow(&self, step: u32, trial: Trial) -> Result<Leak, ModelError> {
        let shape = self.module.config.shape;
        let row = |from: Rank| Ok::<_, ModelError>(self.row(&self.one(trial, from)?, step).to_vec());
        let (mut low, mut high) = (trial.cut, shape.values());
        let (mut at_low, mut at_high) = (row(low)?, row(high)?);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let at_middle = row(middle)?;
            if difference(&at_low, &at_middle).0 >= difference(&at_middle, &at_high).0 {
                (high, at_high) = (middle, at_middle);
            } else {
                (low, at_low) = (middle, at_middle);
            }
        }
        let (change, number) = difference(&at_low, &at_high);
        let mut at = Place::of(step, shape);
        match self.module.config.head {
            Head::Categorical => {}
            Head::FactorisedCategorical => at.channel = Some(number as u32 / shape.levels()),
            Head::LogisticMixture { .. } => at.channel = None,
        }
        let value = self.places.get(low as usize).copied().unwrap_or_default();
        Ok(Leak { step: at, value: Place::of(value, shape), change })
    }

    /// The parameters of the image of which only the values from the rank `from` on become those of `trial`.
    fn one(&self, trial: Trial, from: Rank) -> Result<Vec<f32>, ModelError> {
        let padded = self.buckets.split(1).first().map_or(1, |&(.., padded)| padded);
        Ok(self.parameters(&[(trial, from)], padded)?.concat())
    }

    /// Of such an image for each of `changes`.
    fn parameters(&self, changes: &[(Trial, Rank)], padded: usize) -> Result<Vec<Vec<f32>>, ModelError> {
        let (shape, order) = (self.module.config.shape, self.module.config.order);
        let image = |&(trial, from): &(Trial, Rank)| {
            let mut values = self.values.clone();
            for (rank, &place) in (0..).zip(self.places).skip(from as usize) {
                if let Some(value) = values.get_mut(place as usize) {
                    *value = trial.other(rank, *value, shape.levels());
                }
            }
            Canvas::from_raster(shape, order, &values).unwrap_or(Canvas::empty(shape))
        };
        passes(self.module, &changes.iter().map(image).collect::<Vec<_>>(), padded, shape.height())
    }

    /// Of the `parameters` of an image, those of the step that decides the raster place `place`.
    fn row<'p>(&self, parameters: &'p [f32], place: u32) -> &'p [f32] {
        let (head, shape) = (self.module.config.head, self.module.config.shape);
        let at = (place / head.values_per_step(shape).max(1)) as usize * head.width(shape);
        parameters.get(at..at + head.width(shape)).unwrap_or_default()
    }
}

/// The levels that come at a place, or at a distance from the cut, of images that hold no such level, in `draws` times `cuts`
/// trials.
#[cfg(test)]
pub(super) fn levels_at(by_distance: bool, key: u32, levels: u32, cuts: u32, draws: u32) -> Vec<u16> {
    let trials = (0..draws).flat_map(|draw| trials(draw, &vec![0; cuts as usize]));
    trials.filter(|trial| trial.by_distance == by_distance).map(|trial| trial.other(key, u16::MAX, levels)).collect()
}

/// The largest difference between numbers at the same place, relative to numbers above 1, and its place.
pub(super) fn difference(a: &[f32], b: &[f32]) -> (f32, usize) {
    let apart = |(a, b): (&f32, &f32)| match (a - b).abs() / a.abs().max(1.0) {
        _ if a == b => 0.0,
        apart if apart.is_nan() => f32::INFINITY,
        apart => apart,
    };
    let differences = a.iter().zip(b).map(apart).zip(0..);
    differences.fold((0.0, 0), |most, other| if other.0 > most.0 { other } else { most })
}

/// Ranks at which to look for a leak: the first, the last, and one by chance in each of `count` parts of the image.
pub(super) fn cuts(values: u32, count: u32) -> Vec<Rank> {
    let mut random = chance(7);
    let edge = |part: u32| (u64::from(part) * u64::from(values) / u64::from(count.max(1))) as Rank;
    let spread = (0..count).map(|part| edge(part) + random((edge(part + 1) - edge(part)).max(1)));
    let mut cuts: Vec<Rank> = (0..FIRST).chain(spread).chain([values - 1]).filter(|&cut| cut < values).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// The raster place of every rank.
pub(super) fn places(shape: Shape, order: Order) -> Vec<u32> {
    (0..shape.values()).map(|rank| order.position(shape, rank).raster(shape)).collect()
}

/// Orders that modules are causal in and that are not served, with their names.
pub(super) fn foreign_orders(shape: Shape) -> [(&'static str, Vec<u32>); 3] {
    let (h, w, c, values) = (shape.height(), shape.width(), shape.channels(), shape.values());
    let pixels = h * w;
    [
        ("column by column", (0..values).map(|rank| (rank / c % h * w + rank / c / h) * c + rank % c).collect()),
        ("channel by channel", (0..values).map(|rank| rank % pixels * c + rank / pixels).collect()),
        ("backwards", (0..values).rev().collect()),
    ]
}
