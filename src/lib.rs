//! pixeld serves autoregressive image models: it samples them one channel value at a time and scores images exactly.
//!
//! ARCHITECTURE.md lists the modules in reading order, with what each owns.

pub mod app;
pub mod cli;
pub mod config;
pub mod decode;
pub mod engine;
pub mod error;
pub mod fleet;
pub mod head;
pub mod image;
pub mod import;
pub mod job;
pub mod machine;
pub mod metric;
pub mod model;
pub mod noise;
pub mod repository;
pub mod rpc;
pub mod sched;
pub mod security;
pub mod spec;
pub mod telemetry;
pub mod torch;
