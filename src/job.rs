//! One request's work, checked against the model's spec before anything is queued.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Violations};
use crate::head::Tuning;
use crate::image::{Canvas, Rank};
use crate::model::Condition;
use crate::spec::{ConditionSpec, ModelSpec};

/// Queue class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Someone is watching.
    #[default]
    Interactive,
    /// Throughput work: admitted after the interactive class, apart from a small guaranteed share.
    Batch,
}

impl Class {
    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::Interactive => "interactive",
            Class::Batch => "batch",
        }
    }
}

/// What a seed promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reproducibility {
    /// Same seed and revision, same bytes, whatever else is in the batch; a known prefix leaves the bits that sampling it would.
    #[default]
    BatchInvariant,
    /// Same seed, same batch, same build. A known prefix is taken in by the faster parallel pass.
    BestEffort,
}

/// How much of an image the reader wants to be woken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granularity {
    /// Every channel value.
    #[default]
    Value,
    /// Every pixel.
    Pixel,
    /// Every row of pixels.
    Row,
}

/// What a request may ask for at most; from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Images one sampling request may ask for.
    pub images_per_request: u32,
    /// Items one unary scoring request may hold.
    pub items_per_request: u32,
    /// Longest wait for the first value, or for a score; a request may only ask for less.
    pub queue_timeout: Duration,
    /// How long an answer may wait to be read before its work is stopped.
    pub unread_timeout: Duration,
}

impl Limits {
    /// The largest that either may be: what a message is made of takes memory before it can be counted.
    pub const MOST: u32 = 1 << 16;
    /// The longest that the first value of a request may be waited for.
    pub const LONGEST_QUEUE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
}

/// A sampling request as it came, every number unchecked.
#[derive(Clone, Debug, Default)]
pub struct SampleRequest {
    /// Images wanted; `None` means 1.
    pub image_count: Option<u32>,
    /// Index of the first image in the noise key.
    pub first_image_index: u32,
    /// Class label.
    pub class_label: Option<u32>,
    /// Values of the low-resolution image in raster order; `None`: draw one, where the model can have that done.
    pub low_resolution: Option<Vec<u16>>,
    /// Known first values in raw form, in the model's order; kept verbatim in every image.
    pub prefix: Vec<u8>,
    /// See [`Tuning::new`].
    pub temperature: Option<f32>,
    /// See [`Tuning::new`].
    pub top_k: Option<u32>,
    /// See [`Tuning::new`].
    pub top_p: Option<f32>,
    /// Seed; `None` lets the caller's `fresh_seed` decide.
    pub seed: Option<u64>,
    /// The promise wanted.
    pub reproducibility: Reproducibility,
    /// Queue class.
    pub class: Class,
    /// How often the reader is woken.
    pub granularity: Granularity,
    /// Longest acceptable wait for the first value.
    pub queue_timeout: Option<Duration>,
}

impl SampleRequest {
    /// Checks what does not depend on the model, and gives the number of images and how values are drawn.
    pub fn check(&self, limits: &Limits, violations: &mut Violations) -> (u32, Tuning) {
        let images = self.image_count.unwrap_or(1);
        if !(1..=limits.images_per_request).contains(&images) {
            violations.add("image_count", format!("must be 1..={}, got {images}", limits.images_per_request));
        }
        let (first, highest) = (self.first_image_index, u32::MAX - (images.max(1) - 1));
        if first > highest {
            violations.add("first_image_index", format!("must be at most {highest} for {images} images, got {first}"));
        }
        let tuning = Tuning::new(self.temperature, self.top_k, self.top_p).unwrap_or_else(|found| {
            violations.add_within("sampling", found);
            Tuning::default()
        });
        (images, tuning)
    }
}

/// Images to sample; one that exists fits the model it was checked against.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleJob {
    /// Images, at least 1.
    pub images: u32,
    /// Index of the first image in the noise key; the last one's index fits 32 bits.
    pub first_image: u32,
    /// Conditioning of every image. Where the model takes a low-resolution image, it is missing here only while it is to be
    /// drawn, and where `lows` has one for each image.
    pub condition: Condition,
    /// The low-resolution image of each image, where they were drawn for it; otherwise empty.
    pub lows: Vec<Arc<[u16]>>,
    /// Known first values of every image.
    pub prefix: Canvas,
    /// How values are drawn.
    pub tuning: Tuning,
    /// Seed of the noise.
    pub seed: u64,
    /// Rank in the noise of the first value, and of the others from there: 0, but for the first of two stages.
    pub noise_from: Rank,
    /// The promise.
    pub reproducibility: Reproducibility,
    /// Queue class.
    pub class: Class,
    /// How often the reader is woken.
    pub granularity: Granularity,
    /// Longest wait for the first value.
    pub queue_timeout: Option<Duration>,
}

