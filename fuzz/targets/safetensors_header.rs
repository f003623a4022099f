//! Headers of safetensors files, whether weights of a package or a checkpoint.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = pixeld::model::safetensors_header(&mut &*bytes, bytes.len() as u64);
});
