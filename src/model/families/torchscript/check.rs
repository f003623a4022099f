//! What is asked of a module before it may serve: that it is a function, looks at nothing that is still to come, and does
//! what its manifest says.

use super::leak::{cuts, difference, leak, places};
use super::module::Module;
use super::pattern::Axis;
use crate::error::Violations;
use crate::head::Head;
use crate::image::{Canvas, Shape};
use crate::machine;
use crate::model::{Condition, ModelError};

/// Ranks from which on an image is changed to see what looks at them, when a package is loaded; and how often each.
const CUTS: u32 = 12;
const DRAWS: u32 = 2;
/// Steps of a module with a state that are held to its own pass.
const STEPS: u32 = 64;
/// What a batch may be larger than one whose memory was measured, since that tells what the larger one takes.
const LARGER: usize = 8;
/// How often memory that seems not to be enough is measured: what others take meanwhile is counted too.
const MEASUREMENTS: usize = 3;
/// How far two parameters may be apart that should be one: rounding, relative to numbers above 1.
pub(super) const ROUNDING: f32 = 1e-4;
/// How far from 1 the sum of probabilities may be.
const OF_ONE: f32 = 1e-3;

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

    /// The same, with as many images together as they hold.
    pub(super) fn together(&self) -> Self {
        Self { alone: false, ..self.clone() }
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
    let sizes = affordable(module, sizes(module, largest as usize), machine::free_memory())?;
    check_labels(module, sizes.first().copied().unwrap_or(1))?;
    let buckets = buckets(module, sizes).map_err(refused)?;
    if numbers(module, &buckets).map_err(refused)? == Numbers::Probabilities {
        return Err(Violations::one("weights", PROBABILITIES));
    }
    let (shape, order) = (module.config.shape, module.config.order);
    let cuts = cuts(shape.values(), CUTS);
    if let Some(leak) = leak(module, &buckets, &places(shape, order), &cuts, DRAWS).map_err(refused)? {
        return Err(Violations::one("weights", leak.to_string()));
    }
    let must_be_false = |key: &str, why| Violations::one(key, format!("must be false: {why}"));
    if module.config.prefix {
        check_prefix(module, &buckets).map_err(|why| must_be_false("architecture.prefix", why))?;
    }
    if module.config.incremental {
        check_steps(module, &buckets).map_err(|why| must_be_false("architecture.incremental", why))?;
    }
    Ok(buckets)
}

/// Numbers below a bound each, by chance.
pub(super) fn chance(seed: u32) -> impl FnMut(u32) -> u32 {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    move |bound| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(state) * u64::from(bound)) >> 32) as u32
    }
}

/// An image of which nothing but chance is known.
pub(super) fn any_image(shape: Shape, seed: u32) -> Canvas {
    let mut value = chance(seed);
    let values = (0..shape.values()).map(|_| value(shape.levels()) as u16).collect();
    Canvas::with_prefix(shape, values).unwrap_or(Canvas::empty(shape))
}

/// What the numbers that a module gives seem to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// What a head takes.
    Parameters,
    /// Every row of levels lies within 0..=1 and sums to one.
    Probabilities,
    /// One number a value, all within 0..=1: what a sigmoid gives, or logits by chance.
    PerhapsProbabilities,
}

/// What is said of a module with two answers to a question.
pub(super) const FICKLE: &str =
    "the module must give the same for the same image; does it still drop out, draw or remember?";

/// What is wrong with [`Numbers::Probabilities`].
pub(super) const PROBABILITIES: &str =
    "the module gives probabilities, which sum to one over the levels, and logits are wanted: let it give their log";

/// Looks at what the module gives for some image.
pub(super) fn numbers(module: &Module, buckets: &Buckets) -> Result<Numbers, ModelError> {
    let config = &module.config;
    if matches!(config.head, Head::LogisticMixture { .. }) {
        return Ok(Numbers::Parameters);
    }
    let padded = buckets.sizes.first().copied().unwrap_or(1);
    let given = passes(module, &[any_image(config.shape, 6)], padded, config.shape.height())?.concat();
    let within = |number: &f32| (-ROUNDING..=1.0 + ROUNDING).contains(number);
    let of_one = |row: &[f32]| (row.iter().sum::<f32>() - 1.0).abs() <= OF_ONE;
    Ok(if !given.iter().all(within) {
        Numbers::Parameters
    } else if !config.output.has(Axis::Parameter) {
        Numbers::PerhapsProbabilities
    } else if given.chunks_exact(config.shape.levels() as usize).all(of_one) {
        Numbers::Probabilities
    } else {
        Numbers::Parameters
    })
}

/// The parameters of every image by one pass over all rows.
///
/// # Errors
/// The module fails, or gives what no head takes.
pub(super) fn passes(
    module: &Module,
    images: &[Canvas],
    padded: usize,
    rows: u32,
) -> Result<Vec<Vec<f32>>, ModelError> {
    passes_under(&Condition::least(&module.config.condition), module, images, padded, rows)
}

