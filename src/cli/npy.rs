//! NumPy files: images in and out, class labels and colours in.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use npyz::{DType, NpyFile, TypeChar, WriterBuilder};

use super::failure::Failure;
use crate::image::Shape;
use crate::import::npz;

/// Most labels read at once.
const MAX_LABELS: u64 = 1 << 24;
/// Most colours read.
const MAX_COLOURS: u64 = 1 << 16;

/// Images in a file, one after the other.
pub(super) struct Images {
    /// How many.
    pub(super) count: u64,
    /// Rows, columns, channels.
    pub(super) size: [u64; 3],
    wide: bool,
    file: NpyFile<BufReader<File>>,
}

impl Images {
    /// Opens [n, h, w, c] or [n, h, w] in `uint8` or `uint16`.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let (file, bytes) = open(path)?;
        let refuse = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
        let (count, size) = match *file.shape() {
            [n, h, w] => (n, [h, w, 1]),
            [n, h, w, c] => (n, [h, w, c]),
            ref other => return Err(refuse(format!("must be of shape [n, h, w, c] or [n, h, w], got {other:?}"))),
        };
        let wide = match plain(&file) {
            Some((TypeChar::Uint, 1)) => false,
            Some((TypeChar::Uint, 2)) => true,
            _ => return Err(refuse(format!("must hold uint8 or uint16, got {}", file.dtype().descr()))),
        };
        if file.order() != npyz::Order::C && file.shape().len() > 1 {
            return Err(refuse("must be in C order; save it with numpy.ascontiguousarray".to_owned()));
        }
        // The header was refused if this product overflows.
        let wanted = file.len().saturating_mul(if wide { 2 } else { 1 });
        if bytes < wanted {
            return Err(refuse(format!("is cut short: {wanted} bytes of values announced, {bytes} there")));
        }
        Ok(Self { count, size, wide, file })
    }

    /// Refuses images that are not of `shape`.
    pub(super) fn expect(&self, shape: Shape) -> Result<(), String> {
        let wanted = [shape.height(), shape.width(), shape.channels()].map(u64::from);
        if self.size == wanted { Ok(()) } else { Err(format!("must hold images of {wanted:?}, got {:?}", self.size)) }
    }

    /// The images of `shape` in raster order, as they are read.
    pub(super) fn values(self, shape: Shape) -> Result<impl Iterator<Item = Result<Vec<u16>, String>>, String> {
        self.expect(shape)?;
        let broken = |error: std::io::Error| error.to_string();
        let mut values: Box<dyn Iterator<Item = Result<u16, String>>> = if self.wide {
            Box::new(self.file.data::<u16>().map_err(|error| error.to_string())?.map(move |v| v.map_err(broken)))
        } else {
            let bytes = self.file.data::<u8>().map_err(|error| error.to_string())?;
            Box::new(bytes.map(move |v| v.map(u16::from).map_err(broken)))
        };
        Ok((0..self.count).map(move |_| values.by_ref().take(shape.values() as usize).collect()))
    }
}

/// Class labels: one dimension of whole numbers.
pub(super) fn labels(path: &Path) -> Result<Vec<u32>, Failure> {
    let (file, bytes) = open(path)?;
    let refuse = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
    if file.shape().len() != 1 {
        return Err(refuse(format!("must have one dimension, got {:?}", file.shape())));
    }
    if file.len() > MAX_LABELS || file.len() > bytes {
        return Err(refuse(format!("announces {} labels in {bytes} bytes", file.len())));
    }
    let read = match plain(&file) {
        Some((TypeChar::Uint, 1)) => whole::<u8>(file),
        Some((TypeChar::Uint, 2)) => whole::<u16>(file),
        Some((TypeChar::Uint, 4)) => whole::<u32>(file),
        Some((TypeChar::Uint, 8)) => whole::<u64>(file),
        Some((TypeChar::Int, 1)) => whole::<i8>(file),
        Some((TypeChar::Int, 2)) => whole::<i16>(file),
        Some((TypeChar::Int, 4)) => whole::<i32>(file),
        Some((TypeChar::Int, 8)) => whole::<i64>(file),
        _ => Err(format!("must hold whole numbers, got {}", file.dtype().descr())),
    };
    read.map_err(refuse)
}

/// Colours: [n, 3] in `float32` or `float64`.
pub(super) fn colours(path: &Path) -> Result<Vec<[f64; 3]>, Failure> {
    let (file, bytes) = open(path)?;
    let refuse = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
    let [count, 3] = *file.shape() else {
        return Err(refuse(format!("must be of shape [n, 3], got {:?}", file.shape())));
    };
    if count > MAX_COLOURS || file.len() > bytes {
        return Err(refuse(format!("announces {count} colours in {bytes} bytes, at most {MAX_COLOURS} are read")));
    }
    if file.order() != npyz::Order::C {
        return Err(refuse("must be in C order; save it with numpy.ascontiguousarray".to_owned()));
    }
    let numbers: Result<Vec<f64>, _> = match plain(&file) {
        Some((TypeChar::Float, 4)) => file.into_vec::<f32>().map(|all| all.into_iter().map(f64::from).collect()),
        Some((TypeChar::Float, 8)) => file.into_vec::<f64>(),
        _ => return Err(refuse(format!("must hold float32 or float64, got {}", file.dtype().descr()))),
    };
    Ok(numbers.map_err(|error| refuse(error.to_string()))?.as_chunks::<3>().0.to_vec())
}

fn whole<T: npyz::Deserialize + TryInto<u32>>(file: NpyFile<BufReader<File>>) -> Result<Vec<u32>, String> {
    let labels = file.into_vec::<T>().map_err(|error| error.to_string())?;
    let labels: Option<_> = labels.into_iter().map(|label| label.try_into().ok()).collect();
    labels.ok_or_else(|| "holds a label below 0 or beyond 32 bits".to_owned())
}

