//! What reads the messages of clients, their PNG files and the configuration, and what must hold of all that it takes.
//! The fuzz targets and the test `it::untrusted` both feed it.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use pixeld::config::{self, Flag, Layers};
use pixeld::engine::catalogue::Catalogue;
use pixeld::engine::{Engine, EngineConfig, SCORE_IMAGES};
use pixeld::image::{Palette, Shape, codec};
use pixeld::job::Limits;
use pixeld::model::Placement;
use pixeld::repository::{self, Source};
use pixeld::rpc::messages::{Asked, Kind, Messages};

macro_rules! package {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../tests/golden/gated_pixel_cnn/", $name, "/model.toml")),
            include_bytes!(concat!("../tests/golden/gated_pixel_cnn/", $name, "/weights.safetensors")),
        )
    };
}

/// Models with classes, with a low-resolution image, and with values of two bytes.
const PACKAGES: [(&str, &[u8], &[u8]); 3] =
    [package!("mod_rgb_class"), package!("contiguous_rgb_low"), package!("wide_values_class")];

const LIMITS: Limits = Limits {
    images_per_request: 16,
    items_per_request: 16,
    queue_timeout: Duration::from_secs(60),
    unread_timeout: Duration::from_secs(30),
};

/// Services over these models, whose engines are never given anything to do.
static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    let catalogue = Catalogue::new();
    for (name, manifest, weights) in PACKAGES {
        let source = Source::Embedded { manifest: manifest.into(), weights: weights.into() };
        let model = repository::load(&source, Placement::new(1, SCORE_IMAGES), repository::Limits::default());
        let engine = Engine::start(model.expect("a package"), 1, EngineConfig::default()).expect("an engine");
        catalogue.replace(name, engine.handle());
    }
    Messages::new(&catalogue, LIMITS)
});

/// A message of the kind that its first byte says; whether it is taken.
pub(crate) fn message(input: &[u8]) -> bool {
    let [kind, message @ ..] = input else { return false };
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    match MESSAGES.read(kind, message) {
        Ok(Asked::Sample(job)) => {
            assert!((1..=LIMITS.images_per_request).contains(&job.images), "{job:?}");
            assert!(job.prefix.known() <= job.prefix.shape().values(), "{job:?}");
            let levels = job.prefix.shape().levels();
            assert!(job.prefix.values().iter().all(|&value| u32::from(value) < levels), "{job:?}");
            true
        }
        Ok(Asked::Score(job)) => {
            assert!((1..=LIMITS.items_per_request as usize).contains(&job.items.len()), "{job:?}");
            assert!(job.items.iter().all(|(canvas, _)| canvas.is_complete()), "{job:?}");
            true
        }
        // Answers go in trailers, which have little room.
        Err(status) => {
            assert!(status.details().len() < 5 << 10 && status.message().len() < 2 << 10, "{status:?}");
            false
        }
    }
}

/// Shapes that images are read as; the last one has a palette.
fn shapes() -> [(Shape, Option<Palette>); 5] {
    let shape = |height, width, channels, levels| Shape::new(height, width, channels, levels).expect("a shape");
    let indexed = shape(3, 5, 1, 4);
    let colours = (0..4).map(|level| [f64::from(level) * 60.0, 0.0, 255.0]).collect();
    let palette = Palette::new(colours, indexed).expect("a palette");
    [
        (shape(2, 2, 1, 256), None),
        (shape(4, 5, 3, 16), None),
        (shape(3, 3, 1, 65_536), None),
        (shape(2, 3, 4, 257), None),
        (indexed, Some(palette)),
    ]
}

/// A PNG file, read as an image of the shape that the first byte chooses; whether it is taken.
pub(crate) fn png(input: &[u8]) -> bool {
    static SHAPES: LazyLock<[(Shape, Option<Palette>); 5]> = LazyLock::new(shapes);
    let [choice, file @ ..] = input else { return false };
    let (shape, palette) = &SHAPES[usize::from(*choice) % SHAPES.len()];
    let Ok(values) = codec::decode_png(file, *shape, palette.as_ref()) else { return false };
    assert_eq!(values.len(), shape.values() as usize);
    assert!(values.iter().all(|&value| u32::from(value) < shape.levels()), "{values:?}");
    let again = codec::encode_png(&values, *shape, palette.as_ref()).expect("an image");
    assert_eq!(codec::decode_png(&again, *shape, palette.as_ref()).as_ref(), Ok(&values));
    true
}

/// A configuration file, and behind the first NUL settings as they are given with `--set`, with NULs between them; whether
/// it is taken. What is printed of it must be read as the same.
pub(crate) fn configuration(input: &[u8]) -> bool {
    let mut pieces = input.split(|&byte| byte == 0);
    let file = Scratch::new(pieces.next().unwrap_or_default());
    let flags = pieces.filter_map(|piece| std::str::from_utf8(piece).ok()?.split_once('='));
    let flag = |(key, value): (&str, &str)| Flag { name: "--set", key: key.to_owned(), value: value.to_owned() };
    let layers = |file: &Scratch, flags| Layers {
        file: Some(file.0.clone()),
        environment: Some(config::Variables::default()),
        flags,
        ..Layers::default()
    };
    match config::load(&layers(&file, flags.map(flag).collect())) {
        Ok(found) => {
            let printed = Scratch::new(found.to_string().as_bytes());
            assert_eq!(config::load(&layers(&printed, Vec::new())), Ok(found));
            true
        }
        Err(faults) => {
            assert!(!faults.to_string().is_empty());
            false
        }
    }
}

/// A file that goes away again.
struct Scratch(PathBuf);

impl Scratch {
    fn new(text: &[u8]) -> Self {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pixeld-untrusted-{}-{number}.toml", std::process::id()));
        fs::write(&path, text).expect("a file");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
