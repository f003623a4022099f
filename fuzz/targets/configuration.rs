//! Configuration files and settings of the command line.

#![no_main]

#[path = "../subjects.rs"]
#[allow(dead_code, reason = "each target has its own subject")]
mod subjects;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    subjects::configuration(input);
});
