//! Everything about libtorch that families share. No gradient is ever wanted: weights carry none, and every entry point
//! of a model holds a [`tch::no_grad_guard`] while it computes.

pub mod weights;

use std::panic::catch_unwind;
use std::sync::Once;

use tch::TchError;

use crate::model::ModelError;

/// Limits libtorch to `threads` threads inside an operation, and to one between operations. Call it once, before any
/// model is built; later calls do nothing. One thread is right where each model has a thread of its own: more of them
/// only help when a step is large, and change the bits of some results.
pub fn limit_threads(threads: u32) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
        // libtorch refuses this once any work has run in parallel; the limit above is the one that matters.
        let _ = catch_unwind(|| tch::set_num_interop_threads(1));
    });
}

impl From<TchError> for ModelError {
    /// A CUDA error is sticky: every later call in this process fails too. Anything else spoils one call.
    fn from(error: TchError) -> Self {
        let message = first_line(&error);
        if message.contains("CUDA error") { ModelError::Fatal(message) } else { ModelError::Step(message) }
    }
}

/// The first line of a libtorch message: a stack trace follows it.
pub(crate) fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
