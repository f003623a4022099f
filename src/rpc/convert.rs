//! From what came over the wire to checked jobs: every broken rule is collected, under the path of its field.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::proto;
use super::running::{Entry, Running};
use crate::engine::catalogue::Catalogue;
use crate::engine::{Handle, Kind, Permit, SampleStream};
use crate::error::{Error, Violations};
use crate::image::{Canvas, Palette, Rank, Shape, codec};
use crate::job::{self, Class, Granularity, Limits, Reproducibility, SampleJob, SampleRequest};
use crate::model::Condition;
use crate::spec::ModelSpec;

/// Characters of a name that is not known which are logged.
const MAX_LOGGED: usize = 100;
/// Bytes one unary answer may hold: what a client must be ready to receive.
pub(super) const MAX_ANSWER_BYTES: u64 = 16 << 20;

const MAX_REQUEST_ID: usize = 64;
const MAX_ITEM_ID: usize = 256;
/// Longest client text quoted back.
const MAX_QUOTED: usize = 40;
const LONGEST_MAX_DELAY: Duration = Duration::from_secs(3600);

/// A generation request that fits its model and has its places in the queue.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) handle: Handle,
    pub(super) permit: Permit,
    /// Draws the low-resolution images, if the request leaves that to us.
    pub(super) lower: Option<(Handle, Permit)>,
    pub(super) job: SampleJob,
    pub(super) entry: Entry,
}

impl Generation {
    /// Queues the job, or both jobs if there are two stages. While the entry lives, no other request may have its id.
    ///
    /// # Errors
    /// What [`Handle::sample_admitted`] says.
    pub(super) fn sample(self, deadline: Option<Instant>) -> Result<(SampleStream, Entry), Error> {
        let Self { handle, permit, lower, job, entry } = self;
        let stream = match lower {
            Some((lower, first)) => handle.sample_admitted(permit, Some((&lower, first)), job, deadline),
            None => handle.sample_admitted(permit, None, job, deadline),
        };
        Ok((stream?, entry))
    }

    /// The shape of the low-resolution images that are drawn.
    pub(super) fn drawn_shape(&self) -> Option<Shape> {
        self.lower.as_ref().map(|(lower, _)| lower.spec().shape)
    }
}

/// How a stream is to be cut into messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flush {
    pub(super) granularity: Granularity,
    pub(super) max_delay: Option<Duration>,
}

/// Scheduling wishes, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scheduling {
    pub(super) class: Class,
    pub(super) queue_timeout: Duration,
}

/// Checks a [`proto::FlushPolicy`] under `flush`.
pub(super) fn flush(policy: Option<proto::FlushPolicy>, violations: &mut Violations) -> Flush {
    let policy = policy.unwrap_or_default();
    let granularity = match known_enum(policy.granularity, "flush.granularity", violations) {
        proto::Granularity::Unspecified | proto::Granularity::Value => Granularity::Value,
        proto::Granularity::Pixel => Granularity::Pixel,
        proto::Granularity::Row => Granularity::Row,
    };
    let max_delay = duration(policy.max_delay, "flush.max_delay", Duration::ZERO, LONGEST_MAX_DELAY, violations);
    Flush { granularity, max_delay }
}

/// Checks an encoding under `field`.
pub(super) fn encoding(given: i32, field: &str, violations: &mut Violations) -> proto::ImageEncoding {
    match known_enum(given, field, violations) {
        proto::ImageEncoding::Unspecified => proto::ImageEncoding::Raw,
        known => known,
    }
}

/// What a generation request meets before it is decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Desk<'a> {
    pub(super) catalogue: &'a Catalogue,
    pub(super) limits: &'a Limits,
    pub(super) running: &'a Running,
}

