//! Raw values: one byte each up to 256 levels, two (little-endian) above.

use crate::image::Shape;

/// Values from their raw form; as many as `raw` holds, which need not be a whole image.
///
/// # Errors
/// What is wrong: half a value at the end, or the first value that is not below the levels.
pub fn values_from_raw(raw: &[u8], shape: Shape) -> Result<Vec<u16>, String> {
    let values: Vec<u16> = if shape.bytes_per_value() == 1 {
        raw.iter().map(|&byte| u16::from(byte)).collect()
    } else {
        let (pairs, rest) = raw.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(format!("must hold two bytes for each value, got {} bytes", raw.len()));
        }
        pairs.iter().map(|&pair| u16::from_le_bytes(pair)).collect()
    };
    match values.iter().position(|&value| u32::from(value) >= shape.levels()) {
        Some(index) => Err(format!(
            "values must be 0..={}, got {} at index {index}",
            shape.levels() - 1,
            values.get(index).copied().unwrap_or_default()
        )),
        None => Ok(values),
    }
}

/// The raw form of `values`.
#[must_use]
pub fn values_to_raw(values: &[u16], shape: Shape) -> Vec<u8> {
    if shape.bytes_per_value() == 1 {
        values.iter().map(|&value| value as u8).collect()
    } else {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}
