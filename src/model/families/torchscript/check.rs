//! What is asked of a module before it may serve: that it is a function, looks at nothing that is still to come, and does
//! what its manifest says.

use super::module::Module;
use crate::error::Violations;
use crate::image::{Canvas, Order, Rank, Shape};
use crate::model::{Condition, ModelError};

/// Ranks from which on an image is changed to see what looks at them, when a package is loaded.
const CUTS: u32 = 24;
/// Steps of a module with a state that are held to its own pass.
const STEPS: u32 = 64;
/// How far two parameters may be apart that should be one: rounding, relative to numbers above 1.
const ROUNDING: f32 = 1e-4;

/// Sizes of batches in which an image has the same bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Buckets {
    /// Ascending, not empty.
    sizes: Vec<usize>,
    /// Whether images go one at a time: those that need other rows have other shapes.
    alone: bool,
}

impl Buckets {
    /// One size.
    pub(super) fn of(size: usize) -> Self {
        Self { sizes: vec![size], alone: false }
    }

    /// How to evaluate `images`: of each batch the first of them, how many, and the size to fill it up to.
    pub(super) fn split(&self, images: usize) -> Vec<(usize, usize, usize)> {
        let mut batches = Vec::new();
        let mut start = 0;
        while start < images {
            let left = if self.alone { 1 } else { images - start };
            let size = self.sizes.iter().find(|&&size| size >= left).or(self.sizes.last()).copied().unwrap_or(1);
            let count = left.min(size).max(1);
            batches.push((start, count, size));
            start += count;
        }
        batches
    }
}

/// Checks `module` and finds in which batches its images keep their bits, of at most about `largest`.
pub(super) fn check(module: &Module, largest: u32) -> Result<Buckets, Violations> {
    let refused = |error: ModelError| Violations::one("architecture", error.to_string());
    let buckets = buckets(module, largest as usize).map_err(refused)?;
    let (shape, order) = (module.config.shape, module.config.order);
    let cuts = cuts(shape.values(), CUTS);
    if let Some(leak) = leak(module, &buckets, &places(shape, order), &cuts).map_err(refused)? {
        return Err(Violations::one("weights", leak.to_string()));
    }
    if module.config.prefix {
        check_prefix(module, &buckets).map_err(|why| Violations::one("architecture.prefix", why))?;
    }
    if module.config.incremental {
        check_steps(module, &buckets).map_err(|why| Violations::one("architecture.incremental", why))?;
    }
    Ok(buckets)
}

/// An image of which nothing but chance is known.
pub(super) fn any_image(shape: Shape, seed: u32) -> Canvas {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut value = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(state) * u64::from(shape.levels())) >> 32) as u16
    };
    let values = (0..shape.values()).map(|_| value()).collect();
    Canvas::with_prefix(shape, values).unwrap_or(Canvas::empty(shape))
}

/// The parameters of every image by one pass over all rows.
fn passes(module: &Module, images: &[Canvas], padded: usize, rows: u32) -> Result<Vec<Vec<f32>>, ModelError> {
    let condition = Condition::least(&module.config.condition);
    let batch: Vec<_> = images.iter().cycle().take(padded).map(|image| (image, &condition)).collect();
    let parameters = module.pass(&batch, rows)?;
    (0..images.len() as i64)
        .map(|image| Ok(Vec::<f32>::try_from(parameters.f_get(image)?.f_flatten(0, -1)?)?))
        .collect()
}

/// The parameters of the second step of every image, all together.
fn second_steps(module: &Module, images: &[Canvas]) -> Result<Vec<Vec<f32>>, ModelError> {
    let config = &module.config;
    let per_step = config.head.values_per_step(config.shape).max(1) as usize;
    let state = module.init_state(&Condition::least(&config.condition))?;
    let states = vec![state.as_slice(); images.len()];
    let (_, states) = module.step(&states, &vec![0; per_step * images.len()], &vec![0; images.len()])?;
    let first = images.iter().flat_map(|image| image.values().iter().take(per_step).map(|&value| i64::from(value)));
    let states: Vec<_> = states.iter().map(Vec::as_slice).collect();
    let (rows, _) = module.step(&states, &first.collect::<Vec<_>>(), &vec![1; images.len()])?;
    (0..images.len() as i64).map(|image| Ok(Vec::<f32>::try_from(rows.f_get(image)?)?)).collect()
}

