//! The texts beside an ImageGPT checkpoint: its configuration, and the colours of its image processor.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pixeld::import::{ImageGpt, clusters};

fuzz_target!(|text: &[u8]| {
    let _ = clusters(text);
    let _ = ImageGpt::new(text, &[[-1.0, 0.0, 1.0]; 4], None, None);
});
