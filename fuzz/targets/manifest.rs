//! Manifests, and the tensors that every family asks for by them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pixeld::model::FAMILIES;
use pixeld::model::manifest::Manifest;

fuzz_target!(|text: &[u8]| {
    let Ok(manifest) = Manifest::parse(text) else { return };
    for family in FAMILIES {
        let _ = (family.tensors)(&manifest);
    }
});
