//! Tests of weights files: both formats, every kind of refusal, and that no broken file does worse than be refused.

use std::io::Cursor;

use safetensors::tensor::TensorView;

use super::*;
use crate::model::MAX_HEADER;

const FORMATS: [WeightsFormat; 2] = [WeightsFormat::TorchScript, WeightsFormat::Safetensors];

fn expected() -> Vec<TensorSpec> {
    [("a.weight", vec![2, 3]), ("a.bias", vec![2])]
        .map(|(name, shape)| TensorSpec { name: name.to_owned(), shape })
        .to_vec()
}

fn load(format: WeightsFormat, bytes: &[u8]) -> Result<Weights, Violations> {
    let file = WeightsFile { format, bytes: bytes.len() as u64, stream: &mut Cursor::new(bytes) };
    Weights::load(file, &expected())
}

fn file(format: WeightsFormat, tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match format {
        WeightsFormat::TorchScript => Tensor::save_multi_to_stream(tensors, &mut bytes).unwrap(),
        WeightsFormat::Safetensors => {
            let parts: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, dtype(tensor), raw(tensor))).collect();
            let views = parts.iter().zip(tensors).map(|((name, dtype, raw), (_, tensor))| {
                let shape = tensor.size().iter().map(|&n| n as usize).collect();
                (*name, TensorView::new(*dtype, shape, raw).unwrap())
            });
            bytes = safetensors::serialize(views, None).unwrap();
        }
    }
    bytes
}

fn dtype(tensor: &Tensor) -> Dtype {
    match tensor.kind() {
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        other => panic!("{other:?}"),
    }
}

fn raw(tensor: &Tensor) -> Vec<u8> {
    let mut raw = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut raw, tensor.numel());
    raw
}

fn weight(kind: Kind) -> Tensor {
    Tensor::from_slice(&[0.0f32, 0.5, -1.0, 1.5, 2.0, -3.0]).view([2, 3]).to_kind(kind)
}

fn bias() -> Tensor {
    Tensor::from_slice(&[1.0f32, -2.0])
}

fn good(format: WeightsFormat) -> Vec<u8> {
    file(format, &[("a.weight", weight(Kind::Float)), ("a.bias", bias())])
}

fn fields(format: WeightsFormat, tensors: &[(&str, Tensor)]) -> Vec<String> {
    let violations = load(format, &file(format, tensors)).unwrap_err();
    violations.iter().map(|violation| violation.field.clone()).collect()
}

#[test]
fn every_floating_point_kind_of_either_format_becomes_f32() {
    for format in FORMATS {
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double] {
            let mut weights = load(format, &file(format, &[("a.weight", weight(kind)), ("a.bias", bias())])).unwrap();
            let loaded = weights.take("a.weight").unwrap();
            assert_eq!((loaded.kind(), loaded.requires_grad(), loaded.size()), (Kind::Float, false, vec![2, 3]));
            assert_eq!(raw(&loaded), raw(&weight(Kind::Float)));
            assert!(weights.take("a.weight").is_err(), "a tensor is taken once");
        }
    }
}

#[test]
fn all_missing_unexpected_and_misshaped_tensors_are_named_in_one_error() {
    for format in FORMATS {
        let turned = weight(Kind::Float).view([3, 2]);
        let other = [("a.weight", turned), ("a.scale", bias()), ("b.bias", bias())];
        assert_eq!(
            fields(format, &other),
            ["weights.a.weight", "weights.a.bias", "weights.a.scale", "weights.b.bias"],
            "{format:?}"
        );
    }
}

#[test]
fn tensors_that_are_not_finite_or_not_floating_point_are_named() {
    for format in FORMATS {
        for bad in [f32::NAN, f32::INFINITY] {
            let bias = Tensor::from_slice(&[1.0, bad]);
            assert_eq!(fields(format, &[("a.weight", weight(Kind::Float)), ("a.bias", bias)]), ["weights.a.bias"]);
        }
        let whole = weight(Kind::Int64);
        assert_eq!(fields(format, &[("a.weight", whole), ("a.bias", bias())]), ["weights.a.weight"]);
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    for format in FORMATS {
        let whole = good(format);
        assert!(load(format, &whole).is_ok());
        let step = (whole.len() / 60).max(1);
        for length in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
            assert!(load(format, &whole[..length]).is_err(), "{format:?} cut to {length}");
        }
    }
}

#[test]
fn garbage_and_damage_are_refused_or_harmless() {
    let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for format in FORMATS {
        assert!(load(format, &noise).is_err());
        let whole = good(format);
        for place in (0..whole.len()).step_by(whole.len() / 60) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0xff;
            // A changed number may still be a number; all that counts is to come back.
            let _ = load(format, &damaged);
        }
    }
    assert!(load(WeightsFormat::TorchScript, &good(WeightsFormat::Safetensors)).is_err());
    assert!(load(WeightsFormat::Safetensors, &good(WeightsFormat::TorchScript)).is_err());
}

#[test]
fn a_header_is_not_believed_beyond_the_file() {
    for length in [u64::MAX, MAX_HEADER + 1, 100] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        assert!(load(WeightsFormat::Safetensors, &bytes).is_err());
    }
    let header = br#"{"a.bias":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    assert!(load(WeightsFormat::Safetensors, &bytes).is_err());
}

#[test]
fn a_stream_that_reads_in_small_pieces_is_read_whole() {
    struct Dribble(Cursor<Vec<u8>>);
    impl Read for Dribble {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let some = buffer.len().min(3);
            self.0.read(&mut buffer[..some])
        }
    }
    impl Seek for Dribble {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }
    for format in FORMATS {
        let bytes = good(format);
        let length = bytes.len() as u64;
        let file = WeightsFile { format, bytes: length, stream: &mut Dribble(Cursor::new(bytes)) };
        assert!(Weights::load(file, &expected()).is_ok(), "{format:?}");
    }
}

#[test]
fn an_archive_with_two_files_of_one_name_is_refused() {
    // Which of them counts is for every reader to choose.
    let mut archive = good(WeightsFormat::TorchScript);
    let names = archive.windows(4).enumerate().filter(|(_, bytes)| bytes == b"PK\x01\x02");
    let names: Vec<_> = names.map(|(entry, _)| entry + 46..entry + 46 + usize::from(archive[entry + 28])).collect();
    let alike = |one: &std::ops::Range<usize>| names.iter().find(|other| *other != one && other.len() == one.len());
    let (one, other) = names.iter().find_map(|one| Some((one.clone(), alike(one)?.clone()))).unwrap();
    archive.copy_within(one, other.start);
    let refused = load(WeightsFormat::TorchScript, &archive).unwrap_err().to_string();
    assert_eq!(refused, "weights: the archive must not have two files of one name");
}

#[test]
fn an_archive_that_unpacks_to_far_more_than_its_length_is_refused() {
    let mut archive = good(WeightsFormat::TorchScript);
    assert!(load(WeightsFormat::TorchScript, &archive).is_ok());
    // Where the directory at the end says how long the first file is when unpacked.
    let entry = archive.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    archive[entry + 24..][..4].copy_from_slice(&(1u32 << 30).to_le_bytes());
    let refused = load(WeightsFormat::TorchScript, &archive).unwrap_err().to_string();
    assert!(refused.starts_with("weights: the archive must unpack to at most"), "{refused}");
}
