//! Tensors and parameters of the Open Inference Protocol: read with every bound checked, and written.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::proto::inference::infer_parameter::ParameterChoice;
use super::proto::inference::model_infer_request::InferInputTensor;
use super::proto::inference::model_infer_response::InferOutputTensor;
use super::proto::inference::{InferParameter, InferTensorContents, ModelInferResponse};
use super::status::cut;
use crate::error::Violations;

/// A tensor that a request brought: as many bytes as its shape and type say, little-endian.
#[derive(Debug)]
pub(super) struct Tensor {
    name: String,
    kind: Kind,
    pub(super) shape: Vec<u64>,
    bytes: Bytes,
}

/// The types that tensors here have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int32,
    Int64,
    Fp32,
    Fp64,
}

const KINDS: [Kind; 8] =
    [Kind::Uint8, Kind::Uint16, Kind::Uint32, Kind::Uint64, Kind::Int32, Kind::Int64, Kind::Fp32, Kind::Fp64];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Uint8 => "UINT8",
            Kind::Uint16 => "UINT16",
            Kind::Uint32 => "UINT32",
            Kind::Uint64 => "UINT64",
            Kind::Int32 => "INT32",
            Kind::Int64 => "INT64",
            Kind::Fp32 => "FP32",
            Kind::Fp64 => "FP64",
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Kind::Uint8 => 1,
            Kind::Uint16 => 2,
            Kind::Uint32 | Kind::Int32 | Kind::Fp32 => 4,
            Kind::Uint64 | Kind::Int64 | Kind::Fp64 => 8,
        }
    }

    /// That of the values of an image, as the project's own protocol lays them out.
    pub(super) fn of_levels(levels: u32) -> Self {
        if levels <= 256 { Kind::Uint8 } else { Kind::Uint16 }
    }
}

/// Dimensions that a tensor may have: twice what the images of a request have.
const MAX_DIMENSIONS: usize = 8;
/// Characters that are repeated of what was given.
const MAX_TOLD: usize = 100;

/// Every input by name. The message holds all the bytes already, so nothing here takes more than that.
pub(super) fn read(
    inputs: Vec<InferInputTensor>,
    raw: Vec<Bytes>,
    known: &[&str],
    violations: &mut Violations,
) -> BTreeMap<String, Tensor> {
    if !raw.is_empty() && raw.len() != inputs.len() {
        let rule = format!("must hold one entry for each of the {} inputs, or none, got {}", inputs.len(), raw.len());
        violations.add("raw_input_contents", rule);
        return BTreeMap::new();
    }
    if inputs.len() > known.len() {
        violations
            .add("inputs", format!("must be at most {}, {}, got {}", known.len(), known.join(", "), inputs.len()));
        return BTreeMap::new();
    }
    let mut raw = raw.into_iter();
    let mut tensors = BTreeMap::new();
    for (index, input) in inputs.into_iter().enumerate() {
        let given = raw.next();
        let at = |field: &str| format!("inputs[{index}].{field}");
        let InferInputTensor { name, datatype, shape, contents, .. } = input;
        if !known.contains(&name.as_str()) || tensors.contains_key(&name) {
            let given = cut(&name, MAX_TOLD);
            violations.add(at("name"), format!("must be one of {}, once, got {given:?}", known.join(", ")));
            continue;
        }
        let Some(kind) = KINDS.into_iter().find(|kind| kind.name() == datatype) else {
            let all = KINDS.map(Kind::name).join(", ");
            violations.add(at("datatype"), format!("must be one of {all}, got {:?}", cut(&datatype, MAX_TOLD)));
            continue;
        };
        if shape.len() > MAX_DIMENSIONS {
            let rule = format!("must have at most {MAX_DIMENSIONS} dimensions, got {}", shape.len());
            violations.add(at("shape"), rule);
            continue;
        }
        let sizes: Option<Vec<u64>> = shape.iter().map(|&size| u64::try_from(size).ok()).collect();
        let length = |sizes: &Vec<u64>| sizes.iter().try_fold(kind.bytes(), |all, &size| all.checked_mul(size));
        let Some((shape, length)) = sizes.and_then(|sizes| length(&sizes).map(|length| (sizes, length))) else {
            violations.add(at("shape"), format!("must be a shape that can be, got {shape:?}"));
            continue;
        };
        let Some(bytes) = given.or_else(|| packed(contents.unwrap_or_default(), kind)) else {
            violations.add(at("contents"), format!("must be numbers of {datatype} in the list for it"));
            continue;
        };
        if bytes.len() as u64 != length {
            let rule = format!("must hold {length} bytes, as {datatype} {shape:?} says, got {}", bytes.len());
            violations.add(at("contents"), rule);
            continue;
        }
        tensors.insert(name.clone(), Tensor { name, kind, shape, bytes });
    }
    tensors
}

