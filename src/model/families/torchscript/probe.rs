//! Finds out how a module is to be called. Every reading of it is a manifest, and each is tried: whether the module takes
//! the image, whether what it gives has the shape, whether it was seen to look at what is still to come. What that cannot
//! tell apart is told by images: under the right reading they are likely.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use tch::{CModule, Device};
use toml::{Table, Value};

use super::check::{self, Buckets, Numbers};
use super::config::Config;
use super::leak::{cuts, foreign_orders, leak, places};
use super::module::{Module, Results};
use super::reading::{self, Reading};
use crate::head::Head;
use crate::image::{Canvas, Order, Shape};
use crate::model::manifest::Manifest;
use crate::model::{Condition, ModelError, WeightsFile};
use crate::torch::weights;

/// Sizes that are tried where none is given: those of the data sets that such models are trained on.
const SIZES: [u32; 6] = [28, 32, 64, 16, 8, 96];
/// Batches that a traced module may be bound to.
const BATCHES: [u32; 9] = [2, 1, 4, 8, 16, 32, 64, 128, 256];
/// Ranks from which on an image is changed, and how often each at least.
const CUTS: u32 = 128;
const DRAWS: u32 = 4;
/// Levels that are to come at places, each in as many trials of two kinds.
const LEVELS: u32 = 256;
/// The methods of a module that goes on from where it was.
const METHODS: [&str; 2] = ["init_state", "step"];
/// Bits/dim by which a wrong reading is expected to do worse: readings that are closer are not told apart for sure.
const CLOSE: f64 = 0.1;
/// Readings that are listed with what is wrong with them, and messages of a module.
const LISTED: usize = 8;
const SAID: usize = 3;
/// Characters of a message that are repeated.
const SHOWN: usize = 240;

/// What is known of a module before it is asked.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Name of the package.
    pub name: String,
    /// Rows and columns; tried where none are given.
    pub size: Option<[u32; 2]>,
    /// Channels; 1 and 3 are tried where none are given.
    pub channels: Option<u32>,
    /// Levels of a value.
    pub levels: u32,
    /// Classes, if it takes a label.
    pub classes: u32,
    /// Rows and columns of a low-resolution image, if it takes one.
    pub low: Option<[u32; 2]>,
    /// Entries of the `architecture` table that are known ([`entries`](super::entries)): nothing else is tried.
    pub fixed: Table,
    /// Layout of mixtures, if it is known.
    pub layout: Option<String>,
    /// Images it was trained for, in raster order, to tell readings apart.
    pub examples: Vec<Vec<u16>>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The manifest, but for the `weights` table.
    pub manifest: String,
    /// What of it is not certain, and should be looked at.
    pub warnings: Vec<String>,
}

/// Probes the module of `file`.
///
/// # Errors
/// Why it cannot be served, or what must be said of it.
pub fn probe(file: WeightsFile<'_>, hints: &Hints) -> Result<Found, String> {
    let _guard = tch::no_grad_guard();
    let module = Arc::new(weights::module(file, Device::Cpu).map_err(|violations| violations.to_string())?);
    let probe = Probe {
        module,
        hints,
        said: BTreeMap::new(),
        shapes: BTreeSet::new(),
        numbers: BTreeSet::new(),
        other: None,
        mixed: false,
        unfit: None,
        rejected: Vec::new(),
    };
    probe.run()
}

/// Times that an image of `shape` is changed at each of `cuts` ranks: often enough for every level.
fn draws(shape: Shape, cuts: usize) -> u32 {
    (2 * shape.levels().min(LEVELS)).div_ceil((cuts as u32).max(1)).max(DRAWS)
}

