//! Checkpoints of every form, and what each importer makes of those that are read.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use pixeld::import::{self, ImageTransformer, OpenaiPixelCnn, PixelCnnPp, Reading};

fuzz_target!(|bytes: &[u8]| {
    let reading = Reading { limit: 1 << 20, key: None };
    let Ok(tensors) = import::read_from(Cursor::new(bytes), bytes.len() as u64, reading) else { return };
    let _ = PixelCnnPp { height: 8, width: 8 }.draft(tensors.clone());
    let _ = OpenaiPixelCnn { height: 8, width: 8 }.draft(tensors.clone());
    let _ = ImageTransformer { image_size: 4, num_heads: 2, block_length: Some(10) }.draft(tensors);
});
