//! One model on one thread: plan, execute, commit, and the async side that feeds it and reads from it.

pub mod catalogue;
mod core;
pub mod event;
mod handle;
pub mod health;
mod thread;

pub use handle::{Handle, SampleStream, SampleSummary, Score, ScoreTicket, Timing, Usage};
pub use thread::{Engine, EngineConfig};
