//! One model on one thread a shard: plan, execute, commit, and the async side that feeds them and reads from them.

pub mod catalogue;
pub mod cohort;
mod core;
mod estimate;
pub mod event;
mod execute;
pub mod footprint;
mod gauges;
mod guarded;
mod handle;
pub mod health;
mod ledger;
mod live;
mod meter;
mod part;
mod pass;
mod shared;
mod shed;
mod split;
mod stages;
mod stream;
#[cfg(test)]
mod tests;
mod thread;

pub use core::SCORE_IMAGES;
pub use gauges::Load;
pub use handle::Handle;
pub use meter::observe;
pub use shared::{Kind, Permit};
pub use split::split;
pub use stages::LowImage;
pub use stream::{SampleStream, SampleSummary, Score, ScoreTicket, Timing, Usage};
pub use thread::{Engine, EngineConfig};
