//! pixeld serves autoregressive image models: it samples them one channel value at a time and scores images exactly.
//!
//! Modules in reading order.

pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod head;
pub mod image;
pub mod job;
pub mod model;
pub mod noise;
pub mod sched;
pub mod spec;
pub mod telemetry;
