//! `pixeld bench step`: what one decode step takes, beside what it cannot take less than.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use sha2::{Digest, Sha256};

use super::record::{Record, Step, StepTime};
use crate::cli::failure::Failure;
use crate::cli::source::Settings;
use crate::cli::{output, packages};
use crate::decode::native::probe;
use crate::head::Tuning;
use crate::image::Canvas;
use crate::model::manifest::Manifest;
use crate::model::{Condition, FAMILIES, ParamRows, PixelModel, Placement, Slot, StepRow};
use crate::repository::{self, Limits, Source};
use crate::spec::{Backend, StepCost};
use crate::{noise, torch};

/// Models of published sizes with random weights: 32x32x3, 256 levels, blocks of 256 (layers, width, feed-forward width).
const SIZES: &[(&str, [u32; 3])] = &[("it-small", [4, 128, 512]), ("it-base", [12, 512, 2048])];

/// Steps before those that count, in which what is used for the first time is made.
const WARM_UP: u32 = 32;

/// Flags of `pixeld bench step`.
#[derive(Args, Debug)]
#[command(after_help = "\
A step is all that one more value of each of B images takes, or with a mixture one more pixel, its draw included; some
cost more than others, at the start of a row for one, so images/s follow from the mean. The floor is what reading the
weights once and what each image remembers takes at the bandwidth of a buffer that holds all of them, or what the
multiplications take at the peak rate, whichever is more; both are measured in the same run. eta = floor / mean.

  pixeld bench step --model it-small --batch 1,4,16
  pixeld bench step --models models --model digits --backend native,torch --json")]
pub(super) struct Flags {
    /// A package, or it-small or it-base with random weights
    #[arg(long, default_value = "it-small")]
    model: String,
    /// Backends to time, in turn
    #[arg(long, value_delimiter = ',', default_value = "native,torch", value_parser = backend)]
    backend: Vec<Backend>,
    /// Images of one step
    #[arg(long, value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Vec<u32>,
    /// Shards of the model side by side, each on a thread and with a batch of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Steps of one measurement, cut to the end of the image
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Rank of the first of them, cut likewise; what comes before counts as zeros, and 32 steps of it are taken untimed
    #[arg(long, default_value_t = 1024)]
    from_rank: u32,
    /// Times everything is measured, in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

fn backend(text: &str) -> Result<Backend, String> {
    let found = [Backend::Native, Backend::Torch].into_iter().find(|backend| backend.name() == text);
    found.ok_or_else(|| "must be native or torch".to_owned())
}

impl Flags {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.settings.load(None, Some("warn"))?;
        torch::limit_threads(1);
        let random = SIZES.iter().find(|(name, _)| *name == self.model);
        let source = match random {
            Some(&(name, size)) => random_package(name, size)?,
            None => packages::named(&config, &self.model)?,
        };
        if !self.json {
            let head =
                ["model", "backend", "precision", "threads", "batch", "mean us", "median", "min", "floor us", "eta"];
            output::line(&row(head.map(str::to_owned)))?;
        }
        for repeat in 0..self.repeats {
            for &batch in &self.batch {
                for &backend in &self.backend {
                    let (device, precision) = (packages::device(&config.engine, backend)?, config.engine.precision);
                    let placement = Placement { backend, device, precision, ..Placement::new(batch, 1) };
                    let limits = Limits { weights_bytes: config.models.max_weight_bytes };
                    let model = repository::load(&source, placement, limits)
                        .map_err(|faults| Failure::Usage(format!("{}: {faults}", self.model)))?;
                    let others = (1..self.threads).map(|_| model.shard(batch));
                    let mut shards =
                        others.collect::<Result<Vec<_>, _>>().map_err(|error| Failure::Internal(error.to_string()))?;
                    shards.push(model);
                    self.report(self.measure(shards, batch, repeat)?)?;
                }
            }
        }
        Ok(())
    }

