//! A model whose likelihood is known in closed form: oracle, smoke test and documentation example.
//!
//! With w the value before (0 at rank 0) and k the class counted from 1 (0 without one), the value v has the weight
//! `q^|v - c|`, where q = exp(-sharpness) and c = (w + k) mod levels. The weights sum to
//! `(1 - q^(c+1)) / (1-q) + q (1 - q^(levels-1-c)) / (1-q)`, or to `levels` for sharpness 0.

use std::ops::Range;

use crate::error::Violations;
use crate::head::Head;
use crate::image::{Canvas, Rank};
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;
use crate::model::{Condition, Family, ModelError, ParamRows, PixelModel, Placement, ScoreRow, Slot, StepRow};
use crate::spec::ModelSpec;

/// The family.
pub const FAMILY: Family = Family {
    name: "toy",
    summary: "closed-form likelihood; for tests and trials",
    tensors: |manifest| sharpness(manifest).map(|_| Vec::new()),
    build: |manifest, file, placement| match file {
        None => Ok(Box::new(Toy::new(manifest, placement)?)),
        Some(_) => Err(Violations::one("weights", "must be absent: family \"toy\" has none")),
    },
};

const DEFAULT_SHARPNESS: f64 = 0.5;

struct Toy {
    spec: ModelSpec,
    sharpness: f32,
    /// Of the image in each slot.
    classes: Vec<Option<u32>>,
}

fn sharpness(manifest: &Manifest) -> Result<f32, Violations> {
    let mut violations = Violations::new();
    let mut fields = Fields::new("architecture", manifest.architecture.clone(), &mut violations);
    let sharpness: f64 = fields.optional("sharpness").unwrap_or(DEFAULT_SHARPNESS);
    if !(0.0..=100.0).contains(&sharpness) {
        fields.refuse("sharpness", format!("must be 0..=100, got {sharpness}"));
    }
    fields.finish();
    if manifest.head != Head::Categorical {
        violations.add("head.kind", "must be \"categorical\" in this family");
    }
    if manifest.condition.low.is_some() {
        violations.add("condition.low_height", "is not for this family, which takes no low-resolution image");
    }
    violations.into_result(sharpness as f32)
}

impl Toy {
    fn new(manifest: &Manifest, placement: Placement) -> Result<Self, Violations> {
        Ok(Self {
            spec: manifest.spec(FAMILY.name, placement, size_of::<Option<u32>>() as u64),
            sharpness: sharpness(manifest)?,
            classes: vec![None; placement.slots as usize],
        })
    }

    /// Writes the logits at `rank` of an image whose earlier values are `values` to `row`.
    fn logits(&self, class: Option<u32>, values: &[u16], rank: Rank, row: &mut [f32]) {
        let before = (rank as usize).checked_sub(1).and_then(|rank| values.get(rank)).copied().unwrap_or(0);
        let shift = class.map_or(0, |class| class + 1);
        let centre = (u32::from(before) + shift) % self.spec.shape.levels();
        for (level, logit) in (0..).zip(row) {
            *logit = -self.sharpness * centre.abs_diff(level) as f32;
        }
    }

    fn class(&self, slot: Slot) -> Result<Option<u32>, ModelError> {
        self.classes.get(slot.0 as usize).copied().ok_or_else(|| ModelError::Step(format!("there is no {slot:?}")))
    }
}

impl PixelModel for Toy {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn open(&mut self, slot: Slot, condition: &Condition) -> Result<(), ModelError> {
        self.class(slot)?;
        if let Some(class) = self.classes.get_mut(slot.0 as usize) {
            *class = condition.class;
        }
        Ok(())
    }

    fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError> {
        let (class, width) = (self.class(slot)?, out.width());
        for (rank, row) in known.clone().zip(out.resize(known.len()).chunks_exact_mut(width)) {
            self.logits(class, canvas.values(), rank, row);
        }
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        let width = out.width();
        for (StepRow { slot, canvas }, row) in rows.iter().zip(out.resize(rows.len()).chunks_exact_mut(width)) {
            self.logits(self.class(*slot)?, canvas.values(), canvas.known(), row);
        }
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        let ranks = (rows_wanted / (rows.len() as u32).max(1)).max(1);
        let reached = from.saturating_add(ranks).min(self.spec.shape.values());
        let width = out.width();
        let slice = reached.saturating_sub(from) as usize;
        let all = rows.iter().flat_map(|row| (from..reached).map(move |rank| (row, rank)));
        for ((image, rank), row) in all.zip(out.resize(rows.len() * slice).chunks_exact_mut(width)) {
            self.logits(image.condition.class, image.canvas.values(), rank, row);
        }
        Ok(reached)
    }

