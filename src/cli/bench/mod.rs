//! `pixeld bench`: what it can take, and whether a change made a difference.

mod arrivals;
mod capacity;
mod compare;
mod drive;
mod load;
mod plan;
mod record;
mod soak;
mod step;
mod stream;
mod tally;

use clap::{Args, Subcommand};

use super::failure::Failure;

const AFTER_HELP: &str = "\
Measure, change one thing, measure again, compare. Each measurement is a line of JSON; runs appended to one file are
repeats of each other, and five of each side tell a difference from noise:

  for run in 1 2 3 4 5; do pixeld bench load --rate 50 --seed $run --json >> before.json; done
  pixeld bench compare before.json after.json";

/// Flags of `pixeld bench`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, arg_required_else_help = true)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time one decode step beside what it cannot take less than
    Step(step::Flags),
    /// Load a daemon with streams and time what it answers
    Load(Box<load::Flags>),
    /// Put a daemon through every kind of client and look at what they leave behind
    Soak(soak::Flags),
    /// Simulate what so many replicas carry, from recorded step times
    Capacity(Box<capacity::Flags>),
    /// Compare measurements of the same thing, before and after
    Compare(compare::Flags),
}

impl Bench {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Step(step) => step.run(),
            What::Load(load) => Box::pin(load.run()).await,
            What::Soak(soak) => Box::pin(soak.run()).await,
            What::Capacity(capacity) => capacity.run(),
            What::Compare(compare) => compare.run(),
        }
    }
}
