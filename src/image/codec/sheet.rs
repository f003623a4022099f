//! Many images on one sheet, for people: enlarged until they can be seen, with a gap between them.

use png::{BitDepth, ColorType};

use super::png::{sample, write};
use crate::image::{Palette, Shape};

/// Side that a small image is enlarged to, about, in pixels.
const READABLE: u32 = 96;
/// Longest side of a sheet, in pixels: an RGB sheet then takes at most 192 MiB while it is made.
const MAX_SIDE: u32 = 8192;
/// Pixels between images and around them.
const GAP: u32 = 4;
const BACKGROUND: u8 = 0x30;

/// An RGB PNG of `images` (raster values of `shape`), `columns` in a line. One channel shows grey, or the
/// colours of the palette, and three show colour; of any other number the channels stand side by side, each in grey.
///
/// # Errors
/// What is wrong: no images, an image that is not of `shape`, or a sheet that would be beyond 8192 pixels a side.
pub fn contact_sheet(
    images: &[Vec<u16>],
    shape: Shape,
    palette: Option<&Palette>,
    columns: u32,
) -> Result<Vec<u8>, String> {
    if images.is_empty() || images.iter().any(|image| image.len() != shape.values() as usize) {
        return Err(format!("a sheet needs images of {} values each", shape.values()));
    }
    let columns = columns.clamp(1, images.len() as u32);
    let lines = (images.len() as u32).div_ceil(columns);
    let panels = if matches!(shape.channels(), 1 | 3) { 1 } else { shape.channels() };
    let (cell_width, cell_height) = (shape.width().saturating_mul(panels), shape.height());

    let room = |cells: u32, size: u32| (MAX_SIDE.saturating_sub(GAP) / cells).saturating_sub(GAP) / size;
    let largest = room(columns, cell_width).min(room(lines, cell_height));
    if largest == 0 {
        return Err(format!(
            "{columns} x {lines} images of {cell_width} x {cell_height} pixels make a sheet beyond {MAX_SIDE} pixels a side"
        ));
    }
    let readable = READABLE.div_ceil(shape.width().max(shape.height()));
    let cell = Cell { shape, palette, panels, scale: readable.min(largest) };

    let width = GAP + columns * (cell_width * cell.scale + GAP);
    let height = GAP + lines * (cell_height * cell.scale + GAP);
    let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height {
        for x in 0..width {
            let pixel = place(x, cell_width * cell.scale).zip(place(y, cell_height * cell.scale)).and_then(
                |((column, x), (line, y))| {
                    images.get((line * columns + column) as usize)?.get(..).map(|i| cell.pixel(i, x, y))
                },
            );
            rgb.extend_from_slice(&pixel.unwrap_or([BACKGROUND; 3]));
        }
    }
    write(width, height, ColorType::Rgb, BitDepth::Eight, &rgb)
}

/// Which cell a coordinate of the sheet lies in, and where in it. `None` in a gap.
fn place(at: u32, size: u32) -> Option<(u32, u32)> {
    let (cell, within) = (at / (size + GAP), at % (size + GAP));
    within.checked_sub(GAP).map(|within| (cell, within))
}

/// How one image is drawn.
struct Cell<'a> {
    shape: Shape,
    palette: Option<&'a Palette>,
    panels: u32,
    scale: u32,
}