    fn close(&mut self, _slot: Slot) {}

    fn shard(&self, slots: u32) -> Result<Box<dyn PixelModel>, ModelError> {
        Ok(Box::new(Self {
            spec: ModelSpec { slots, ..self.spec.clone() },
            sharpness: self.sharpness,
            classes: vec![None; slots as usize],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy(levels: u32, sharpness: f64) -> Toy {
        let text = format!(
            "format = 1\nname = \"t\"\nfamily = \"toy\"\n[image]\nheight = 1\nwidth = 3\nchannels = 1\nlevels = {levels}\n\
             order = \"raster\"\n[head]\nkind = \"categorical\"\n[condition]\nclasses = 2\n\
             [architecture]\nsharpness = {sharpness}\n"
        );
        Toy::new(&Manifest::parse(text.as_bytes()).unwrap(), Placement::new(2, 4)).unwrap()
    }

    /// The log-likelihood by the formula at the head of this file, without any logits.
    fn closed_form(levels: u32, sharpness: f64, class: Option<u32>, values: &[u16]) -> f64 {
        let q = (-sharpness).exp();
        let below = |terms: u32| {
            if sharpness == 0.0 { f64::from(terms) } else { (1.0 - q.powi(terms as i32)) / (1.0 - q) }
        };
        let mut before = 0;
        values
            .iter()
            .map(|&value| {
                let centre = (before + class.map_or(0, |class| class + 1)) % levels;
                before = u32::from(value);
                let total = below(centre + 1) + q * below(levels - 1 - centre);
                -sharpness * f64::from(before.abs_diff(centre)) - total.ln()
            })
            .sum()
    }

    fn log_likelihood(toy: &mut Toy, class: Option<u32>, values: &[u16]) -> f64 {
        let canvas = Canvas::with_prefix(toy.spec.shape, values.to_vec()).unwrap();
        let mut out = ParamRows::new(toy.spec.shape.levels() as usize);
        let condition = Condition { class, ..Condition::default() };
        let row = ScoreRow { canvas: &canvas, condition: &condition };
        assert_eq!(toy.score(&[row], 0, 1000, &mut out).unwrap(), 3);
        let head = toy.spec.head;
        (0..3).map(|rank| head.log_prob(out.row(rank as usize), &canvas, rank).unwrap()).sum()
    }

    #[test]
    fn scores_equal_the_closed_form_and_all_images_sum_to_one() {
        for (levels, sharpness) in [(2, 0.0), (3, 0.5), (5, 2.0)] {
            let mut toy = toy(levels, sharpness);
            for class in [None, Some(0), Some(1)] {
                let mut total = 0.0;
                for image in 0..levels.pow(3) {
                    let values = [image / levels.pow(2), image / levels % levels, image % levels].map(|v| v as u16);
                    let scored = log_likelihood(&mut toy, class, &values);
                    assert!((scored - closed_form(levels, sharpness, class, &values)).abs() < 1e-5);
                    total += scored.exp();
                }
                assert!((total - 1.0).abs() < 1e-9, "{total}");
            }
        }
    }

    #[test]
    fn every_fault_of_the_architecture_is_named() {
        let mut manifest = Manifest::parse(
            b"format = 1\nname = \"t\"\nfamily = \"toy\"\n[image]\nheight = 1\nwidth = 1\nchannels = 1\nlevels = 2\n\
              order = \"raster\"\n[head]\nkind = \"categorical\"\n[architecture]\nsharpness = -1.0\nblunt = 1\n",
        )
        .unwrap();
        let fields = |manifest: &Manifest| -> Vec<String> {
            sharpness(manifest).unwrap_err().iter().map(|violation| violation.field.clone()).collect()
        };
        assert_eq!(fields(&manifest), ["architecture.sharpness", "architecture.blunt"]);
        manifest.architecture.clear();
        assert_eq!(sharpness(&manifest), Ok(0.5));
        manifest.head = Head::LogisticMixture { components: 1 };
        manifest.condition.low = Some(manifest.shape);
        assert_eq!(fields(&manifest), ["head.kind", "condition.low_height"]);
    }
}