/// Checks a [`proto::GenerationSpec`] under `spec`, on top of what is in `violations` already. Its images have their places
/// before a prefix or an image of it is decoded, so that a full queue costs nothing but the message.
///
/// # Errors
/// [`Error::Invalid`] with all that is wrong; [`Error::AlreadyRunning`]; what [`Catalogue::resolve`] and [`Handle::admit`] say,
/// of the model that draws low-resolution images too; [`Error::DeadlineInfeasible`].
pub(super) fn generation(
    spec: Option<proto::GenerationSpec>,
    granularity: Granularity,
    desk: Desk<'_>,
    deadline: Option<Instant>,
    mut violations: Violations,
) -> Result<Generation, Error> {
    let (spec, limits) = (spec.unwrap_or_default(), desk.limits);
    // First, so that the log has it whatever is wrong with the model.
    let mut of_the_id = Violations::new();
    let request_id = request_id(spec.request_id, &mut of_the_id);
    let handle = resolve(&spec.model, desk.catalogue, &mut violations)?;
    violations.add_all(of_the_id);
    let scheduling = scheduling(spec.scheduling, limits, &mut violations);
    let sampling = spec.sampling.unwrap_or_default();
    let conditioning = spec.conditioning.unwrap_or_default();
    let reproducibility = match known_enum(sampling.reproducibility, "spec.sampling.reproducibility", &mut violations) {
        proto::Reproducibility::BestEffort => Reproducibility::BestEffort,
        proto::Reproducibility::Unspecified | proto::Reproducibility::BatchInvariant => Reproducibility::BatchInvariant,
    };
    let entry = desk.running.enter(request_id)?;
    let admitted = match handle {
        Some(handle) => {
            let lower = handle.spec().low_model.as_ref().filter(|_| conditioning.low_resolution.is_none());
            let lower = lower.map(|name| desk.catalogue.resolve(name)).transpose();
            // What is wrong with the request itself is wrong whoever serves.
            let lower = lower.or_else(|error| std::mem::take(&mut violations).into_result(Err(error))?)?;
            // A number that is out of range is named with all else that is wrong.
            let images = spec.image_count.unwrap_or(1).clamp(1, limits.images_per_request);
            let known = conditioning.prefix.len() / handle.spec().shape.bytes_per_value();
            let wanted = Wanted { images, class: scheduling.class, known: known as Rank, deadline };
            Some(wanted.admit(handle, lower)?)
        }
        None => None,
    };
    let mut found = Violations::new();
    let low_resolution = admitted
        .as_ref()
        .and_then(|(handle, ..)| low_resolution(conditioning.low_resolution.as_ref(), handle.spec(), &mut found));
    violations.add_within("spec", found);
    let request = SampleRequest {
        image_count: spec.image_count,
        first_image_index: spec.first_image_index,
        class_label: conditioning.class_label,
        low_resolution,
        prefix: conditioning.prefix.into(),
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        seed: sampling.seed,
        reproducibility,
        class: scheduling.class,
        granularity,
        queue_timeout: Some(scheduling.queue_timeout),
    };
    let Some((handle, permit, lower)) = admitted else {
        let mut found = Violations::new();
        request.check(limits, &mut found);
        violations.add_within("spec", found);
        return Err(violations.into());
    };
    match SampleJob::new(request, handle.spec(), limits, fresh_seed) {
        Ok(job) => {
            violations.into_result(())?;
            Ok(Generation { handle, permit, lower, job, entry })
        }
        Err(Error::Invalid(found)) => {
            violations.add_within("spec", found);
            Err(violations.into())
        }
        Err(other) => Err(other),
    }
}

/// What a generation asks of the engines.
struct Wanted {
    images: u32,
    class: Class,
    /// Values of each image that come with the request.
    known: Rank,
    deadline: Option<Instant>,
}

/// An engine with places in it, and the same of the model that draws low-resolution images, where it does.
type Admitted = (Handle, Permit, Option<(Handle, Permit)>);

impl Wanted {
    fn admit(&self, handle: Handle, lower: Option<Handle>) -> Result<Admitted, Error> {
        let &Self { images, class, known, deadline } = self;
        let estimate = |handle: &Handle, known| handle.estimate(Kind::Sampling, images, class, known);
        let estimates = [estimate(&handle, known), lower.as_ref().and_then(|lower| estimate(lower, 0))];
        let admit = |handle: &Handle| handle.admit(Kind::Sampling, images, class).map_err(within_spec);
        // First the model that was asked for: whoever drains it between the stages finds the job admitted.
        let permit = admit(&handle)?;
        let lower = match lower {
            Some(lower) => Some((lower.clone(), admit(&lower)?)),
            None => None,
        };
        check_deadline(deadline, estimates.into_iter().flatten().reduce(Duration::saturating_add))?;
        Ok((handle, permit, lower))
    }
}