    /// Times the steps of `shards`, one on each thread, all at once.
    fn measure(&self, shards: Vec<Box<dyn PixelModel>>, batch: u32, repeat: u32) -> Result<Step, Failure> {
        let Some(spec) = shards.first().map(|shard| shard.spec().clone()) else {
            return Err(Failure::Internal("nothing to measure".to_owned()));
        };
        let (barrier, threads) = (Barrier::new(shards.len()), shards.len());
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            let run = |mut model: Box<dyn PixelModel>| {
                let barrier = &barrier;
                scope.spawn(move || self.steps(&mut *model, batch, barrier))
            };
            let running: Vec<_> = shards.into_iter().map(run).collect();
            let joined = running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".to_owned())));
            joined.collect::<Result<Vec<_>, _>>().map(|times| times.into_iter().flatten().collect())
        })
        .map_err(Failure::Internal)?;
        times.sort_unstable();
        let us = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6);
        let mean = us(Some(&times.iter().sum())) / times.len() as f64;
        let cost = spec.execution.cost;
        let floor_us = (cost.products > 0.0).then(|| floor(cost, batch, threads));
        let steps_per_image = f64::from(spec.shape.values()) / f64::from(spec.values_per_step().max(1));
        Ok(Step {
            model: self.model.clone(),
            backend: spec.execution.backend.name().to_owned(),
            precision: spec.execution.precision.name().to_owned(),
            threads: self.threads,
            batch,
            repeat,
            steps: times.len() as u64,
            step_us: StepTime {
                mean,
                median: us(times.get(times.len() / 2)),
                min: us(times.first()),
                max: us(times.last()),
            },
            images_per_s: f64::from(batch) * threads as f64 * 1e6 / (mean * steps_per_image),
            multiply_adds: floor_us.map(|_| cost.products + cost.remembered),
            floor_us,
            eta: floor_us.map(|floor| floor / mean),
        })
    }

    fn steps(&self, model: &mut dyn PixelModel, batch: u32, start: &Barrier) -> Result<Vec<Duration>, String> {
        let spec = model.spec().clone();
        let condition = Condition::least(&spec.condition);
        let each = spec.values_per_step().max(1);
        let end = spec.shape.values() / each;
        let first = (self.from_rank / each).min(end.saturating_sub(self.steps));
        let mut warm_up = first.min(WARM_UP);
        let known = ((first - warm_up) * each) as usize;
        let begun = || Canvas::with_prefix(spec.shape, vec![0; known]).unwrap_or(Canvas::empty(spec.shape));
        let mut canvases: Vec<_> = (0..batch).map(|_| begun()).collect();
        let mut out = ParamRows::new(spec.head.width(spec.shape));
        for slot in 0..batch {
            model.open(Slot(slot), &condition).map_err(|error| error.to_string())?;
        }
        let mut times = Vec::new();
        start.wait();
        while times.len() < self.steps as usize && canvases.iter().all(|canvas| !canvas.is_complete()) {
            let began = Instant::now();
            let rows: Vec<_> =
                canvases.iter().zip(0..).map(|(canvas, slot)| StepRow { slot: Slot(slot), canvas }).collect();
            model.step(&rows, &mut out).map_err(|error| error.to_string())?;
            for (canvas, index) in canvases.iter_mut().zip(0..) {
                for _ in 0..each {
                    let u = noise::uniform(7, index, canvas.known());
                    let drawn = spec.head.draw(out.row(index as usize), canvas, &Tuning::default(), u);
                    canvas.push(drawn.map_err(|error| error.to_string())?.value);
                }
            }
            if warm_up > 0 {
                warm_up -= 1;
            } else {
                times.push(began.elapsed());
            }
        }
        Ok(times)
    }

    fn report(&self, step: Step) -> Result<(), Failure> {
        if self.json {
            return output::json(&Record::Step(step));
        }
        let number = |number: f64| format!("{number:.1}");
        output::line(&row([
            step.model,
            step.backend,
            step.precision,
            step.threads.to_string(),
            step.batch.to_string(),
            number(step.step_us.mean),
            number(step.step_us.median),
            number(step.step_us.min),
            step.floor_us.map_or_else(String::new, number),
            step.eta.map_or_else(String::new, |eta| format!("{eta:.2}")),
        ]))
    }
}

fn row(cells: [String; 10]) -> String {
    cells.iter().map(|cell| format!("{cell:>10}")).collect::<Vec<_>>().join(" ")
}

/// Microseconds a step of `batch` images cannot take less than, while `threads` do the same.
fn floor(cost: StepCost, batch: u32, threads: usize) -> f64 {
    let batch = f64::from(batch);
    let bytes = |matrices: f64| (matrices + batch * cost.remembered) * cost.bytes_per_number as f64;
    let reading = bytes(cost.weights) / probe::bandwidth(bytes(cost.resident as f64) as usize, threads);
    let computing = batch * (cost.products + cost.remembered) / probe::multiplications(threads);
    reading.max(computing) * 1e6
}

/// A package with random weights, in memory.
fn random_package(name: &str, [layers, width, wide]: [u32; 3]) -> Result<Source, Failure> {
    let broken = |why: String| Failure::Internal(format!("{name}: {why}"));
    let mut text = format!(
        "format = 1\nname = \"{name}\"\nfamily = \"image_transformer\"\n[image]\nheight = 32\nwidth = 32\nchannels = 3\n\
         levels = 256\norder = \"raster\"\n[head]\nkind = \"categorical\"\n[architecture]\nlayers = {layers}\n\
         model_width = {width}\nheads = 8\nkey_width = {width}\nvalue_width = {width}\nfeed_forward_width = {wide}\n\
         query_block = 256\npositions = \"sinusoidal\"\nnorm = \"post\"\n"
    );
    let manifest = Manifest::parse(text.as_bytes()).map_err(|faults| broken(faults.to_string()))?;
    let family = FAMILIES.iter().find(|family| family.name == manifest.family);
    let family = family.ok_or_else(|| broken("its family is gone".to_owned()))?;
    let tensors = (family.tensors)(&manifest).map_err(|faults| broken(faults.to_string()))?;
    let mut data = Vec::new();
    for (index, tensor) in (0..).zip(&tensors) {
        let inputs = tensor.shape.last().copied().unwrap_or(1).max(1) as f64;
        let count = u32::try_from(tensor.shape.iter().product::<u64>()).unwrap_or(u32::MAX);
        // As large as those of a network that is about to be trained: variance 1 / inputs.
        let number = |element| ((noise::uniform(1, index, element) - 0.5) * (12.0 / inputs).sqrt()) as f32;
        data.push((0..count).flat_map(|element| number(element).to_le_bytes()).collect::<Vec<u8>>());
    }
    let views = tensors.iter().zip(&data).map(|(tensor, data)| {
        let shape = tensor.shape.iter().map(|&length| length as usize).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data);
        view.map(|view| (tensor.name.as_str(), view))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|error| broken(error.to_string()))?;
    let weights = safetensors::serialize(views, None).map_err(|error| broken(error.to_string()))?;
    let digest: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
    text.push_str(&format!("[weights]\nfile = \"weights.safetensors\"\nsha256 = \"{digest}\"\n"));
    Ok(Source::Embedded { manifest: Bytes::from(text), weights: Bytes::from(weights) })
}