struct Probe<'a> {
    module: Arc<CModule>,
    hints: &'a Hints,
    /// What the module said when it did not take an image, and how often.
    said: BTreeMap<String, u32>,
    /// Shapes of what it gave.
    shapes: BTreeSet<String>,
    /// How many numbers it gave for each value of an image.
    numbers: BTreeSet<u64>,
    /// What it gave that begins with no tensor.
    other: Option<String>,
    /// Whether images of a batch changed each other.
    mixed: bool,
    /// What no manifest may say, though it was asked for.
    unfit: Option<String>,
    /// Readings that fit what it takes and gives, and what is wrong with them.
    rejected: Vec<(Reading, String)>,
}

impl Probe<'_> {
    fn run(mut self) -> Result<Found, String> {
        let mut readings = Vec::new();
        let channels = self.hints.channels.map_or(vec![3, 1], |channels| vec![channels]);
        let sizes = self.hints.size.map_or(SIZES.map(|side| [side; 2]).to_vec(), |size| vec![size]);
        for (&size, &channels) in sizes.iter().flat_map(|size| channels.iter().map(move |channels| (size, channels))) {
            let shape =
                Shape::new(size[0], size[1], channels, self.hints.levels).map_err(|faults| faults.to_string())?;
            readings.extend(self.of_shape(shape)?);
            let sizes: BTreeSet<_> = readings.iter().map(Reading::size).collect();
            if sizes.len() > 1 {
                let sizes = sizes.into_iter().collect::<Vec<_>>().join(" and ");
                return Err(format!(
                    "the module takes images of several sizes, {sizes} for two: say --height, --width and --channels, or \
                     give --examples"
                ));
            }
        }
        self.choose(readings)
    }

    /// The readings for images of `shape` under which the module was not seen to look at what it must not.
    fn of_shape(&mut self, shape: Shape) -> Result<Vec<Reading>, String> {
        let fixed = self.hints.fixed.get("batches").and_then(Value::as_array);
        let size = |size: &Value| size.as_integer().and_then(|size| u32::try_from(size).ok());
        let batches = fixed.map_or(BATCHES.to_vec(), |sizes| sizes.iter().filter_map(size).collect());
        let mut good = Vec::new();
        for call in reading::calls(shape, self.hints) {
            for &batch in &batches {
                let call = Reading { batch, ..call.clone() };
                let before = self.rejected.len();
                let mut read = Vec::new();
                for (item, given) in self.call(&call)?.iter().enumerate() {
                    let readings = call.outputs(item, given, self.hints);
                    if self.are_parameters(&readings) {
                        read.extend(readings);
                    }
                }
                good.extend(read.into_iter().filter_map(|read| self.try_reading(read)));
                // A module that takes the values as they are, and gives what comes next, shifts them itself.
                if !good.is_empty() {
                    return Ok(good);
                }
                // Another batch would show the same.
                if self.rejected.len() > before {
                    break;
                }
            }
        }
        Ok(good)
    }

    /// Calls the module as `reading` says; the shapes of its results, none if it does not take that. Refused if it gives
    /// something else when it is called again: nothing that is found out about such a module holds.
    fn call(&mut self, reading: &Reading) -> Result<Vec<Vec<i64>>, String> {
        let module = match self.build(reading) {
            Ok(module) => module,
            Err(why) => {
                self.unfit = Some(why);
                return Ok(Vec::new());
            }
        };
        if reading.batch > module.config.most_images() {
            return Ok(Vec::new());
        }
        let Results { tensors, other } = match self.forward(&module, reading.batch) {
            Ok(results) => results,
            Err(why) => {
                self.say(&why.to_string());
                return Ok(Vec::new());
            }
        };
        let again = self.forward(&module, reading.batch).map_err(|error| error.to_string())?.tensors;
        let same = |(one, other): (&tch::Tensor, &tch::Tensor)| one.f_allclose(other, 0.0, 0.0, true).unwrap_or(false);
        if !tensors.iter().zip(&again).all(same) {
            return Err(format!("{}; it must be traced or scripted after eval()", check::FICKLE));
        }
        let shapes: Vec<_> = tensors.iter().map(tch::Tensor::size).collect();
        self.shapes.extend(shapes.iter().map(|shape| format!("{shape:?}")));
        let values = u64::from(reading.batch) * u64::from(reading.shape.values());
        let numbers = tensors.iter().map(|tensor| tensor.numel() as u64).filter(|numbers| numbers % values == 0);
        self.numbers.extend(numbers.map(|numbers| numbers / values).filter(|&each| each > 0));
        if shapes.is_empty() {
            self.other = other;
        }
        Ok(shapes)
    }

    fn say(&mut self, what: &str) {
        *self.said.entry(what.chars().take(SHOWN).collect()).or_default() += 1;
    }

    fn forward(&self, module: &Module, batch: u32) -> Result<Results, ModelError> {
        let (image, condition) = (check::any_image(module.config.shape, 1), Condition::least(&module.config.condition));
        module.forward(&vec![(&image, &condition); batch as usize], module.config.shape.height())
    }

    /// Whether a result is what a head takes, under all `readings` of it. Probabilities show under the right one alone,
    /// and then none of the others is.
    fn are_parameters(&mut self, readings: &[Reading]) -> bool {
        for reading in readings {
            let Ok(module) = self.build(reading) else { continue };
            let why = match check::numbers(&module, &Buckets::of(reading.batch as usize)) {
                Ok(Numbers::Probabilities) => check::PROBABILITIES.to_owned(),
                Ok(_) => continue,
                Err(error) => error.to_string(),
            };
            self.rejected.push((reading.clone(), why));
            return false;
        }
        true
    }

    /// `reading`, if the module was not seen to look ahead under it, with what else it can do.
    fn try_reading(&mut self, reading: Reading) -> Option<Reading> {
        let module = match self.build(&reading) {
            Ok(module) => module,
            Err(why) => {
                self.unfit = Some(why);
                return None;
            }
        };
        let buckets = Buckets::of(reading.batch as usize);
        // What takes the images for parts of one, or parts for images, could look causal otherwise.
        let mixed = |&size: &u32| self.fits(&module, size) && !check::apart(&module, size as usize).unwrap_or(false);
        if [reading.batch, 2].iter().any(mixed) {
            self.mixed = true;
            return None;
        }
        if let Err(why) = looks_ahead(&module, &buckets) {
            self.rejected.push((reading, why));
            return None;
        }
        let fixed = &self.hints.fixed;
        let mut reading = reading;
        // Whoever takes three takes any.
        if !fixed.contains_key("batches") && !self.fits(&module, 3) {
            let mut taken: Vec<u32> = BATCHES.into_iter().filter(|&size| self.fits(&module, size)).collect();
            taken.sort_unstable();
            reading = reading.with("batches", taken);
        }
        match (fixed.get("prefix").and_then(Value::as_bool), check::check_prefix(&module, &buckets)) {
            (Some(true), Err(why)) => {
                self.rejected.push((reading, format!("prefix must be false: {why}")));
                return None;
            }
            (None, Ok(())) => reading = reading.with("prefix", true),
            _ => {}
        }
        Some(reading)
    }

    /// Whether a batch of `size` gives parameters as the manifest says.
    fn fits(&self, module: &Module, size: u32) -> bool {
        let (image, condition) = (check::any_image(module.config.shape, 1), Condition::least(&module.config.condition));
        size <= module.config.most_images()
            && module.pass(&vec![(&image, &condition); size as usize], module.config.shape.height()).is_ok()
    }

    fn build(&self, reading: &Reading) -> Result<Module, String> {
        let text = reading.manifest(self.hints, "");
        let manifest = Manifest::parse(text.as_bytes()).map_err(|violations| violations.to_string())?;
        let config = Config::read(&manifest).map_err(|violations| violations.to_string())?;
        Ok(Module::new(Arc::clone(&self.module), config, Device::Cpu))
    }

    /// Which of [`METHODS`] the module has.
    fn methods(&self, reading: &Reading) -> Vec<&'static str> {
        let has = |module: Module| METHODS.into_iter().filter(|method| module.has(method)).collect();
        self.build(reading).map(has).unwrap_or_default()
    }

    /// Holds the steps of the module to its passes.
    fn check_steps(&self, reading: &Reading) -> Result<(), String> {
        let module = self.build(reading)?;
        check::check_steps(&module, &Buckets::of(reading.batch as usize))
    }

    /// `reading` by steps, if the module has them.
    fn stepping(&self, reading: Reading) -> Result<Reading, (Reading, String)> {
        let fixed = self.hints.fixed.get("incremental").and_then(Value::as_bool);
        if !fixed.unwrap_or_else(|| self.methods(&reading) == METHODS) {
            return Ok(reading);
        }
        let mut stepping = reading.with("incremental", true);
        if !self.hints.fixed.contains_key("prefix") {
            stepping.architecture.remove("prefix");
        }
        match self.check_steps(&stepping) {
            Ok(()) => Ok(stepping),
            Err(why) => Err((reading, why)),
        }
    }

    /// Of readings with other scales and layouts, the one under which the examples are likeliest; without any the first.
    fn choose(mut self, readings: Vec<Reading>) -> Result<Found, String> {
        let (mut all, mut strayed) = (Vec::new(), Vec::new());
        for tried in &readings {
            for reading in tried.alternatives(self.hints) {
                let untried = reading != *tried;
                match self.stepping(reading) {
                    Ok(reading) => all.push((self.bits_per_dim(&reading), reading, untried)),
                    Err(strayed_reading) => strayed.push(strayed_reading),
                }
            }
        }
        if all.is_empty() && !strayed.is_empty() {
            return Err(format!(
                "init_state and step of the module must give what forward gives. Mend them, or have passes of forward \
                 alone served with --set 'incremental = false':{}",
                listed(&strayed)
            ));
        }
        // Who looks at no channel of a pixel for another gives all of them at once: the same law, in fewer steps.
        let by_channel = |reading: &Reading| reading.head != Head::FactorisedCategorical;
        all.sort_by(|(a, one, _), (b, other, _)| {
            let likelier = a.unwrap_or(f64::INFINITY).total_cmp(&b.unwrap_or(f64::INFINITY));
            likelier.then(by_channel(one).cmp(&by_channel(other)))
        });
        let mut all = all.into_iter();
        // What is too small to be seen under one scale may show under another.
        let (bits, reading) = loop {
            let Some((bits, reading, untried)) = all.next() else { return Err(self.refusal()) };
            if !untried {
                break (bits, reading);
            }
            match looks_ahead(&self.build(&reading)?, &Buckets::of(reading.batch as usize)) {
                Ok(()) => break (bits, reading),
                Err(why) => self.rejected.push((reading, why)),
            }
        };
        if bits.is_none() && !self.hints.examples.is_empty() {
            return Err(format!("the examples have no likelihood; are they images of {}?", reading.size()));
        }
        self.rejected.extend(strayed.into_iter().map(|(reading, why)| (reading, format!("its steps stray: {why}"))));
        let twin = |other: &Head| {
            matches!(
                (reading.head, other),
                (Head::Categorical, Head::FactorisedCategorical) | (Head::FactorisedCategorical, Head::Categorical)
            )
        };
        let others: Vec<_> =
            all.filter(|(_, other, _)| !twin(&other.head)).map(|(bits, other, _)| (bits, other)).collect();
        let (notes, warnings) = self.notes(&reading, bits, &others);
        Ok(Found { manifest: reading.manifest(self.hints, &notes), warnings })
    }

    /// What is to be said of `reading`, under which the examples take `bits` bits/dim, beside the `others` that fit: as
    /// comments, and to whoever imports.
    fn notes(&self, reading: &Reading, bits: Option<f64>, others: &[(Option<f64>, Reading)]) -> (String, Vec<String>) {
        let mut warnings = Vec::new();
        let cuts = cuts(reading.shape.values(), CUTS).len();
        let mut notes = format!(
            "# Found by probing: values from {cuts} places on were changed, {} times each, and no step before was seen \
             to change.\n",
            draws(reading.shape, cuts)
        );
        if let Some(bits) = bits {
            let _ = writeln!(notes, "# The example images take {bits:.4} bits/dim.");
        } else if !others.is_empty() {
            notes.push_str("# ASSUMED, since nothing but images can tell (see --examples); these would fit as well:\n");
            warnings.push("something was assumed, see the comments in the manifest; --examples would tell".to_owned());
        }
        if let (Some(bits), Some((Some(next), _))) = (bits, others.first())
            && next - bits < CLOSE
        {
            let apart = format!("CLOSE: the next reading takes only {:.4} bits/dim more", next - bits);
            let _ = writeln!(notes, "# {apart}.");
            warnings.push(format!("{apart}, see the comments in the manifest; more examples, or others, may tell"));
        }
        for (bits, other) in others {
            let bits = bits.map_or(String::new(), |bits| format!(": {bits:.4} bits/dim"));
            let _ = writeln!(notes, "#   {}{bits}", reading.differences(other));
        }
        for untried in reading.untried(self.hints) {
            let _ = writeln!(notes, "# {untried}.");
        }
        if !self.rejected.is_empty() {
            notes.push_str("# Rejected:\n");
            for (other, why) in self.rejected.iter().take(LISTED) {
                let _ = writeln!(notes, "#   {}: {why}", reading.differences(other));
            }
            if let Some(more) = self.rejected.len().checked_sub(LISTED + 1) {
                let _ = writeln!(notes, "#   and {} more", more + 1);
            }
        }
        if self.build(reading).and_then(|module| {
            check::numbers(&module, &Buckets::of(reading.batch as usize)).map_err(|error| error.to_string())
        }) == Ok(Numbers::PerhapsProbabilities)
        {
            let sigmoid =
                "all that it gives lies within 0..=1: if that is a probability, after a sigmoid, let it give the logit";
            let _ = writeln!(notes, "# CHECK: {sigmoid}.");
            warnings.push(sigmoid.to_owned());
        }
        if !reading.says("incremental") {
            let part = if reading.says("prefix") { "the rows so far of an image" } else { "the image" };
            let _ = writeln!(notes, "# It keeps no state: every step is a pass over {part}.");
            let unused = match self.methods(reading).as_slice() {
                [] => None,
                [only] => Some(format!(
                    "only {only} is there of {} (torch.jit.export exports a method)",
                    METHODS.join(" and ")
                )),
                _ => {
                    let why = self.check_steps(&reading.with("incremental", true)).err();
                    let why = why.map_or(String::new(), |why| format!(": {why}"));
                    Some(format!("init_state and step are there and not used, as was asked for{why}"))
                }
            };
            if let Some(unused) = unused {
                let _ = writeln!(notes, "# UNUSED: {unused}.");
                warnings.push(unused);
            }
        }
        (notes, warnings)
    }

    fn refusal(&self) -> String {
        let fixed: Vec<_> = self.hints.fixed.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let asked = match fixed.as_slice() {
            [] => String::new(),
            fixed => format!("nothing agrees with what was said beforehand, {}: ", fixed.join(", ")),
        };
        if !self.rejected.is_empty() {
            return format!("{asked}the module takes images, but cannot be served as it is:{}", listed(&self.rejected));
        }
        let list = |all: Vec<&String>| {
            let (some, more) = (all.iter().take(SAID), all.len().saturating_sub(SAID));
            let mut text: String = some.map(|line| format!("\n  {line}")).collect();
            if more > 0 {
                let _ = write!(text, "\n  and {more} more");
            }
            text
        };
        let mut said: Vec<_> = self.said.iter().collect();
        said.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let said = list(said.into_iter().map(|(line, _)| line).collect());
        if self.mixed {
            return format!(
                "{asked}the module takes images, but those of a batch change each other. Does it still normalise by the batch? \
                 Then trace or script it after eval()"
            );
        }
        if self.shapes.is_empty() {
            if let Some(other) = &self.other {
                return format!(
                    "{asked}the module takes an image and gives {other}. It must give a tensor of parameters, or a \
                     tuple or list that begins with tensors, of which --set 'output_item = N' says which, from 0: script or \
                     trace one that gives no more than that"
                );
            }
            return match &self.unfit {
                Some(why) if said.is_empty() => format!("{asked}{why}"),
                _ => format!(
                    "{asked}the module took no image in any form that was tried. If it takes a label say --classes, if \
                     an image of low resolution --low-height and --low-width, if it was traced with a batch of 12, and takes \
                     no other, --set 'batches = [12]'. It said:{said}"
                ),
            };
        }
        let numbers: Vec<_> = self.numbers.iter().map(u64::to_string).collect();
        let levels = match numbers.as_slice() {
            [] => String::new(),
            numbers => format!(
                "\nFor each value of an image it gives {}: with one a level say so with --levels, with a logit alone --levels \
                 2; with more than levels, for a start token say, let the module give those of the levels alone.",
                numbers.join(" or ")
            ),
        };
        format!(
            "{asked}what the module gives has no form that is known, for --levels {} and the sizes tried. Its \
             shapes:{}{levels}\nIf one of them holds the parameters, say how, in the letters b, h, w, c and v (levels): --set \
             'output = \"b c v h w\"'{}",
            self.hints.levels,
            list(self.shapes.iter().collect()),
            if said.is_empty() { said } else { format!("\nIt said:{said}") }
        )
    }

    fn bits_per_dim(&self, reading: &Reading) -> Option<f64> {
        let module = self.build(reading).ok()?;
        let (shape, head) = (reading.shape, reading.head);
        let condition = Condition::least(&module.config.condition);
        let (mut nats, mut values) = (0.0, 0.0);
        for example in &self.hints.examples {
            let canvas = Canvas::from_raster(shape, Order::Raster, example)?;
            let rows = module.pass(&vec![(&canvas, &condition); reading.batch as usize], shape.height()).ok()?;
            let rows = rows.f_get(0).ok()?;
            for rank in 0..shape.values() {
                let row = rows.f_get(i64::from(rank / head.values_per_step(shape).max(1))).ok()?;
                nats -= head.log_prob(&Vec::<f32>::try_from(row).ok()?, &canvas, rank).ok()?;
                values += 1.0;
            }
        }
        (values > 0.0).then(|| nats / values / std::f64::consts::LN_2)
    }
}

