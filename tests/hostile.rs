//! Damaged and malicious checkpoints: whatever is in them, reading ends, without a panic and within the memory it may take.

// Helpers of tests may panic as tests do.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod damage;

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::LazyLock;

use peak_alloc::PeakAlloc;
use pixeld::import::{
    self, Divisor, ImageGpt, ImageTransformer, OpenaiPixelCnn, PixelCnnPp, Reading, Tensors, clusters,
};
use proptest::prelude::*;

use self::damage::change;

// The only test of this program is the one below, so that nobody else's memory is counted.
#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const LIMIT: u64 = 1 << 18;

/// One checkpoint of each form, as their makers wrote it.
static WHOLE: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = [
        "import/image_transformer/dmol_local.pth",
        "import/image_transformer/dmol_one_block.pth",
        "import/pixel_cnn_pp/rgb_stream.pth",
        "import/image_gpt/relu_wide/pytorch_model.bin",
        "import/image_gpt/quick_gelu/model.safetensors",
        "import/openai_pixel_cnn/plain.npz",
        "image_transformer/post_sinusoidal_binary/weights.safetensors",
    ];
    files.iter().map(|file| fs::read(folder.join(file)).unwrap()).collect()
});

/// What is beside those that have a configuration.
static IMAGE_GPT: LazyLock<Vec<ImageGpt>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/import/image_gpt");
    let format = |(case, size)| {
        let [config, colours] =
            ["config.json", "preprocessor_config.json"].map(|file| fs::read(folder.join(case).join(file)).unwrap());
        ImageGpt::new(&config, &clusters(&colours).unwrap().unwrap(), size, Some(Divisor::Whole)).unwrap()
    };
    [("relu_wide", None), ("quick_gelu", Some([2, 8]))].map(format).to_vec()
});

/// A checkpoint of a form, damaged in a few places: of its first 4 KiB, of its last, or of all.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    (0..WHOLE.len(), 0usize..3, prop::collection::vec(change(), 1..6)).prop_map(|(file, part, changes)| {
        let mut bytes = WHOLE[file].clone();
        let near = 4096.min(bytes.len());
        let region = [0..near, bytes.len() - near..bytes.len(), 0..bytes.len()][part].clone();
        let mut piece = bytes[region.clone()].to_vec();
        changes.iter().for_each(|change| change.apply(&mut piece));
        bytes.splice(region, piece);
        bytes
    })
}

/// A stream around the items of a dictionary, with one storage, called 0.
fn stream(items: &[u8], held: i64, storage: &[u8]) -> Vec<u8> {
    let machine: &[u8] = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";
    let magic: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
    let keys: &[u8] = b"\x80\x02]X\x01\x00\x00\x000a.";
    [magic, machine, b"\x80\x02}(", items, b"u.", keys, &held.to_le_bytes(), storage].concat()
}

/// A stream whose object is a program of opcodes that fit each other now and then.
fn program() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: [&[u8]; 35] = [
        b"}",
        b"]",
        b")",
        b"(",
        b"t",
        b"u",
        b"s",
        b"e",
        b"a",
        b"b",
        b"R",
        b"Q",
        b"\x85",
        b"\x86",
        b"\x87",
        b"N",
        b"\x88",
        b"q\x00",
        b"h\x00",
        b"q\x01",
        b"h\x01",
        b"\x94",
        b"\x93",
        b"K\x00",
        b"K\x02",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"X\x01\x00\x00\x00w",
        b"U\x07storage",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nSize\n",
    ];
    let pieces = prop::collection::vec(prop::sample::select(&PIECES[..]), 0..60);
    let storage = prop::collection::vec(any::<u8>(), 0..40);
    (pieces, storage)
        .prop_map(|(pieces, storage)| stream(&[b"X\x01\x00\x00\x00w", &pieces.concat()[..]].concat(), 2, &storage))
}

/// A stream of well-formed tensors over one storage, of sizes that mostly have nothing to do with it.
fn views() -> impl Strategy<Value = Vec<u8>> {
    let number = || prop_oneof![4 => 0i64..5, 2 => (0u32..40).prop_map(|bit| 1i64 << bit), 1 => any::<i64>()];
    let class = prop::sample::select(&["Byte", "Half", "BFloat16", "Float", "Double", "Long"][..]);
    let sizes = || prop::collection::vec(number(), 0..4);
    let elements = prop_oneof![4 => 0i64..9, 1 => number()];
    let strides = prop_oneof![Just(Vec::new()), sizes()];
    let views = prop::collection::vec((prop_oneof![2 => Just(0), 1 => number()], sizes(), strides), 1..3);
    (class, elements, views, prop::collection::vec(any::<u8>(), 40..80)).prop_map(
        |(class, elements, views, storage)| {
            let long = |number: &i64| [b"\x8a\x08", &number.to_le_bytes()[..]].concat();
            let tuple =
                |numbers: &[i64]| [b"(", &numbers.iter().flat_map(long).collect::<Vec<u8>>()[..], b"t"].concat();
            let id = format!("((U\x07storagectorch\n{class}Storage\nX\x01\0\0\x000N").into_bytes();
            let id = [&id[..], &long(&elements), b"tQ"].concat();
            let mut items = Vec::new();
            for (index, (offset, shape, strides)) in views.into_iter().enumerate() {
                let strides: Vec<_> = strides.into_iter().chain([0; 4]).take(shape.len()).collect();
                let call = format!("X\x01\0\0\0{index}ctorch._utils\n_rebuild_tensor\n").into_bytes();
                items
                    .extend([call, id.clone(), long(&offset), tuple(&shape), tuple(&strides), b"tR".to_vec()].concat());
            }
            stream(&items, elements, &storage)
        },
    )
}

/// What each importer makes of `tensors`; nothing counts but that it comes back.
fn import_all(tensors: &Tensors) {
    for size in [0, 8, u32::MAX] {
        let _ = PixelCnnPp { height: size, width: size }.draft(tensors.clone());
        let _ = OpenaiPixelCnn { height: size, width: size }.draft(tensors.clone());
        for block_length in [None, Some(size)] {
            let format = ImageTransformer { image_size: size, num_heads: size, block_length };
            let _ = format.draft(tensors.clone());
        }
    }
    for format in IMAGE_GPT.iter() {
        let _ = format.clone().draft(tensors.clone());
    }
}

proptest! {
    #[test]
    fn no_checkpoint_takes_more_than_it_may(bytes in prop_oneof![2 => damaged(), 1 => program(), 2 => views()]) {
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let reading = Reading { limit: LIMIT, key: None };
        let read = import::read_from(Cursor::new(&bytes), bytes.len() as u64, reading);
        // All tensors, one storage, and that while it grows; objects of a pickle are larger than the bytes they come from.
        let allowed = 4 * LIMIT as usize + 64 * bytes.len() + (1 << 16);
        let taken = ALLOCATOR.peak_usage().saturating_sub(before);
        prop_assert!(taken <= allowed, "{taken} bytes for a file of {}", bytes.len());
        if let Ok(tensors) = read {
            let held: usize = tensors.values().map(|tensor| 4 * tensor.values.len()).sum();
            prop_assert!(held as u64 <= LIMIT);
            for tensor in tensors.values() {
                prop_assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>());
            }
            import_all(&tensors);
        }
    }
}
