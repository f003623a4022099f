//! Ways to call a module and to read what it gives: what is tried, in which order, and the manifest that says each.

use std::fmt::Write;

use toml::{Table, Value};

use super::config::KEYS;
use super::pattern::{Axis, Pattern};
use super::probe::Hints;
use crate::head::{Head, MAX_COMPONENTS};
use crate::image::Shape;

/// Ways for an image to go in.
const INPUTS: [&str; 6] = ["b c h w", "b h w c", "b (h w c)", "b h (w c)", "b (c h w)", "(h w c) b"];
/// Ways for parameters to come out. Which is meant where several have the shape, only images can tell.
const OUTPUTS: [&str; 23] = [
    "b c v h w",
    "b v c h w",
    "b (c v) h w",
    "b (v c) h w",
    "b v h w",
    "b h w c v",
    "b h w v c",
    "b h w (c v)",
    "b h w (v c)",
    "b h w v",
    "b (h w c) v",
    "b v (h w c)",
    "(h w c) b v",
    "b (h w) v",
    "b (h w) (c v)",
    "b (h w) (v c)",
    "b (h w) c v",
    "b (h w) v c",
    "(h w) b v",
    "(b h w c) v",
    "(b h w) v",
    "b c h w",
    "b (h w c)",
];

/// A way to call a module, and how its results are read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) shape: Shape,
    /// Images that go in together while it is tried.
    pub(super) batch: u32,
    pub(super) head: Head,
    pub(super) layout: &'static str,
    /// Of the manifest.
    pub(super) architecture: Table,
}

impl Reading {
    /// The same with `value` at `key` of the table.
    pub(super) fn with(&self, key: &str, value: impl Into<Value>) -> Self {
        let mut other = self.clone();
        other.architecture.insert(key.to_owned(), value.into());
        other
    }

    /// Whether the table says `key = true`.
    pub(super) fn says(&self, key: &str) -> bool {
        self.architecture.get(key).and_then(Value::as_bool) == Some(true)
    }

    /// Scales that its input may have.
    fn scales(&self, hints: &Hints) -> Vec<Self> {
        let usual = match (self.takes_integers(), self.shape.levels()) {
            (true, _) => vec!["levels"],
            // Two levels are 0 and 1 already.
            (false, 2) => vec!["signed", "unit"],
            (false, _) => vec!["signed", "unit", "levels"],
        };
        choices(hints, "input_scale", usual).into_iter().map(|scale| self.with("input_scale", scale)).collect()
    }

    fn takes_integers(&self) -> bool {
        self.architecture.get("input_type").and_then(Value::as_str) == Some("int64")
    }

    /// What nothing but images can tell from it, itself among them: other scales, and 0 for another number at the start.
    pub(super) fn alternatives(&self, hints: &Hints) -> Vec<Self> {
        let mut all = self.scales(hints);
        if self.guesses(hints, "start") && self.architecture.get("start") != Some(&Value::from(0)) {
            all.extend(all.clone().iter().map(|reading| reading.with("start", 0)));
        }
        all
    }

    /// Whether it says something at `key` that nobody said beforehand.
    fn guesses(&self, hints: &Hints, key: &str) -> bool {
        self.architecture.contains_key(key) && !hints.fixed.contains_key(key)
    }

    /// What else might be so and is not tried, for people.
    pub(super) fn untried(&self, hints: &Hints) -> Vec<String> {
        let mut untried = Vec::new();
        if self.guesses(hints, "start") {
            let levels = self.shape.levels();
            untried.push(format!("Of start, {levels} and 0 are tried; another would be given by --set 'start = N'"));
        }
        if !self.takes_integers() && !["mean", "std"].iter().any(|key| hints.fixed.contains_key(*key)) {
            let set = "--set 'mean = [M]' --set 'std = [S]'";
            untried.push(format!(
                "A mean that is subtracted and what is divided by are not tried; they would be given by {set}"
            ));
        }
        untried
    }

    /// Readings of the result `item` of shape `given`.
    pub(super) fn outputs(&self, item: usize, given: &[i64], hints: &Hints) -> Vec<Self> {
        let shape = self.shape;
        let (mut found, mut tried) = (Vec::new(), Vec::new());
        let item = i64::try_from(item).unwrap_or(i64::MAX);
        if hints.fixed.get("output_item").is_some_and(|fixed| fixed.as_integer() != Some(item)) {
            return found;
        }
        for output in choices(hints, "output", OUTPUTS) {
            let Some(Ok(pattern)) = output.as_str().map(Pattern::parse) else { continue };
            // With one channel, forms that name it and forms that do not are the same.
            let form = if shape.channels() == 1 { pattern.without(Axis::Channel) } else { pattern.clone() };
            if tried.contains(&form) {
                continue;
            }
            tried.push(form);
            let lengths = |channels: u32, parameters: i64| {
                [self.batch.into(), shape.height().into(), shape.width().into(), channels.into(), parameters]
            };
            let mut add = |head: Head, layout: &'static str| {
                let read = Self { head, layout, ..self.with("output", output.clone()) };
                found.push(if item > 0 { read.with("output_item", item) } else { read });
            };
            let (by_channel, levels) = (pattern.has(Axis::Channel), i64::from(shape.levels()));
            let single = !pattern.has(Axis::Parameter);
            if by_channel || shape.channels() == 1 {
                let fits = pattern.shape(&lengths(shape.channels(), if single { 1 } else { levels })) == given;
                if fits && (!single || levels == 2) {
                    add(Head::Categorical, "saha");
                    if shape.channels() > 1 {
                        add(Head::FactorisedCategorical, "saha");
                    }
                }
            }
            if (!by_channel || shape.channels() == 1) && !single {
                for components in 1..=MAX_COMPONENTS {
                    let head = Head::LogisticMixture { components };
                    let width = head.width(shape) as i64;
                    if pattern.shape(&lengths(1, width)) == given && width != levels {
                        let layouts: &[&'static str] =
                            if shape.channels() == 3 { &["oai", "saha", "t2t"] } else { &["saha"] };
                        let known =
                            |layout: &&&'static str| hints.layout.as_ref().is_none_or(|known| known == **layout);
                        layouts.iter().filter(known).for_each(|layout| add(head, layout));
                    }
                }
            }
        }
        found
    }

