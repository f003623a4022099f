//! Values to and from bytes: raw, PNG of one image, and a PNG of many images for people.

mod png;
mod raw;
mod sheet;

pub use self::png::{decode_png, encode_png};
pub use self::raw::{values_from_raw, values_to_raw};
pub use self::sheet::contact_sheet;
