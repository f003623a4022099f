//! Foreign checkpoints: what is read of them, what is refused, and packages that give the numbers of the original code.

// Helpers of tests may panic as tests do, and what was measured is printed for docs/IMPORT.md.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::print_stdout, clippy::unwrap_used)]

mod checkpoint;
mod command;
mod image_gpt;
mod law;
mod reader;
mod state_dicts;