    /// What tells it from others, as lines of a manifest.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = self.head_lines();
        lines.extend(self.architecture_lines());
        lines
    }

    /// How `other` differs.
    pub(super) fn differences(&self, other: &Self) -> String {
        let own = self.lines();
        let mut lines: Vec<_> = other.lines().into_iter().filter(|line| !own.contains(line)).collect();
        let gone = self.architecture.keys().filter(|key| !other.architecture.contains_key(*key));
        lines.extend(gone.map(|key| format!("no {key}")));
        lines.join(", ")
    }

    /// The size of its images, for people.
    pub(super) fn size(&self) -> String {
        format!("{}x{}x{}", self.shape.height(), self.shape.width(), self.shape.channels())
    }

    /// The manifest that says it, with `notes` in it, but for the `weights` table.
    pub(super) fn manifest(&self, hints: &Hints, notes: &str) -> String {
        let (shape, name) = (self.shape, &hints.name);
        let mut condition = String::new();
        if hints.classes > 0 {
            // Whoever gives images without a class a label has a model of them.
            let required = !hints.fixed.contains_key("null_class");
            let _ = writeln!(condition, "classes = {}\nrequired = {required}", hints.classes);
        }
        if let Some([height, width]) = hints.low {
            let _ = writeln!(condition, "low_height = {height}\nlow_width = {width}");
        }
        if !condition.is_empty() {
            condition.insert_str(0, "\n[condition]\n");
        }
        format!(
            "format = 1\nname = \"{name}\"\nfamily = \"torchscript\"\ndescription = \"Imported TorchScript module\"\n\n\
             [image]\nheight = {}\nwidth = {}\nchannels = {}\nlevels = {}\norder = \"raster\"\n\n[head]\n{}\n{condition}\n\
             [architecture]\n{notes}{}\n",
            shape.height(),
            shape.width(),
            shape.channels(),
            shape.levels(),
            self.head_lines().join("\n"),
            self.architecture_lines().join("\n"),
        )
    }

    fn head_lines(&self) -> Vec<String> {
        match self.head {
            Head::Categorical => vec!["kind = \"categorical\"".to_owned()],
            Head::FactorisedCategorical => vec!["kind = \"factorised_categorical\"".to_owned()],
            Head::LogisticMixture { components } => vec![
                "kind = \"logistic_mixture\"".to_owned(),
                format!("components = {components}"),
                format!("layout = \"{}\"", self.layout),
            ],
        }
    }

    fn architecture_lines(&self) -> Vec<String> {
        KEYS.iter().filter_map(|key| Some(format!("{key} = {}", self.architecture.get(*key)?))).collect()
    }
}

/// Ways to call a module with images of `shape`, the usual first.
pub(super) fn calls(shape: Shape, hints: &Hints) -> Vec<Reading> {
    let mut calls = Vec::new();
    let blank = Reading { shape, batch: 1, head: Head::Categorical, layout: "saha", architecture: hints.fixed.clone() }
        // Every reading names an output; which, what comes out will tell.
        .with("output", "b h w c v");
    for arguments in choices(hints, "arguments", arguments(hints)) {
        for input in choices(hints, "input", INPUTS) {
            let sequence =
                input.as_str().is_some_and(|text| Pattern::parse(text).is_ok_and(|input| input.is_sequence()));
            for kind in choices(hints, "input_type", ["float32", "int64"]) {
                let call = blank.with("arguments", arguments.clone()).with("input", input.clone());
                let call = call.with("input_type", kind.clone());
                let Some(call) = call.scales(hints).into_iter().next() else { continue };
                calls.push(call.clone());
                if sequence && kind.as_str() == Some("int64") && !hints.fixed.contains_key("start") {
                    calls.extend([shape.levels(), 0].map(|start| call.with("start", start)));
                }
            }
        }
    }
    calls
}

/// Orders of what `forward` may take, the image first.
fn arguments(hints: &Hints) -> Vec<Vec<&'static str>> {
    let low: &[&'static str] = if hints.low.is_some() { &["low"] } else { &[] };
    let class: &[&'static str] = if hints.classes > 0 { &["class", "class_one_hot"] } else { &[] };
    let mut orders = vec![vec!["image"]];
    for kinds in [low, class].into_iter().filter(|kinds| !kinds.is_empty()) {
        let with = |order: &Vec<&'static str>, kind, at: usize| {
            let mut order = order.clone();
            order.insert(at, kind);
            order
        };
        let anywhere = |order: &Vec<&'static str>| -> Vec<_> {
            kinds.iter().flat_map(|kind| (0..=order.len()).rev().map(|at| with(order, *kind, at))).collect()
        };
        orders = orders.iter().flat_map(anywhere).collect();
    }
    orders
}

/// What may stand at `key`: what is known, or any of the `usual`.
fn choices<T: Into<Value>>(hints: &Hints, key: &str, usual: impl IntoIterator<Item = T>) -> Vec<Value> {
    match hints.fixed.get(key) {
        Some(value) => vec![value.clone()],
        None => usual.into_iter().map(Into::into).collect(),
    }
}
