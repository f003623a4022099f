//! Puts the images of one generation stream together, and believes nothing: gaps, values out of range and checksums
//! that differ end the command.

use crate::image::{Blocks, Canvas, Order, Palette, Shape, codec};
use crate::rpc::proto::{self, GenerationCompleted, GenerationStarted, ValueRun};

/// One finished image.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finished {
    /// Values in raster order.
    pub(super) raster: Vec<u16>,
    /// CRC-32C of the raw values in rank order.
    pub(super) crc32c: u32,
    /// In nats.
    pub(super) log_likelihood: f64,
    /// The low-resolution image that was drawn for it.
    pub(super) low: Option<Low>,
}

/// A low-resolution image that the server drew.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Low {
    pub(super) shape: Shape,
    /// Values in raster order.
    pub(super) raster: Vec<u16>,
    /// In nats.
    pub(super) log_likelihood: f64,
}

/// The images of one stream in the making.
#[derive(Debug)]
pub(super) struct Assembly {
    pub(super) started: GenerationStarted,
    pub(super) shape: Shape,
    pub(super) palette: Option<Palette>,
    order: Order,
    images: Vec<Canvas>,
}

impl Assembly {
    /// Images that hold `prefix` (raw values in rank order) and nothing else, `most` of them, as `started` must promise.
    pub(super) fn new(started: GenerationStarted, most: u32, prefix: &[u8]) -> Result<Self, String> {
        let shape = shape(started.shape.as_ref())?;
        let order = order(started.order(), started.blocks, shape)?;
        let palette = Some(&started.palette).filter(|bytes| !bytes.is_empty());
        let palette = palette.map(|bytes| Palette::from_bytes(bytes, shape)).transpose();
        let palette = palette.map_err(|rule| format!("its palette {rule}"))?;
        if started.image_count != most {
            return Err(format!("it promised {} images, {most} were asked for", started.image_count));
        }
        let known = codec::values_from_raw(prefix, shape)?;
        let image = Canvas::with_prefix(shape, known).ok_or("its images are smaller than what is known of them")?;
        let images = vec![image; most as usize];
        Ok(Self { started, shape, palette, order, images })
    }

    /// Values that are to come for all images.
    pub(super) fn total(&self) -> u64 {
        self.images.iter().map(|image| u64::from(self.shape.values() - image.known())).sum()
    }

    /// Takes in a run; returns how many values it held.
    pub(super) fn add(&mut self, run: &ValueRun) -> Result<u64, String> {
        let values = codec::values_from_raw(&run.values, self.shape)?;
        let index = run.image_index;
        let image = self.images.get_mut(index as usize).ok_or_else(|| format!("there is no image {index}"))?;
        if image.known() != run.first_rank {
            let (known, first) = (image.known(), run.first_rank);
            return Err(format!("image {index} stands at rank {known} and goes on at {first}"));
        }
        match values.iter().all(|&value| image.push(value)) {
            true => Ok(values.len() as u64),
            false => Err(format!("image {index} got more values than it has places")),
        }
    }

    /// The images, if `completed` says the same of them as what was received.
    pub(super) fn finish(&self, completed: &GenerationCompleted) -> Result<Vec<Finished>, String> {
        let count = self.images.len();
        let (low, low_log_likelihoods) = (&completed.low_resolution_images, &completed.low_resolution_log_likelihoods);
        let silent = |told: usize| told != count;
        if silent(completed.crc32c.len())
            || silent(completed.log_likelihoods.len())
            || !low_log_likelihoods.is_empty() && silent(low_log_likelihoods.len())
            || low.len() != low_log_likelihoods.len()
        {
            return Err("its end does not speak of every image".to_owned());
        }
        let mut lows = low.iter().zip(low_log_likelihoods).map(|(image, &nats)| Low::new(image, nats));
        let told = completed.crc32c.iter().zip(&completed.log_likelihoods);
        let finished = self.images.iter().zip(told).enumerate().map(|(index, (image, (&crc, &log_likelihood)))| {
            let crc32c = crc32c::crc32c(&codec::values_to_raw(image.values(), self.shape));
            if !image.is_complete() || crc32c != crc {
                return Err(format!("image {index} did not arrive as it was sent"));
            }
            Ok(Finished { raster: image.to_raster(self.order), crc32c, log_likelihood, low: lows.next().transpose()? })
        });
        finished.collect()
    }
}