/// Refuses a module that was seen to look at what is still to come, with the proof and the order that it is causal in, if any.
fn looks_ahead(module: &Module, buckets: &Buckets) -> Result<(), String> {
    let shape = module.config.shape;
    let cuts = cuts(shape.values(), CUTS);
    let draws = draws(shape, cuts.len());
    let Some(found) =
        leak(module, buckets, &places(shape, Order::Raster), &cuts, draws).map_err(|error| error.to_string())?
    else {
        return Ok(());
    };
    let causal = |places: &[u32]| matches!(leak(module, buckets, places, &cuts, draws), Ok(None));
    let other = foreign_orders(shape).into_iter().find(|(_, places)| causal(places));
    let other = other.map(|(name, _)| format!("; it is causal {name}, an order that is not served"));
    Err(format!("{found}{}", other.unwrap_or_default()))
}

/// Readings and what is wrong with them, a line each: the first whole, of the others how they differ from it.
fn listed(rejected: &[(Reading, String)]) -> String {
    let mut text = String::new();
    let Some((first, _)) = rejected.first() else { return text };
    for (index, (reading, why)) in rejected.iter().take(SAID).enumerate() {
        let what = if index == 0 { reading.lines().join(", ") } else { first.differences(reading) };
        let _ = write!(text, "\n  with {what}: {why}");
    }
    if rejected.len() > SAID {
        let _ = write!(text, "\n  and {} more", rejected.len() - SAID);
    }
    text
}
