//! One image as a PNG file that loses nothing: eight bits deep up to 256 levels, sixteen above. With a palette, RGB of eight.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Encoder, Limits, Transformations};

use crate::image::{Palette, Shape};

/// What the decoder may allocate beside the image itself, for metadata that nobody reads.
const SPARE_BYTES: usize = 1 << 20;

/// The values of a PNG file in raster order; with a palette, of each pixel the level whose colour is nearest.
///
/// # Errors
/// What is wrong: not a PNG, cut short, of another geometry than `shape`, or holding a sample that is no level.
pub fn decode_png(bytes: &[u8], shape: Shape, palette: Option<&Palette>) -> Result<Vec<u16>, String> {
    let wanted = form(shape, palette)?;
    let frame_bytes = frame_bytes(shape, wanted);
    let mut decoder =
        Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: frame_bytes.saturating_add(SPARE_BYTES) });
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);

    // A file that lies about its size is refused here, before anything the size of an image is allocated.
    let header = decoder.read_header_info().map_err(|error| format!("must be a PNG file: {error}"))?;
    let (width, height) = header.size();
    if (width, height) != (shape.width(), shape.height()) {
        let (want_width, want_height) = (shape.width(), shape.height());
        return Err(format!("must be {want_width} pixels wide and {want_height} high, got {width} and {height}"));
    }
    let found = (header.color_type, header.bit_depth);
    if found != wanted {
        return Err(format!("must be {}, got {}", describe(wanted), describe(found)));
    }

    let broken = |error| format!("the PNG file is damaged: {error}");
    let mut reader = decoder.read_info().map_err(broken)?;
    if reader.info().is_animated() {
        return Err("must be one image, got an animation".to_owned());
    }
    let mut samples = vec![0; frame_bytes];
    reader.next_frame(&mut samples).map_err(broken)?;
    reader.finish().map_err(broken)?;

    if let Some(palette) = palette {
        return Ok(samples.as_chunks::<3>().0.iter().map(|&rgb| palette.nearest(rgb)).collect());
    }
    let values: Result<Vec<u16>, usize> = match wanted.1 {
        BitDepth::Sixteen => {
            let pairs = samples.as_chunks::<2>().0.iter();
            pairs.map(|&pair| u16::from_be_bytes(pair)).enumerate().map(|(at, s)| value(s, shape).ok_or(at)).collect()
        }
        _ => samples.iter().enumerate().map(|(at, &s)| value(u16::from(s), shape).ok_or(at)).collect(),
    };
    values.map_err(|at| not_a_level(at, shape))
}

/// A PNG file that [`decode_png`] turns back into exactly these `values` (raster order), if no two colours of the palette are
/// so near that rounding makes one of them the other.
///
/// # Errors
/// What is wrong: a number of channels that PNG cannot hold, or values that do not make an image of `shape`.
pub fn encode_png(values: &[u16], shape: Shape, palette: Option<&Palette>) -> Result<Vec<u8>, String> {
    let (color, depth) = form(shape, palette)?;
    if values.len() != shape.values() as usize || values.iter().any(|&v| u32::from(v) >= shape.levels()) {
        return Err(format!("must be {} values of 0..={}", shape.values(), shape.levels() - 1));
    }
    let data: Vec<u8> = match (palette, depth) {
        (Some(palette), _) => values.iter().flat_map(|&value| palette.rgb(value)).collect(),
        (None, BitDepth::Sixteen) => values.iter().flat_map(|&value| sample(value, shape).to_be_bytes()).collect(),
        (None, _) => values.iter().map(|&value| sample(value, shape) as u8).collect(),
    };
    write(shape.width(), shape.height(), color, depth, &data)
}

/// A PNG file of `data`, which must be exactly the samples of such an image.
pub(super) fn write(
    width: u32,
    height: u32,
    color: ColorType,
    depth: BitDepth,
    data: &[u8],
) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer.write_image_data(data).map_err(|error| error.to_string())?;
    writer.finish().map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// What stands in the file for `value`: round(value * (2^depth - 1) / (levels - 1)), halves up.
