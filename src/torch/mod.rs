//! Everything about libtorch that families share. No gradient is ever wanted: weights carry none, and every entry point
//! of a model holds a [`tch::no_grad_guard`] while it computes.

mod device;
pub mod weights;

use std::panic::catch_unwind;
use std::sync::Once;

pub use device::{find, place};
use tch::TchError;

use crate::model::ModelError;

/// What the allocators of libtorch say when they have no more: that of CUDA, the driver below it, and that of the CPU.
const MEMORY: [&str; 3] = ["out of memory", "not enough memory", "can't allocate memory"];

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
    /// A CUDA error is sticky, but for that of memory: every later call in this process fails too. Anything else spoils one
    /// call.
    fn from(error: TchError) -> Self {
        model_error(first_line(&error))
    }
}

/// What the libtorch message `message` means for the model.
pub(crate) fn model_error(message: String) -> ModelError {
    if MEMORY.iter().any(|words| message.contains(words)) {
        ModelError::Memory(message)
    } else if message.contains("CUDA error") {
        ModelError::Fatal(message)
    } else {
        ModelError::Step(message)
    }
}

/// The first line of a libtorch message: a stack trace follows it.
pub(crate) fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_says_of_memory_is_no_fault_of_the_model() {
        // An allocation that no machine has.
        let refused = tch::Tensor::f_zeros([1 << 50], (tch::Kind::Float, tch::Device::Cpu)).unwrap_err();
        assert!(matches!(ModelError::from(refused), ModelError::Memory(_)));
        let of = |message: &str| model_error(message.to_owned());
        assert!(matches!(of("CUDA out of memory. Tried to allocate 2.00 GiB"), ModelError::Memory(_)));
        assert!(matches!(of("CUDA error: out of memory"), ModelError::Memory(_)));
        assert!(matches!(of("CUDA error: an illegal memory access was encountered"), ModelError::Fatal(_)));
        assert!(matches!(of("The size of tensor a (3) must match"), ModelError::Step(_)));
    }
}
