//! One model on one thread: plan, execute, commit, and the async side that feeds it and reads from it.

mod core;
pub mod event;
mod handle;
pub mod health;
mod thread;

pub use handle::{Handle, SampleStream, Score, ScoreTicket};
pub use thread::{Engine, EngineConfig};