pub(super) fn sample(value: u16, shape: Shape) -> u16 {
    let (top, last) = (top_sample(shape), u64::from(shape.levels() - 1));
    ((2 * u64::from(value) * top + last) / (2 * last)) as u16
}

/// The value that `sample` stands for. A step between samples is at least 1, so that there is at most one.
fn value(sample_found: u16, shape: Shape) -> Option<u16> {
    let (top, last) = (top_sample(shape), u64::from(shape.levels() - 1));
    let nearest = ((2 * u64::from(sample_found) * last + top) / (2 * top)) as u16;
    (sample(nearest, shape) == sample_found).then_some(nearest)
}

fn not_a_level(at: usize, shape: Shape) -> String {
    let (channels, width) = (shape.channels() as usize, shape.width() as usize);
    let (row, column, channel) = (at / channels / width, at / channels % width, at % channels);
    format!(
        "the sample at row {row}, column {column}, channel {channel} stands for none of the {} levels",
        shape.levels()
    )
}

fn frame_bytes(shape: Shape, (color, depth): (ColorType, BitDepth)) -> usize {
    let pixels = shape.height() as usize * shape.width() as usize;
    pixels * color.samples() * if depth == BitDepth::Sixteen { 2 } else { 1 }
}

/// How the samples of an image are laid out.
fn form(shape: Shape, palette: Option<&Palette>) -> Result<(ColorType, BitDepth), String> {
    match palette {
        Some(_) => Ok((ColorType::Rgb, BitDepth::Eight)),
        None => Ok((color_type(shape)?, depth(shape))),
    }
}

fn depth(shape: Shape) -> BitDepth {
    if shape.levels() <= 256 { BitDepth::Eight } else { BitDepth::Sixteen }
}

fn top_sample(shape: Shape) -> u64 {
    if depth(shape) == BitDepth::Sixteen { 65_535 } else { 255 }
}

fn color_type(shape: Shape) -> Result<ColorType, String> {
    match shape.channels() {
        1 => Ok(ColorType::Grayscale),
        2 => Ok(ColorType::GrayscaleAlpha),
        3 => Ok(ColorType::Rgb),
        4 => Ok(ColorType::Rgba),
        channels => Err(format!("PNG holds 1 to 4 channels, the model has {channels}; use raw values")),
    }
}