/// Typed numbers as bytes; `None` if one does not fit its type.
fn packed(contents: InferTensorContents, kind: Kind) -> Option<Bytes> {
    let InferTensorContents { int_contents, int64_contents, uint_contents, uint64_contents, .. } = contents;
    let bytes = match kind {
        Kind::Uint8 => uint_contents.into_iter().map(|value| u8::try_from(value).ok()).collect::<Option<Vec<u8>>>()?,
        Kind::Uint16 => {
            let values =
                uint_contents.into_iter().map(|value| u16::try_from(value).ok()).collect::<Option<Vec<_>>>()?;
            little_endian(values, u16::to_le_bytes)
        }
        Kind::Uint32 => little_endian(uint_contents, u32::to_le_bytes),
        Kind::Uint64 => little_endian(uint64_contents, u64::to_le_bytes),
        Kind::Int32 => little_endian(int_contents, i32::to_le_bytes),
        Kind::Int64 => little_endian(int64_contents, i64::to_le_bytes),
        Kind::Fp32 => little_endian(contents.fp32_contents, f32::to_le_bytes),
        Kind::Fp64 => little_endian(contents.fp64_contents, f64::to_le_bytes),
    };
    Some(bytes.into())
}

/// The bytes of numbers.
pub(super) fn little_endian<T, const N: usize>(
    numbers: impl IntoIterator<Item = T>,
    bytes: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    numbers.into_iter().flat_map(bytes).collect()
}

impl Tensor {
    /// Its bytes, if it holds values of images of `levels` levels.
    pub(super) fn values(&self, levels: u32, violations: &mut Violations) -> Bytes {
        let wanted = Kind::of_levels(levels);
        if self.kind != wanted {
            let rule = format!("must be {} for a model of {levels} levels, got {}", wanted.name(), self.kind.name());
            violations.add(format!("{}.datatype", self.name), rule);
        }
        self.bytes.clone()
    }

    /// Its numbers as class labels; one that is negative or above 2^32 - 1 is a violation.
    pub(super) fn labels(&self, violations: &mut Violations) -> Vec<u32> {
        let read = |bytes: &[u8]| {
            let mut wide = [0; 8];
            wide.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
            let number = u64::from_le_bytes(wide);
            // A negative number of four bytes is a large one of eight here, and as wrong.
            u32::try_from(number).ok().filter(|&label| self.kind != Kind::Int32 || label <= i32::MAX as u32)
        };
        if matches!(self.kind, Kind::Fp32 | Kind::Fp64) {
            violations
                .add(format!("{}.datatype", self.name), format!("must be whole numbers, got {}", self.kind.name()));
            return Vec::new();
        }
        let labels: Option<_> = self.bytes.chunks(self.kind.bytes() as usize).map(read).collect();
        labels.unwrap_or_else(|| {
            violations.add(self.name.as_str(), "must hold no negative number, and none above 4294967295");
            Vec::new()
        })
    }
}

/// The parameters of a request, taken one by one; what is left at the end is not known.
#[derive(Debug)]
pub(super) struct Parameters {
    left: HashMap<String, InferParameter>,
    known: Vec<&'static str>,
}