/// The sizes that give an image the same bits as one of them, the reference, and the same wherever it stands in a batch. A
/// pass costs by the image, so its reference is the smallest; a step is cheap beside its weights, so it is the largest.
pub(super) fn buckets(module: &Module, largest: usize) -> Result<Buckets, ModelError> {
    let config = &module.config;
    let (image, other) = (any_image(config.shape, 1), any_image(config.shape, 2));
    let doubling = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|&size| size < largest);
    let mut sizes: Vec<usize> = match config.batches.as_slice() {
        [] => doubling.chain([largest]).collect(),
        given => given.iter().map(|&size| size as usize).collect(),
    };
    let bits = |size: usize| -> Result<[Vec<u32>; 2], ModelError> {
        let mut batch = vec![image.clone()];
        batch.resize(size.max(2) - 1, other.clone());
        batch.push(image.clone());
        batch.truncate(size);
        let given = if config.incremental {
            second_steps(module, &batch)?
        } else {
            passes(module, &batch, size, config.shape.height())?
        };
        let bits = |row: Option<&Vec<f32>>| row.into_iter().flatten().map(|number| number.to_bits()).collect();
        Ok([bits(given.first()), bits(given.last())])
    };
    let smallest = sizes.first().copied().unwrap_or(1);
    let reference = if config.incremental { sizes.last().copied().unwrap_or(1) } else { smallest };
    let [first, last] = bits(reference)?;
    if bits(reference)? != [first.clone(), last.clone()] {
        return Err(ModelError::Step(
            "the module must give the same for the same image; does it still drop out, draw or remember?".to_owned(),
        ));
    }
    if first != last {
        return Err(ModelError::Step(format!(
            "the module gives an image of a batch of {reference} other bits at its beginning than at its end"
        )));
    }
    if config.prefix {
        return Ok(Buckets { sizes: vec![reference], alone: true });
    }
    let mut agreeing = Vec::new();
    for size in sizes.drain(..) {
        if size == reference || bits(size)? == [first.clone(), first.clone()] {
            agreeing.push(size);
        }
    }
    Ok(Buckets { sizes: agreeing, alone: false })
}