/// Refuses at once what would be given up at its deadline.
///
/// # Errors
/// [`Error::DeadlineInfeasible`].
pub(super) fn check_deadline(deadline: Option<Instant>, estimate: Option<Duration>) -> Result<(), Error> {
    match (deadline, estimate) {
        (Some(deadline), Some(estimate)) if deadline.saturating_duration_since(Instant::now()) < estimate => {
            Err(Error::DeadlineInfeasible { estimate })
        }
        _ => Ok(()),
    }
}

/// `error` with the fields it names put under `spec`: what lies below the wire does not know where it stood.
fn within_spec(error: Error) -> Error {
    match error {
        Error::Invalid(found) => {
            let mut violations = Violations::new();
            violations.add_within("spec", found);
            violations.into()
        }
        other => other,
    }
}

/// The model of a spec; `None` if the choice itself breaks a rule, which is in `violations` then.
pub(super) fn resolve(name: &str, catalogue: &Catalogue, violations: &mut Violations) -> Result<Option<Handle>, Error> {
    match catalogue.resolve(name) {
        Ok(handle) => {
            tracing::Span::current().record("model", handle.spec().name.as_str());
            Ok(Some(handle))
        }
        Err(Error::Invalid(found)) => {
            violations.add_within("spec", found);
            Ok(None)
        }
        Err(other) => {
            tracing::Span::current().record("model", super::status::cut(name, MAX_LOGGED));
            Err(other)
        }
    }
}

/// Checks [`proto::SchedulingParams`] under `spec.scheduling`.
pub(super) fn scheduling(
    given: Option<proto::SchedulingParams>,
    limits: &Limits,
    violations: &mut Violations,
) -> Scheduling {
    let given = given.unwrap_or_default();
    let class = match known_enum(given.priority, "spec.scheduling.priority", violations) {
        proto::Priority::Unspecified | proto::Priority::Interactive => Class::Interactive,
        proto::Priority::Batch => Class::Batch,
    };
    const FIELD: &str = "spec.scheduling.queue_timeout";
    let shortest = Duration::from_nanos(1);
    let longest = Limits::LONGEST_QUEUE_TIMEOUT;
    let wanted = duration(given.queue_timeout, FIELD, shortest, longest, violations);
    // Whatever the client asks for, it does not wait longer than the operator lets it.
    let queue_timeout = wanted.map_or(limits.queue_timeout, |wanted| wanted.min(limits.queue_timeout));
    Scheduling { class, queue_timeout }
}

/// Checks one image to score and its conditioning under `path`, for example `items[3]`. `None` if anything was wrong.
pub(super) fn score_item(
    item: &proto::ScoreItem,
    path: &str,
    spec: &ModelSpec,
    violations: &mut Violations,
) -> Option<(Canvas, Condition)> {
    let mut found = Violations::new();
    if item.item_id.len() > MAX_ITEM_ID {
        found.add("item_id", format!("must be at most {MAX_ITEM_ID} bytes, got {}", item.item_id.len()));
    }
    let conditioning = item.conditioning.clone().unwrap_or_default();
    if !conditioning.prefix.is_empty() {
        let bytes = conditioning.prefix.len();
        found.add("conditioning.prefix", format!("must be empty where an image is scored, got {bytes} bytes"));
    }
    let condition = {
        let low = low_resolution(conditioning.low_resolution.as_ref(), spec, &mut found);
        job::check_condition(conditioning.class_label, low, &spec.condition, &mut found)
    };
    let canvas = match &item.image {
        // The codec has checked number and range, so the canvas is there.
        Some(image) => raster(image, "image", (spec.shape, spec.palette.as_deref()), &mut found)
            .and_then(|raster| Canvas::from_raster(spec.shape, spec.order, &raster)),
        None => {
            found.add("image", "must be there");
            None
        }
    };
    let whole = found.is_empty();
    violations.add_within(path, found);
    canvas.filter(|_| whole).map(|canvas| (canvas, condition))
}

/// The values of a low-resolution image, of which [`job::check_condition`] says whether it may be there.
fn low_resolution(given: Option<&proto::Image>, spec: &ModelSpec, violations: &mut Violations) -> Option<Vec<u16>> {
    let given = given?;
    let Some(shape) = spec.condition.low else { return Some(Vec::new()) };
    // One that cannot be read has been named, and need not be called missing too.
    let unreadable = || vec![0; shape.values() as usize];
    Some(raster(given, "conditioning.low_resolution", (shape, None), violations).unwrap_or_else(unreadable))
}