impl Parameters {
    pub(super) fn new(given: HashMap<String, InferParameter>) -> Self {
        Self { left: given, known: Vec::new() }
    }

    fn take(&mut self, name: &'static str) -> Option<ParameterChoice> {
        self.known.push(name);
        self.left.remove(name)?.parameter_choice
    }

    /// A whole number that is not negative.
    pub(super) fn whole<T: TryFrom<u64>>(&mut self, name: &'static str, violations: &mut Violations) -> Option<T> {
        let given = self.take(name)?;
        let number = match given {
            ParameterChoice::Int64Param(number) => u64::try_from(number).ok(),
            ParameterChoice::Uint64Param(number) => Some(number),
            _ => None,
        };
        let fits = number.and_then(|number| T::try_from(number).ok());
        if fits.is_none() {
            let bits = 8 * size_of::<T>();
            violations.add(
                format!("parameters.{name}"),
                format!("must be a whole number of {bits} bits, got {}", told(&given)),
            );
        }
        fits
    }

    /// A text.
    pub(super) fn text(&mut self, name: &'static str, violations: &mut Violations) -> Option<String> {
        match self.take(name)? {
            ParameterChoice::StringParam(text) => Some(text),
            other => {
                violations.add(format!("parameters.{name}"), format!("must be a text, got {}", told(&other)));
                None
            }
        }
    }

    /// A number.
    pub(super) fn number(&mut self, name: &'static str, violations: &mut Violations) -> Option<f32> {
        match self.take(name)? {
            ParameterChoice::DoubleParam(number) => Some(number as f32),
            ParameterChoice::Int64Param(number) => Some(number as f32),
            other => {
                violations.add(format!("parameters.{name}"), format!("must be a number, got {}", told(&other)));
                None
            }
        }
    }

    /// Notes every parameter that nobody took, but for those in `passed_over`.
    pub(super) fn finish(mut self, passed_over: &[&str], violations: &mut Violations) {
        self.left.retain(|name, _| !passed_over.contains(&name.as_str()));
        let mut names: Vec<_> = self.left.into_keys().collect();
        names.sort();
        for name in names {
            let name: String = name.chars().take(64).collect();
            violations.add("parameters", format!("{name:?} is not known; there are {}", self.known.join(", ")));
        }
    }
}

/// What was given, for people.
fn told(given: &ParameterChoice) -> String {
    match given {
        ParameterChoice::StringParam(text) => format!("{:?}", cut(text, MAX_TOLD)),
        other => format!("{other:?}"),
    }
}

/// A parameter of an answer.
pub(super) fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