/// As [`passes`], of images that are conditioned on `condition`.
fn passes_under(
    condition: &Condition,
    module: &Module,
    images: &[Canvas],
    padded: usize,
    rows: u32,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let batch: Vec<_> = images.iter().cycle().take(padded).map(|image| (image, condition)).collect();
    let parameters = module.pass(&batch, rows)?;
    let of_image = |image: i64| -> Result<Vec<f32>, ModelError> {
        let given = Vec::<f32>::try_from(parameters.f_get(image)?.f_flatten(0, -1)?)?;
        let (nan, infinite) =
            (given.iter().any(|number| number.is_nan()), given.iter().any(|number| number.is_infinite()));
        if nan || infinite {
            let what = if nan { "NaN" } else { "infinite numbers" };
            return Err(ModelError::Step(format!("the module gives {what} for an image of random values")));
        }
        Ok(given)
    };
    (0..images.len() as i64).map(of_image).collect()
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

/// Sizes of batches, ascending: those that the manifest names, or any up to `largest`.
fn sizes(module: &Module, largest: usize) -> Vec<usize> {
    let doubling = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|&size| size < largest);
    match module.config.batches.as_slice() {
        [] => doubling.chain([largest]).collect(),
        given => given.iter().map(|&size| size as usize).collect(),
    }
}

/// Those of `sizes` for which `free` bytes of memory are enough, as far as smaller batches show what the module takes. A
/// module that takes no smaller ones does not show it.
///
/// # Errors
/// There are none, or there was no memory for a smaller batch.
pub(super) fn affordable(module: &Module, sizes: Vec<usize>, free: u64) -> Result<Vec<usize>, Violations> {
    let (shape, largest) = (module.config.shape, sizes.last().copied().unwrap_or(1));
    let spec = &module.config.condition;
    let condition = Condition { class: (spec.classes > 0).then_some(0), ..Condition::least(spec) };
    let (mut size, mut most, mut each) = (1, largest, 0);
    while size < largest {
        let next = largest.min(size * LARGER);
        let enough = |each: u64| each.saturating_mul(next as u64) <= free;
        let mut least = None;
        for _ in 0..MEASUREMENTS {
            let pass = || passes_under(&condition, module, &[any_image(shape, 1)], size, shape.height());
            let (given, grown) = machine::growth(pass);
            match given {
                Err(error @ ModelError::Memory(_)) => return Err(Violations::one("architecture", error.to_string())),
                Err(_) => break,
                Ok(_) => least = least.into_iter().chain(grown.map(|grown| grown / size as u64)).min(),
            }
            if least.is_none_or(enough) {
                break;
            }
        }
        if let Some(least) = least.filter(|&least| !enough(least)) {
            (each, most) = (least, usize::try_from(free / least.max(1)).unwrap_or(usize::MAX).max(size));
            break;
        }
        size = next;
    }
    let kept: Vec<_> = sizes.iter().copied().filter(|&size| size <= most).collect();
    if kept.is_empty() {
        let smallest = sizes.first().copied().unwrap_or(1);
        let rule = format!(
            "may hold sizes up to {most} here: a pass takes {each} bytes an image, {free} are free, got {smallest}"
        );
        return Err(Violations::one("architecture.batches", rule));
    }
    Ok(kept)
}

/// Asks for an image of the first and of the last class, and of none if there need be none, in batches of `padded`.
fn check_labels(module: &Module, padded: usize) -> Result<(), Violations> {
    let (spec, shape) = (&module.config.condition, module.config.shape);
    let Some(last) = spec.classes.checked_sub(1) else { return Ok(()) };
    let none = (!spec.class_required).then_some(None);
    for class in [Some(0), Some(last)].into_iter().chain(none) {
        let condition = Condition { class, ..Condition::least(spec) };
        let whole = passes_under(&condition, module, &[any_image(shape, 8)], padded, shape.height()).map(drop);
        let begun = || module.init_state(&condition).map(drop);
        whole.and_then(|()| if module.config.incremental { begun() } else { Ok(()) }).map_err(|error| match class {
            // A module that takes not even the first has another fault.
            Some(0) => Violations::one("architecture", error.to_string()),
            Some(label) => {
                let rule = format!("must be those of the module, got {}: of label {label}, {error}", spec.classes);
                Violations::one("condition.classes", rule)
            }
            None => Violations::one("architecture.null_class", format!("must be a label of the module: {error}")),
        })?;
    }
    Ok(())
}

/// The `sizes` that give an image the same bits as one of them, the reference, and the same wherever it stands in a batch. A
/// pass costs by the image, so its reference is the smallest; a step is cheap beside its weights, so it is the largest.
fn buckets(module: &Module, sizes: Vec<usize>) -> Result<Buckets, ModelError> {
    let config = &module.config;
    let (image, other) = (any_image(config.shape, 1), any_image(config.shape, 2));
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
        return Err(ModelError::Step(FICKLE.to_owned()));
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
    for size in sizes {
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

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && difference(a, b).0 <= ROUNDING
}

/// Holds passes over the first rows to the pass over all.
pub(super) fn check_prefix(module: &Module, buckets: &Buckets) -> Result<(), String> {
    let image = [any_image(module.config.shape, 4)];
    let padded = buckets.sizes.first().copied().unwrap_or(1);
    let height = module.config.shape.height();
    let pass = |rows: u32| passes(module, &image, padded, rows).map(|rows| rows.concat());
    let whole = pass(height).map_err(|error| error.to_string())?;
    for rows in [1, height.div_ceil(2), height] {
        let part = pass(rows).map_err(|error| format!("the module fails at {rows} rows: {error}"))?;
        if !close(&part, whole.get(..part.len()).unwrap_or_default()) {
            return Err(format!("the first {rows} rows alone give other parameters"));
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
            return Err(format!("the step at rank {rank} gives other parameters than forward"));
        }
        let decided = image.values().get(rank as usize..(rank + per_step) as usize).unwrap_or_default();
        previous = decided.iter().map(|&value| i64::from(value)).collect();
        state = after.into_iter().next().ok_or("step gives no state")?;
    }
    Ok(())
}