impl Cell<'_> {
    /// The colour of pixel (`x`, `y`) of the drawn image.
    fn pixel(&self, image: &[u16], x: u32, y: u32) -> [u8; 3] {
        let (column, row) = (x / self.scale, y / self.scale);
        let (panel, column) = (column / self.shape.width(), column % self.shape.width());
        let first = (row * self.shape.width() + column) * self.shape.channels();
        let value = |channel: u32| image.get((first + channel) as usize).copied().unwrap_or_default();
        if let Some(palette) = self.palette {
            return palette.rgb(value(0));
        }
        let grey = |channel: u32| {
            let found = sample(value(channel), self.shape);
            if self.shape.levels() > 256 { (found >> 8) as u8 } else { found as u8 }
        };
        if self.panels == 1 && self.shape.channels() == 3 { [grey(0), grey(1), grey(2)] } else { [grey(panel); 3] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::codec::decode_png;

    /// The sheet's pixels, row by row, and its width.
    fn draw(images: &[Vec<u16>], shape: Shape, columns: u32) -> (Vec<[u16; 3]>, usize) {
        read(&contact_sheet(images, shape, None, columns).unwrap())
    }

    fn read(png: &[u8]) -> (Vec<[u16; 3]>, usize) {
        let header = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap().info().clone();
        let values = decode_png(png, Shape::new(header.height, header.width, 3, 256).unwrap(), None).unwrap();
        (values.as_chunks::<3>().0.to_vec(), header.width as usize)
    }

    #[test]
    fn a_colour_image_is_enlarged_and_framed() {
        let shape = Shape::new(1, 2, 3, 2).unwrap();
        let (pixels, width) = draw(&[vec![1, 0, 0, 0, 1, 0]], shape, 9);
        assert_eq!(width, 4 + 96 + 4);
        assert_eq!(pixels.len() / width, 4 + 48 + 4);
        let at = |x: usize, y: usize| pixels[y * width + x];
        assert_eq!(at(3, 4), [0x30; 3]);
        assert_eq!(at(4, 4), [255, 0, 0]);
        assert_eq!(at(4 + 47, 4 + 47), [255, 0, 0]);
        assert_eq!(at(4 + 48, 4), [0, 255, 0]);
        assert_eq!(at(4 + 96, 4), [0x30; 3]);
    }

    #[test]
    fn an_image_of_a_palette_is_drawn_in_its_colours() {
        let shape = Shape::new(1, 2, 1, 2).unwrap();
        let palette = Palette::new(vec![[1.0, 2.0, 3.4], [250.0, 0.0, 9.0]], shape).unwrap();
        let (pixels, width) = read(&contact_sheet(&[vec![1, 0]], shape, Some(&palette), 1).unwrap());
        assert_eq!([pixels[4 * width + 4], pixels[4 * width + 4 + 48]], [[250, 0, 9], [1, 2, 3]]);
    }

    #[test]
    fn other_channel_counts_stand_side_by_side_and_missing_images_stay_empty() {
        let shape = Shape::new(1, 1, 2, 65_536).unwrap();
        let (pixels, width) = draw(&[vec![0, 65_535], vec![65_535, 0], vec![0, 0]], shape, 2);
        assert_eq!(width, 4 + 2 * (2 * 96 + 4));
        let at = |x: usize, y: usize| pixels[y * width + x];
        assert_eq!((at(4, 4), at(4 + 96, 4)), ([0; 3], [255; 3]));
        assert_eq!(at(4 + 192 + 4, 4), [255; 3]);
        assert_eq!(at(4 + 192 + 4, 4 + 96 + 4), [0x30; 3]);
    }

    #[test]
    fn the_size_of_a_sheet_is_bounded() {
        let shape = Shape::new(1, 1024, 1, 2).unwrap();
        assert!(contact_sheet(&vec![vec![0; 1024]; 9], shape, None, 9).unwrap_err().contains("beyond 8192"));
        assert!(contact_sheet(&vec![vec![0; 1024]; 9], shape, None, 3).is_ok());
        let tiny = Shape::new(1, 1, 1, 2).unwrap();
        let png = contact_sheet(&vec![vec![1]; 1000], tiny, None, 500).unwrap();
        let (width, height) = png::Decoder::new(std::io::Cursor::new(&png)).read_header_info().unwrap().size();
        assert!(width > 4096 && width <= 8192 && height < 64, "{width} x {height}");
        assert!(contact_sheet(&[], tiny, None, 1).is_err());
        assert!(contact_sheet(&[vec![0; 2]], tiny, None, 1).is_err());
    }
}
