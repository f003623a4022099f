//! Images from files as the wire takes them: PNG files, or one NumPy file.

use std::path::{Path, PathBuf};

use super::failure::Failure;
use super::from_images::read_png;
use super::npy;
use crate::image::{Shape, codec};
use crate::rpc::proto::{Image, ImageEncoding};

/// What is read from files, one after the other.
pub(super) type Reading<T> = Box<dyn Iterator<Item = Result<T, Failure>>>;

/// Images yet to be read.
pub(super) enum Images {
    Png(Vec<PathBuf>),
    Npy { images: Box<npy::Images>, path: PathBuf },
}

impl Images {
    /// Those of the NumPy file if there is one, otherwise the PNG files.
    pub(super) fn open(files: &[PathBuf], npy: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = npy else { return Ok(Images::Png(files.to_vec())) };
        Ok(Images::Npy { images: Box::new(npy::Images::open(path)?), path: path.to_owned() })
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        match self {
            Images::Png(files) => files.len() as u64,
            Images::Npy { images, .. } => images.count,
        }
    }

    /// Refuses a NumPy file of images that are not of `shape`. PNG files are for the server to judge.
    pub(super) fn expect(&self, shape: Shape) -> Result<(), Failure> {
        match self {
            Images::Png(_) => Ok(()),
            Images::Npy { images, path } => images.expect(shape).map_err(|what| refuse(path, what)),
        }
    }

    /// Each image as it is read; `shape` is theirs, which only those of a NumPy file need.
    pub(super) fn read(self, shape: Option<Shape>) -> Result<Reading<Image>, Failure> {
        let image = |data: Vec<u8>, encoding: ImageEncoding| Image {
            data: data.into(),
            encoding: encoding.into(),
            shape: None,
        };
        match self {
            Images::Png(files) => {
                Ok(Box::new(files.into_iter().map(move |path| Ok(image(read_png(&path)?, ImageEncoding::Png)))))
            }
            Images::Npy { images, path } => {
                let shape = shape.ok_or_else(|| refuse(&path, "the model takes no such images".to_owned()))?;
                let values = images.values(shape).map_err(|what| refuse(&path, what))?;
                Ok(Box::new(values.enumerate().map(move |(index, values)| {
                    let values = values.map_err(|what| refuse(&path, what))?;
                    // A value beyond one byte would be cut to another value that is valid.
                    if let Some(value) = values.iter().find(|&&value| u32::from(value) >= shape.levels()) {
                        let last = shape.levels() - 1;
                        return Err(refuse(&path, format!("image {index}: values must be 0..={last}, got {value}")));
                    }
                    Ok(image(codec::values_to_raw(&values, shape), ImageEncoding::Raw))
                })))
            }
        }
    }
}

fn refuse(path: &Path, what: String) -> Failure {
    Failure::Usage(format!("{}: {what}", path.display()))
}