/// Kind and size of a plain element type.
fn plain(file: &NpyFile<BufReader<File>>) -> Option<(TypeChar, u64)> {
    match file.dtype() {
        DType::Plain(kind) => Some((kind.type_char(), kind.size_field())),
        _ => None,
    }
}

/// A file behind its header, and the bytes that follow.
fn open(path: &Path) -> Result<(NpyFile<BufReader<File>>, u64), Failure> {
    let refuse = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
    let mut reader = BufReader::new(File::open(path).map_err(|error| refuse(error.to_string()))?);
    let header = expect_plain_header(&mut reader).map_err(refuse)?;
    let bytes = reader.get_ref().metadata().map_err(|error| refuse(error.to_string()))?.len();
    let file = NpyFile::new(reader).map_err(|error| refuse(error.to_string()))?;
    Ok((file, bytes.saturating_sub(header)))
}

/// Checks the header as far as the parser trusts it. Returns its length and rewinds.
fn expect_plain_header(reader: &mut (impl Read + Seek)) -> Result<u64, String> {
    let mut start = Vec::new();
    reader.take(npz::MAX_HEADER as u64).read_to_end(&mut start).map_err(|error| error.to_string())?;
    let length = npz::check_header(&start)?;
    reader.seek(SeekFrom::Start(0)).map_err(|error| error.to_string())?;
    Ok(length as u64)
}

/// A file of `images` (raster values of `shape`): [n, h, w, c], `uint8` up to 256 levels and `uint16` above.
pub(super) fn encode<'a>(images: impl ExactSizeIterator<Item = &'a [u16]>, shape: Shape) -> Result<Vec<u8>, Failure> {
    let broken = |error: std::io::Error| Failure::Internal(error.to_string());
    let mut bytes = Vec::new();
    let size = [images.len() as u64, shape.height().into(), shape.width().into(), shape.channels().into()];
    let values = images.flatten().copied();
    if shape.bytes_per_value() == 1 {
        let options = npyz::WriteOptions::new().default_dtype().shape(&size).writer(&mut bytes);
        let mut writer = options.begin_nd().map_err(broken)?;
        writer.extend(values.map(|value| value as u8)).and_then(|()| writer.finish()).map_err(broken)?;
    } else {
        let options = npyz::WriteOptions::new().default_dtype().shape(&size).writer(&mut bytes);
        let mut writer = options.begin_nd().map_err(broken)?;
        writer.extend(values).and_then(|()| writer.finish()).map_err(broken)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn read(bytes: &[u8], shape: Shape) -> Result<Vec<Vec<u16>>, String> {
        let file = file(bytes);
        let images = Images::open(file.path()).map_err(|failure| failure.message().unwrap().to_owned())?;
        images.values(shape)?.collect()
    }

    fn with_header(text: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn images_that_were_written_are_read_back() {
        for levels in [256, 257] {
            let shape = Shape::new(2, 3, 2, levels).unwrap();
            let images: Vec<Vec<u16>> = (0..3).map(|i| (0..12).map(|v| i * 80 + v).collect()).collect();
            let bytes = encode(images.iter().map(Vec::as_slice), shape).unwrap();
            assert_eq!(read(&bytes, shape), Ok(images));
            assert!(read(&bytes, Shape::new(3, 2, 2, levels).unwrap()).unwrap_err().contains("[3, 2, 2]"));
            assert!(read(&bytes[..bytes.len() - 1], shape).unwrap_err().contains("cut short"));
        }
        let grey = with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 2), }\n", &[7, 8]);
        assert_eq!(read(&grey, Shape::new(1, 2, 1, 9).unwrap()), Ok(vec![vec![7, 8]]));
        let big_endian = with_header("{'descr': '>u2', 'fortran_order': False, 'shape': (1, 1, 1), }\n", &[1, 2]);
        assert_eq!(read(&big_endian, Shape::new(1, 1, 1, 300).unwrap()), Ok(vec![vec![258]]));
    }

    #[test]
    fn headers_that_are_not_those_of_images_are_refused() {
        let shape = Shape::new(1, 1, 1, 2).unwrap();
        for (header, word) in [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1), }", "uint8"),
            ("{'descr': '|u1', 'fortran_order': True, 'shape': (1, 1, 1), }", "C order"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }", "[n, h, w, c]"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 1), }", "more values"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999, 1, 1), }", "more values"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }", "cut short"),
            (&"(".repeat(5000), "header"),
            (&"(".repeat(400), ""),
        ] {
            let message = read(&with_header(header, &[0]), shape).unwrap_err();
            assert!(message.contains(word), "{header}: {message}");
        }
        assert!(read(b"PK", shape).unwrap_err().contains("no NumPy file"));
        assert!(read(b"\x93NUMPY\x02\x00\xff\xff\xff\xff", shape).unwrap_err().contains("too long"));
    }

    #[test]
    fn labels_are_whole_numbers_of_any_size() {
        let header = "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }";
        let good = file(&with_header(header, &[3, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(labels(good.path()), Ok(vec![3, 9]));
        let negative = file(&with_header(header, &[255; 16]));
        assert!(labels(negative.path()).unwrap_err().message().unwrap().contains("below 0"));
        let short = file(&with_header(header, &[0; 9]));
        assert!(labels(short.path()).is_err());
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(edits in prop::collection::vec((0usize..136, any::<u8>()), 1..6)) {
            let shape = Shape::new(2, 2, 1, 256).unwrap();
            let mut bytes = encode([[1u16, 2, 3, 4].as_slice()].into_iter(), shape).unwrap();
            for (at, byte) in edits {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            let _ = read(&bytes, shape);
        }
    }
}