fn describe((color, depth): (ColorType, BitDepth)) -> String {
    let color = match color {
        ColorType::Grayscale => "grey",
        ColorType::GrayscaleAlpha => "grey with alpha",
        ColorType::Rgb => "RGB",
        ColorType::Rgba => "RGBA",
        ColorType::Indexed => "indexed colour",
    };
    format!("{color} of {} bits", depth as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shapes() -> impl Strategy<Value = Shape> {
        let levels = prop_oneof![2u32..=257, 257u32..=65_536, Just(256), Just(65_536)];
        (1u32..6, 1u32..6, 1u32..=4, levels).prop_map(|(h, w, c, l)| Shape::new(h, w, c, l).unwrap())
    }

    fn images() -> impl Strategy<Value = (Shape, Vec<u16>)> {
        shapes().prop_flat_map(|shape| {
            let values = prop::collection::vec(0..=(shape.levels() - 1) as u16, shape.values() as usize);
            (Just(shape), values)
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back((shape, values) in images()) {
            let png = encode_png(&values, shape, None).unwrap();
            prop_assert_eq!(decode_png(&png, shape, None), Ok(values));
        }

        #[test]
        fn damaged_files_are_refused_or_read_and_never_panic(
            (shape, values) in images(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let whole = encode_png(&values, shape, None).unwrap();
            let mut png = whole.clone();
            for (at, byte) in edits {
                let at = at.index(png.len());
                png[at] = byte;
            }
            if let Ok(read) = decode_png(&png, shape, None) {
                prop_assert_eq!(read.len(), values.len());
            }
            prop_assert!(decode_png(&whole[..cut.index(whole.len())], shape, None).is_err());
        }

        #[test]
        fn bytes_that_are_no_png_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(decode_png(&bytes, Shape::new(1, 1, 1, 2).unwrap(), None).is_err());
        }
    }

    #[test]
    fn levels_of_a_palette_are_written_in_colour_and_any_colour_is_read_as_the_nearest() {
        let shape = Shape::new(2, 150, 1, 300).unwrap();
        let colours = (0..300).map(|level| [f64::from(level % 20) * 13.3, f64::from(level / 20) * 17.0, 0.4]);
        let palette = Palette::new(colours.collect(), shape).unwrap();
        let values: Vec<u16> = (0..300).rev().collect();
        let png = encode_png(&values, shape, Some(&palette)).unwrap();
        assert_eq!(decode_png(&png, shape, Some(&palette)), Ok(values));
        let rgb = Shape::new(2, 150, 3, 256).unwrap();
        let samples = decode_png(&png, rgb, None).unwrap();
        assert_eq!(samples[..6], [253, 238, 0, 239, 238, 0], "levels 299 and 298");
        let shifted: Vec<u16> = samples.iter().map(|&sample| (sample + 2).min(255)).collect();
        let read = decode_png(&encode_png(&shifted, rgb, None).unwrap(), shape, Some(&palette)).unwrap();
        assert_eq!(read[..2], [299, 298]);
        let grey = encode_png(&[0; 300], Shape::new(2, 150, 1, 256).unwrap(), None).unwrap();
        assert!(decode_png(&grey, shape, Some(&palette)).unwrap_err().contains("must be RGB of 8 bits, got grey"));
        assert!(encode_png(&[300; 300], shape, Some(&palette)).is_err(), "no such level");
    }

    #[test]
    fn every_level_keeps_its_own_sample() {
        for levels in [2, 3, 5, 16, 100, 255, 256, 257, 1000, 40_000, 65_536] {
            let shape = Shape::new(1, 1, 1, levels).unwrap();
            for level in 0..=(levels - 1) as u16 {
                assert_eq!(value(sample(level, shape), shape), Some(level), "{levels} levels");
            }
        }
    }

    #[test]
    fn a_sample_that_is_no_level_is_refused_by_its_place() {
        let (fine, coarse) = (Shape::new(2, 3, 3, 256).unwrap(), Shape::new(2, 3, 3, 4).unwrap());
        let mut values = vec![85; 18];
        values[13] = 86;
        let message = decode_png(&encode_png(&values, fine, None).unwrap(), coarse, None).unwrap_err();
        assert_eq!(message, "the sample at row 1, column 1, channel 1 stands for none of the 4 levels");
    }

    #[test]
    fn another_geometry_is_refused_from_the_header_alone() {
        let small = Shape::new(2, 2, 1, 256).unwrap();
        let huge = write_header_only(60_000, 60_000, ColorType::Grayscale);
        let message = decode_png(&huge, small, None).unwrap_err();
        assert_eq!(message, "must be 2 pixels wide and 2 high, got 60000 and 60000");
        let colour = encode_png(&[0; 12], Shape::new(2, 2, 3, 256).unwrap(), None).unwrap();
        assert_eq!(decode_png(&colour, small, None).unwrap_err(), "must be grey of 8 bits, got RGB of 8 bits");
        let deep = encode_png(&[0; 4], Shape::new(2, 2, 1, 257).unwrap(), None).unwrap();
        assert_eq!(decode_png(&deep, small, None).unwrap_err(), "must be grey of 8 bits, got grey of 16 bits");
        assert!(encode_png(&[0; 5], Shape::new(1, 1, 5, 2).unwrap(), None).unwrap_err().contains("the model has 5"));
        assert!(encode_png(&[2], Shape::new(1, 1, 1, 2).unwrap(), None).is_err());
    }

    fn write_header_only(width: u32, height: u32, color: ColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        drop(encoder.write_header().unwrap());
        bytes
    }
}