/// The values of `image`, which must be of `shape`, in raster order.
fn raster(
    image: &proto::Image,
    field: &str,
    (shape, palette): (Shape, Option<&Palette>),
    violations: &mut Violations,
) -> Option<Vec<u16>> {
    let wanted = super::answer::shape(shape);
    if let Some(given) = image.shape
        && given != wanted
    {
        violations.add(format!("{field}.shape"), format!("must be {}, got {}", describe(wanted), describe(given)));
    }
    let raster = match encoding(image.encoding, &format!("{field}.encoding"), violations) {
        proto::ImageEncoding::Png => codec::decode_png(&image.data, shape, palette),
        _ => raw_raster(&image.data, shape),
    };
    raster.map_err(|description| violations.add(format!("{field}.data"), description)).ok()
}

fn raw_raster(data: &[u8], shape: Shape) -> Result<Vec<u16>, String> {
    if data.len() != shape.raw_bytes() {
        return Err(format!("must be {} bytes, got {}", shape.raw_bytes(), data.len()));
    }
    codec::values_from_raw(data, shape)
}

fn describe(shape: proto::ImageShape) -> String {
    let proto::ImageShape { height, width, channels, levels } = shape;
    format!("{height}x{width}x{channels} with {levels} levels")
}

/// The given id if it keeps the rule, a UUID4 if there is none.
fn request_id(given: String, violations: &mut Violations) -> String {
    let fits = check_request_id(&given, "spec.request_id", violations);
    let id = if fits && !given.is_empty() { given } else { Uuid::new_v4().to_string() };
    tracing::Span::current().record("request_id", id.as_str());
    id
}

/// Checks the name of a request that may run.
///
/// # Errors
/// It is none, or no request can have it.
pub(super) fn running_id(given: &str) -> Result<(), Violations> {
    if given.is_empty() {
        return Err(Violations::one("request_id", "must name a request, got nothing"));
    }
    let mut violations = Violations::new();
    if check_request_id(given, "request_id", &mut violations) {
        tracing::Span::current().record("request_id", given);
    }
    violations.into_result(())
}

/// Whether `given` keeps the rule; what it breaks is added under `field`.
fn check_request_id(given: &str, field: &str, violations: &mut Violations) -> bool {
    let fits = given.len() <= MAX_REQUEST_ID
        && given.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !fits {
        let quoted: String = given.chars().take(MAX_QUOTED).collect();
        violations.add(
            field,
            format!("must be up to {MAX_REQUEST_ID} of A-Z a-z 0-9 - _ . , got {} bytes: {quoted:?}", given.len()),
        );
    }
    fits
}

/// The operating system's randomness, by way of the library that already draws from it. A UUID4 has six fixed bits of
/// 128, so its two halves are folded.
fn fresh_seed() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high.rotate_left(32) ^ low
}

/// `given` as the enum it should be, its zero value if it is out of range.
pub(super) fn known_enum<E: TryFrom<i32> + Default>(given: i32, field: &str, violations: &mut Violations) -> E {
    E::try_from(given).unwrap_or_else(|_| {
        violations.add(field, format!("must be a value of the enum, got {given}"));
        E::default()
    })
}

pub(super) fn duration(
    given: Option<prost_types::Duration>,
    field: &str,
    shortest: Duration,
    longest: Duration,
    violations: &mut Violations,
) -> Option<Duration> {
    let given = given?;
    let whole = u64::try_from(given.seconds).ok();
    let nanos = u32::try_from(given.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    let checked = whole.zip(nanos).map(|(whole, nanos)| Duration::new(whole, nanos));
    let checked = checked.filter(|duration| (shortest..=longest).contains(duration));
    if checked.is_none() {
        let rule = if shortest.is_zero() { "not be negative" } else { "be above 0" };
        let (seconds, nanos) = (given.seconds, given.nanos);
        violations
            .add(field, format!("must {rule} and be at most {} s, got {seconds} s and {nanos} ns", longest.as_secs()));
    }
    checked
}
