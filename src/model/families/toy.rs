//! A model whose likelihood is known in closed form: oracle, smoke test and documentation example.

use crate::model::Family;

/// The family.
pub const FAMILY: Family =
    Family { name: "toy", summary: "closed-form likelihood; for tests and trials", build: |_, _, _| todo!() };
