//! Whether two models can be the stages of one request.

use crate::error::Violations;
use crate::image::Shape;
use crate::spec::ModelSpec;

/// Under which faults of a lower model are told.
pub(super) const LOW_MODEL: &str = "condition.low_model";

/// Checks that `lower` can draw every low-resolution image that `upper` takes.
pub(super) fn fits_below(lower: &ModelSpec, upper: &ModelSpec) -> Result<(), Violations> {
    let (name, mut faults) = (&lower.name, Violations::new());
    let mut refuse = |rule: String| faults.add(LOW_MODEL, rule);
    if let Some(low) = upper.condition.low.filter(|&low| low != lower.shape) {
        refuse(format!("must draw images of {}, {name:?} draws {}", described(low), described(lower.shape)));
    }
    if let Some(low) = lower.condition.low {
        refuse(format!("must need no low-resolution image itself, {name:?} needs one of {}", described(low)));
    }
    let [of_upper, of_lower] = [upper, lower].map(|spec| spec.condition.classes);
    if of_upper > 0 && ![0, of_upper].contains(&of_lower) {
        refuse(format!("must take {of_upper} classes or none, {name:?} takes {of_lower}"));
    }
    if lower.condition.class_required && !upper.condition.class_required {
        refuse(format!("must not need a class, {name:?} does and this one is sampled without"));
    }
    faults.into_result(())
}

fn described(shape: Shape) -> String {
    let [height, width, channels] = [shape.height(), shape.width(), shape.channels()];
    format!("{height} x {width} x {channels} with {} levels", shape.levels())
}