impl SampleJob {
    /// Checks `request` against `spec` and `limits`. Field paths are those of `pixeld.v1.GenerationSpec`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every violation.
    pub fn new(
        request: SampleRequest,
        spec: &ModelSpec,
        limits: &Limits,
        fresh_seed: impl FnOnce() -> u64,
    ) -> Result<Self, Error> {
        let mut violations = Violations::new();
        let (images, tuning) = request.check(limits, &mut violations);
        // An image that another model can draw need not be there.
        let drawn = request.low_resolution.is_none() && spec.low_model.is_some();
        let taken = ConditionSpec { low: spec.condition.low.filter(|_| !drawn), ..spec.condition };
        let condition = check_condition(request.class_label, request.low_resolution, &taken, &mut violations);
        let prefix = check_prefix(&request.prefix, spec, &mut violations);
        violations.into_result(())?;
        Ok(Self {
            images,
            first_image: request.first_image_index,
            condition,
            lows: Vec::new(),
            prefix,
            tuning,
            seed: request.seed.unwrap_or_else(fresh_seed),
            noise_from: 0,
            reproducibility: request.reproducibility,
            class: request.class,
            granularity: request.granularity,
            queue_timeout: request.queue_timeout,
        })
    }

    /// The job that draws the low-resolution images of this one with a model of `lower`. Whoever waits for both keeps the
    /// time.
    #[must_use]
    pub fn first_stage(&self, lower: &ModelSpec) -> Self {
        Self {
            condition: Condition { class: self.condition.class.filter(|_| lower.condition.classes > 0), low: None },
            prefix: Canvas::empty(lower.shape),
            // Behind the ranks of the images themselves, so that the stages never share a number.
            noise_from: self.prefix.shape().values(),
            // Only the end is waited for.
            granularity: Granularity::Row,
            queue_timeout: None,
            ..self.clone()
        }
    }

    /// Conditioning of image `index`.
    #[must_use]
    pub fn condition_of(&self, index: u32) -> Condition {
        let own = self.lows.get(index as usize).cloned();
        Condition { low: own.or_else(|| self.condition.low.clone()), class: self.condition.class }
    }
}

/// Images to score; one that exists fits the model it was checked against.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreJob {
    /// Complete images with their conditioning, at least one.
    pub items: Vec<(Canvas, Condition)>,
    /// Whether the log-probability of every value is wanted beside the total.
    pub per_value: bool,
    /// Queue class.
    pub class: Class,
}

/// Checks a class label and the values of a low-resolution image against what the model takes, under
/// `conditioning.class_label` and `conditioning.low_resolution`.
pub fn check_condition(
    class: Option<u32>,
    low: Option<Vec<u16>>,
    spec: &ConditionSpec,
    violations: &mut Violations,
) -> Condition {
    const FIELD: &str = "conditioning.class_label";
    const LOW: &str = "conditioning.low_resolution";
    match class {
        Some(label) if spec.classes == 0 => {
            violations.add(FIELD, format!("the model takes no class label, got {label}"))
        }
        Some(label) if label >= spec.classes => {
            violations.add(FIELD, format!("must be 0..={}, got {label}", spec.classes - 1))
        }
        None if spec.class_required => {
            violations.add(FIELD, format!("the model needs a class label, 0..={}", spec.classes.saturating_sub(1)))
        }
        _ => {}
    }
    match (&low, spec.low) {
        (Some(_), None) => violations.add(LOW, "the model takes no low-resolution image"),
        (None, Some(shape)) => {
            let (height, width) = (shape.height(), shape.width());
            violations.add(LOW, format!("the model needs a low-resolution image of {height} x {width}"));
        }
        (Some(values), Some(shape)) => {
            let (wanted, levels) = (shape.values(), shape.levels());
            if values.len() != wanted as usize || values.iter().any(|&value| u32::from(value) >= levels) {
                violations.add(LOW, format!("must be {wanted} values of 0..={}, got {}", levels - 1, values.len()));
            }
        }
        (None, None) => {}
    }
    Condition { class, low: low.map(Into::into) }
}

fn check_prefix(raw: &[u8], spec: &ModelSpec, violations: &mut Violations) -> Canvas {
    const FIELD: &str = "conditioning.prefix";
    let shape = spec.shape;
    // A whole image leaves nothing to sample, so the longest prefix is one step short of it.
    let longest = shape.raw_bytes() - spec.values_per_step() as usize * shape.bytes_per_value();
    let unit = spec.values_per_step() as usize * shape.bytes_per_value();
    if raw.len() > longest || !raw.len().is_multiple_of(unit) {
        violations.add(FIELD, format!("must be at most {longest} bytes, in multiples of {unit}, got {}", raw.len()));
        return Canvas::empty(shape);
    }
    match crate::image::codec::values_from_raw(raw, shape) {
        Ok(values) => Canvas::with_prefix(shape, values).unwrap_or_else(|| Canvas::empty(shape)),
        Err(description) => {
            violations.add(FIELD, description);
            Canvas::empty(shape)
        }
    }
}
