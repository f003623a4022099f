//! Foreign checkpoints: what is read of them, what is refused, and packages that give the numbers of the original code.

// Helpers of tests may panic as tests do.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod checkpoint;
mod command;
mod law;
mod reader;
mod state_dicts;
