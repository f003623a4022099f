//! Pickles: the input is the object of a stream of `torch.save`, and what follows it.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use pixeld::import::{self, Reading};

/// The magic number, the version, and the machine that wrote it.
const BEFORE: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\
                        \x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";

fuzz_target!(|object: &[u8]| {
    let bytes = [BEFORE, object].concat();
    let reading = Reading { limit: 1 << 20, key: None };
    let _ = import::read_from(Cursor::new(&bytes), bytes.len() as u64, reading);
});