impl Low {
    /// The raw image that a stream ends with.
    fn new(image: &proto::Image, log_likelihood: f64) -> Result<Self, String> {
        let shape = shape(image.shape.as_ref())?;
        let raster = codec::values_from_raw(&image.data, shape)?;
        if image.encoding() != proto::ImageEncoding::Raw || raster.len() != shape.values() as usize {
            return Err("a low-resolution image of it is not the whole, raw image".to_owned());
        }
        Ok(Self { shape, raster, log_likelihood })
    }
}

/// An order from the wire, its blocks checked like any others.
pub(super) fn order(order: proto::Order, blocks: Option<proto::Blocks>, shape: Shape) -> Result<Order, String> {
    match (order, blocks) {
        (proto::Order::Raster, None) => Ok(Order::Raster),
        (proto::Order::BlockRaster, Some(proto::Blocks { height, width })) => {
            let blocks = Blocks::new(shape, height, width).map_err(|violations| violations.to_string())?;
            Ok(Order::BlockRaster(blocks))
        }
        _ => Err("it told no order of generation that this client knows".to_owned()),
    }
}

/// A shape from the wire, checked like any other.
pub(super) fn shape(told: Option<&proto::ImageShape>) -> Result<Shape, String> {
    let told = told.ok_or("it told no shape")?;
    Shape::new(told.height, told.width, told.channels, told.levels).map_err(|violations| violations.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(levels: u32) -> GenerationStarted {
        GenerationStarted {
            shape: Some(proto::ImageShape { height: 1, width: 2, channels: 1, levels }),
            order: proto::Order::Raster.into(),
            image_count: 2,
            ..GenerationStarted::default()
        }
    }

    fn run(image_index: u32, first_rank: u32, values: &'static [u8]) -> ValueRun {
        ValueRun { image_index, first_rank, values: values.into(), log_probs: Vec::new() }
    }

    #[test]
    fn interleaved_runs_become_images() {
        let mut assembly = Assembly::new(started(300), 2, &[]).unwrap();
        assert_eq!(assembly.total(), 4);
        assert_eq!(assembly.add(&run(1, 0, &[1, 0, 44 - 1, 1])), Ok(2));
        assert_eq!(assembly.add(&run(0, 0, &[2, 0])), Ok(1));
        assert_eq!(assembly.add(&run(0, 1, &[3, 0])), Ok(1));
        let crc32c = vec![crc32c::crc32c(&[2, 0, 3, 0]), crc32c::crc32c(&[1, 0, 43, 1])];
        let completed =
            GenerationCompleted { crc32c, log_likelihoods: vec![-1.0, -2.0], ..GenerationCompleted::default() };
        let finished = assembly.finish(&completed).unwrap();
        assert_eq!(finished[0].raster, [2, 3]);
        assert_eq!((finished[1].raster.as_slice(), finished[1].log_likelihood), ([1, 299].as_slice(), -2.0));
    }

    #[test]
    fn values_are_put_where_the_order_of_blocks_has_them() {
        let started = |height, width| GenerationStarted {
            shape: Some(proto::ImageShape { height: 2, width: 2, channels: 1, levels: 9 }),
            order: proto::Order::BlockRaster.into(),
            blocks: Some(proto::Blocks { height, width }),
            image_count: 1,
            ..GenerationStarted::default()
        };
        let mut assembly = Assembly::new(started(2, 1), 1, &[]).unwrap();
        assembly.add(&run(0, 0, &[1, 2, 3, 4])).unwrap();
        let completed = GenerationCompleted {
            crc32c: vec![crc32c::crc32c(&[1, 2, 3, 4])],
            log_likelihoods: vec![0.0],
            ..GenerationCompleted::default()
        };
        assert_eq!(assembly.finish(&completed).unwrap()[0].raster, [1, 3, 2, 4]);
        for (height, width) in [(0, 0), (3, 1), (1, 3), (u32::MAX, u32::MAX)] {
            assert!(Assembly::new(started(height, width), 1, &[]).is_err(), "blocks of {height} x {width}");
        }
        assert!(Assembly::new(GenerationStarted { blocks: None, ..started(1, 1) }, 1, &[]).is_err(), "blocks not told");
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let mut assembly = Assembly::new(started(4), 2, &[3]).unwrap();
        assert_eq!(assembly.total(), 2);
        assert!(assembly.add(&run(0, 0, &[1])).is_err(), "it begins behind the prefix");
        assert_eq!(assembly.add(&run(0, 1, &[1])), Ok(1));
        assert!(Assembly::new(started(4), 2, &[0; 3]).is_err(), "a prefix beyond the image");
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        let fresh = || Assembly::new(started(4), 2, &[]).unwrap();
        assert!(fresh().add(&run(2, 0, &[1])).is_err(), "no such image");
        assert!(fresh().add(&run(0, 1, &[1])).is_err(), "a gap");
        assert!(fresh().add(&run(0, 0, &[4])).is_err(), "no such level");
        assert!(fresh().add(&run(0, 0, &[1, 1, 1])).is_err(), "too many");
        assert!(Assembly::new(started(4), 3, &[]).is_err(), "another count");
        assert!(Assembly::new(started(1), 2, &[]).is_err(), "no shape");
        let coloured = |palette: &'static [u8]| GenerationStarted { palette: palette.into(), ..started(4) };
        assert!(Assembly::new(coloured(&[0; 12]), 2, &[]).unwrap().palette.is_some());
        assert!(Assembly::new(coloured(&[0; 9]), 2, &[]).is_err(), "a palette of other levels");
        let told = |crc: u32| GenerationCompleted {
            crc32c: vec![crc; 2],
            log_likelihoods: vec![0.0; 2],
            ..GenerationCompleted::default()
        };
        let whole = || {
            let mut assembly = fresh();
            assembly.add(&run(0, 0, &[1, 1])).unwrap();
            assembly.add(&run(1, 0, &[1, 1])).unwrap();
            assembly
        };
        assert!(whole().finish(&told(crc32c::crc32c(&[1, 1]))).is_ok());
        assert!(whole().finish(&told(7)).is_err(), "another checksum");
        let small = |data: &'static [u8]| proto::Image {
            data: data.into(),
            encoding: proto::ImageEncoding::Raw.into(),
            shape: Some(proto::ImageShape { height: 1, width: 1, channels: 1, levels: 4 }),
        };
        let with_low = |images: &[proto::Image], nats: &[f64]| GenerationCompleted {
            low_resolution_images: images.to_vec(),
            low_resolution_log_likelihoods: nats.to_vec(),
            ..told(crc32c::crc32c(&[1, 1]))
        };
        let finished = whole().finish(&with_low(&[small(&[2]), small(&[3])], &[-1.0, -2.0])).unwrap();
        let low = finished[1].low.as_ref().unwrap();
        assert_eq!((low.raster.as_slice(), low.log_likelihood), ([3].as_slice(), -2.0));
        let refused = |images: &[proto::Image], nats: &[f64]| whole().finish(&with_low(images, nats)).unwrap_err();
        assert!(refused(&[small(&[2])], &[-1.0]).contains("every image"), "a low-resolution image for one of two");
        assert!(refused(&[small(&[2])], &[-1.0, -2.0]).contains("every image"), "two likelihoods of one");
        assert!(refused(&[small(&[2]), small(&[4])], &[-1.0, -2.0]).contains("0..=3"), "no such level");
        assert!(refused(&[small(&[2]), small(&[])], &[-1.0, -2.0]).contains("whole"), "no values");
        let shapeless = proto::Image { shape: None, ..small(&[2]) };
        assert!(refused(&[small(&[2]), shapeless], &[-1.0, -2.0]).contains("shape"), "no shape");
        let png = proto::Image { encoding: proto::ImageEncoding::Png.into(), ..small(&[2]) };
        assert!(refused(&[small(&[2]), png], &[-1.0, -2.0]).contains("raw"), "another encoding");
        assert!(whole().finish(&GenerationCompleted::default()).is_err(), "nothing told");
        assert!(fresh().finish(&told(crc32c::crc32c(&[]))).is_err(), "incomplete");
    }
}