/// Whether an image at either end of a batch of `size` gets the same, whatever the others are.
pub(super) fn apart(module: &Module, size: usize) -> Result<bool, ModelError> {
    let shape = module.config.shape;
    for place in [0, size.saturating_sub(1)] {
        let beside = |other: u32| -> Result<Vec<f32>, ModelError> {
            let image = |at: usize| any_image(shape, if at == place { 1 } else { other });
            let given = passes(module, &(0..size).map(image).collect::<Vec<_>>(), size, shape.height())?;
            Ok(given.get(place).cloned().unwrap_or_default())
        };
        if !close(&beside(2)?, &beside(3)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A step that looks at what it must not know. Places are those in raster order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the module looks at what is still to come: the parameters at {} change with the values from {} on",
    position(*.step, *.shape), position(*.cut, *.shape)
)]
pub(super) struct Leak {
    pub(super) step: u32,
    pub(super) cut: u32,
    shape: Shape,
}

fn position(place: u32, shape: Shape) -> String {
    let position = Order::Raster.position(shape, place);
    format!("row {}, column {}, channel {}", position.row, position.column, position.channel)
}

/// Looks for a step that changes with a value it must not know. In the order of `places`, which holds the raster place of
/// every rank, all values from each of `cuts` on are changed, which may change the parameters of later steps alone.
pub(super) fn leak(
    module: &Module,
    buckets: &Buckets,
    places: &[u32],
    cuts: &[Rank],
) -> Result<Option<Leak>, ModelError> {
    let config = &module.config;
    let (shape, levels) = (config.shape, config.shape.levels());
    let (width, per_step) = (config.head.width(shape), config.head.values_per_step(shape).max(1));
    let raster = any_image(shape, 3).values().to_vec();
    let canvas = |raster: &[u16]| Canvas::from_raster(shape, config.order, raster).unwrap_or(Canvas::empty(shape));
    let together = Buckets { alone: false, ..buckets.clone() };
    let mut plain = Vec::new();
    for (_, _, padded) in together.split(1) {
        plain = passes(module, &[canvas(&raster)], padded, shape.height())?.concat();
    }
    let row = |image: &[f32], place: u32| -> Vec<f32> {
        let at = (place / per_step) as usize * width;
        image.get(at..at + width).unwrap_or_default().to_vec()
    };
    for (start, count, padded) in together.split(cuts.len()) {
        let some = cuts.get(start..start + count).unwrap_or_default();
        let changed = |&cut: &Rank| {
            let mut changed = raster.clone();
            for &place in places.iter().skip(cut as usize) {
                if let Some(value) = changed.get_mut(place as usize) {
                    // By more than one, so that no scale makes it small; to another level in any case.
                    *value = ((u32::from(*value) + 1 + levels / 3) % levels) as u16;
                }
            }
            canvas(&changed)
        };
        let images: Vec<_> = some.iter().map(changed).collect();
        for (parameters, &cut) in passes(module, &images, padded, shape.height())?.iter().zip(some) {
            // The step that decides the value at the cut is the last that may not change.
            let last = cut - cut % per_step;
            let mut early = places.iter().take(last as usize + 1);
            if let Some(&step) = early.find(|&&place| !close(&row(&plain, place), &row(parameters, place))) {
                let cut = places.get(cut as usize).copied().unwrap_or_default();
                return Ok(Some(Leak { step, cut, shape }));
            }
        }
    }
    Ok(None)
}

/// Ranks at which to look for a leak: every channel of the first pixels, where an image is often treated otherwise, some
/// everywhere, and the last.
pub(super) fn cuts(values: u32, count: u32) -> Vec<Rank> {
    let spaced = (0..count).map(|cut| (u64::from(cut) * u64::from(values) / u64::from(count.max(1))) as Rank);
    let mut cuts: Vec<Rank> = (0..6.min(values)).chain(spaced).chain([values - 1]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// The raster place of every rank.
pub(super) fn places(shape: Shape, order: Order) -> Vec<u32> {
    (0..shape.values()).map(|rank| order.position(shape, rank).raster(shape)).collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    let near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= ROUNDING * a.abs().max(1.0);
    a.len() == b.len() && a.iter().zip(b).all(near)
}

/// Holds passes over the first rows to the pass over all.
pub(super) fn check_prefix(module: &Module, buckets: &Buckets) -> Result<(), String> {
    let image = [any_image(module.config.shape, 4)];
    let padded = buckets.sizes.first().copied().unwrap_or(1);
    let height = module.config.shape.height();
    let pass = |rows: u32| passes(module, &image, padded, rows).map(|rows| rows.concat());
    let whole = pass(height).map_err(|error| error.to_string())?;
    for rows in [1, height.div_ceil(2), height] {
        let part = pass(rows).map_err(|error| format!("must be false: the module fails at {rows} rows: {error}"))?;
        if !close(&part, whole.get(..part.len()).unwrap_or_default()) {
            return Err(format!("must be false: the first {rows} rows alone give other parameters"));
        }
    }
    Ok(())
}

/// Holds the first steps to the pass.
pub(super) fn check_steps(module: &Module, buckets: &Buckets) -> Result<(), String> {
    let config = &module.config;
    let (shape, per_step) = (config.shape, config.head.values_per_step(config.shape).max(1));
    let image = any_image(shape, 5);
    let width = config.head.width(shape);
    let padded = buckets.sizes.first().copied().unwrap_or(1);
    let described = |error: ModelError| error.to_string();
    let whole = passes(module, std::slice::from_ref(&image), padded, shape.height()).map_err(described)?.concat();
    let condition = Condition::least(&config.condition);
    let mut state = module.init_state(&condition).map_err(described)?;
    let mut previous = vec![0; per_step as usize];
    for rank in (0..shape.values()).step_by(per_step as usize).take(STEPS as usize) {
        let states = vec![state.as_slice(); padded];
        let steps = vec![i64::from(rank / per_step); padded];
        let given = previous.repeat(padded);
        let (row, after) = module.step(&states, &given, &steps).map_err(described)?;
        let row = row.f_get(0).and_then(Vec::<f32>::try_from).map_err(|error| error.to_string())?;
        let at = (config.order.position(shape, rank).raster(shape) / per_step) as usize * width;
        if !close(&row, whole.get(at..at + width).unwrap_or_default()) {
            return Err(format!("must be false: the step at rank {rank} gives other parameters than forward"));
        }
        let decided = image.values().get(rank as usize..(rank + per_step) as usize).unwrap_or_default();
        previous = decided.iter().map(|&value| i64::from(value)).collect();
        state = after.into_iter().next().ok_or("step gives no state")?;
    }
    Ok(())
}