/// Adds a tensor to an answer.
pub(super) fn add(answer: &mut ModelInferResponse, name: &str, kind: Kind, shape: &[u64], bytes: impl Into<Bytes>) {
    answer.outputs.push(InferOutputTensor {
        name: name.to_owned(),
        datatype: kind.name().to_owned(),
        shape: shape.iter().map(|&size| size as i64).collect(),
    });
    answer.raw_output_contents.push(bytes.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, datatype: &str, shape: &[i64], contents: InferTensorContents) -> InferInputTensor {
        InferInputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents: Some(contents),
        }
    }

    fn read_one(input: InferInputTensor, raw: Vec<Bytes>) -> Result<Tensor, Violations> {
        let mut violations = Violations::new();
        let mut tensors = read(vec![input], raw, &["a"], &mut violations);
        violations.into_result(())?;
        Ok(tensors.remove("a").expect("no violation"))
    }

    #[test]
    fn typed_and_raw_numbers_are_the_same() {
        let typed = InferTensorContents { uint_contents: vec![1, 300], ..InferTensorContents::default() };
        let typed = read_one(input("a", "UINT16", &[2], typed), vec![]).unwrap();
        let raw = Bytes::from_static(&[1, 0, 44, 1]);
        let raw = read_one(input("a", "UINT16", &[2], InferTensorContents::default()), vec![raw]).unwrap();
        assert_eq!(typed.bytes, raw.bytes);
        assert_eq!(typed.labels(&mut Violations::new()), [1, 300]);
    }

    #[test]
    fn what_cannot_be_a_tensor_is_refused() {
        let wide = InferTensorContents { uint_contents: vec![256], ..InferTensorContents::default() };
        let none = InferTensorContents::default;
        for (input, raw, field) in [
            (input("b", "UINT8", &[1], none()), vec![], "inputs[0].name"),
            (input("a", "STRING", &[1], none()), vec![], "inputs[0].datatype"),
            (input("a", "UINT8", &[-1], none()), vec![], "inputs[0].shape"),
            (input("a", "FP64", &[1 << 40, 1 << 40], none()), vec![], "inputs[0].shape"),
            (input("a", "UINT8", &[1; MAX_DIMENSIONS + 1], none()), vec![Bytes::from_static(&[1])], "inputs[0].shape"),
            (input("a", "UINT8", &[1], wide), vec![], "inputs[0].contents"),
            (input("a", "UINT8", &[2], none()), vec![Bytes::from_static(&[1])], "inputs[0].contents"),
            (input("a", "UINT8", &[0], none()), vec![Bytes::new(), Bytes::new()], "raw_input_contents"),
        ] {
            let refused = read_one(input, raw).unwrap_err();
            assert_eq!(refused.iter().map(|fault| fault.field.as_str()).collect::<Vec<_>>(), [field]);
        }
    }

    #[test]
    fn what_is_refused_is_repeated_in_part() {
        let long = "\u{1}".repeat(1 << 20);
        let none = InferTensorContents::default;
        let mut violations = Violations::new();
        for input in [input(&long, "UINT8", &[1], none()), input("a", &long, &[1], none())] {
            read(vec![input], vec![], &["a"], &mut violations);
        }
        let two = vec![input("a", "UINT8", &[1], none()), input("a", "UINT8", &[1], none())];
        assert!(read(two, vec![], &["a"], &mut violations).is_empty());
        let given = [("seed".to_owned(), parameter(ParameterChoice::StringParam(long)))];
        assert_eq!(Parameters::new(given.into()).whole::<u64>("seed", &mut violations), None);
        assert_eq!(violations.iter().count(), 4);
        assert!(violations.iter().all(|fault| fault.description.len() < 2000), "{violations}");
        let known = "inputs: must be at most 1, a, got 2";
        assert!(violations.to_string().contains(known), "{violations}");
    }

    #[test]
    fn labels_are_whole_and_not_negative() {
        let label = |datatype: &str, raw: &[u8]| {
            let raw = Bytes::copy_from_slice(raw);
            let tensor = read_one(input("a", datatype, &[1], InferTensorContents::default()), vec![raw]).unwrap();
            let mut violations = Violations::new();
            let labels = tensor.labels(&mut violations);
            violations.into_result(labels).map_err(drop)
        };
        assert_eq!(label("INT64", &7_i64.to_le_bytes()), Ok(vec![7]));
        assert_eq!(label("UINT8", &[9]), Ok(vec![9]));
        assert_eq!(label("INT64", &(-1_i64).to_le_bytes()), Err(()));
        assert_eq!(label("INT32", &(-1_i32).to_le_bytes()), Err(()));
        assert_eq!(label("FP32", &1_f32.to_le_bytes()), Err(()));
    }

    #[test]
    fn a_parameter_that_nobody_knows_is_refused_and_named() {
        let given = [("seed", 1), ("sede", 2), ("sequence_id", 3)];
        let given = given.map(|(name, number)| (name.to_owned(), parameter(ParameterChoice::Int64Param(number))));
        let (mut parameters, mut violations) = (Parameters::new(given.into()), Violations::new());
        assert_eq!(parameters.whole::<u64>("seed", &mut violations), Some(1));
        parameters.finish(&["sequence_id"], &mut violations);
        let words = violations.to_string();
        assert!(
            words.contains("\"sede\"") && words.contains("there are seed") && !words.contains("sequence_id"),
            "{words}"
        );
    }
}
