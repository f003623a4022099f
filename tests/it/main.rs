//! End to end: the app on a port of its own, driven by clients.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "everything here is a test, helpers too"
)]

mod bench;
mod cancellation;
mod churn;
mod connections;
mod crowd;
#[path = "../damage/mod.rs"]
mod damage;
mod deadlines;
mod drain;
mod faults;
mod generation;
mod harness;
mod health;
mod interop;
mod load_report;
mod logs;
mod models;
mod operated;
mod operation;
mod overload;
mod palette;
mod pki;
mod reference;
mod reflection;
mod refusals;
mod reloading;
mod resume;
mod scoring;
mod secrets;
mod stages;
mod steady;
#[path = "../../fuzz/subjects.rs"]
mod subjects;
mod tls;
mod tokens;
mod untrusted;
mod uploads;
