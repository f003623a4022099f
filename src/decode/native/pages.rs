//! Memory in huge pages, where the system has them: what a step reads from front to back passes through half a million small
//! pages for every two gigabytes, and finding those takes as long as reading them (docs/PERFORMANCE.md, "Huge pages").

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::model::ModelError;

/// Size, and place, of a huge page on x86-64, and on ARM with small pages of 4 KiB.
const HUGE: usize = 2 << 20;

/// Numbers in memory of their own, zeros at first.
pub(super) struct Pages<T> {
    map: MmapMut,
    /// Where they begin and end in `map`, in bytes.
    first: usize,
    end: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// # Errors
    /// There is no memory for so many.
    pub(super) fn zeros(length: Option<usize>) -> Result<Self, ModelError> {
        let no_memory = || ModelError::Step("there is no memory for weights or decode state".to_owned());
        let bytes = length.and_then(|length| length.checked_mul(size_of::<T>())).ok_or_else(no_memory)?;
        // Room to begin where a huge page does, which older kernels do not see to.
        let spare = if bytes < HUGE { 0 } else { HUGE };
        let length = bytes.checked_add(spare).ok_or_else(no_memory)?;
        let map = MmapMut::map_anon(length.max(1)).map_err(|_| no_memory())?;
        let first = if spare == 0 { 0 } else { map.as_ptr().align_offset(HUGE).min(spare) };
        #[cfg(target_os = "linux")]
        if spare > 0 {
            // A kernel without huge pages refuses, and does with small ones.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, first, end: first + bytes, of: PhantomData })
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(self.map.get(self.first..self.end).unwrap_or_default())
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.map.get_mut(self.first..self.end).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeros_begins_where_a_huge_page_does_and_is_refused_where_there_is_none() {
        for length in [0, 1, 1000, HUGE / 4 - 1, HUGE / 4, HUGE + 3] {
            let mut numbers = Pages::<f32>::zeros(Some(length)).unwrap();
            assert_eq!(numbers.len(), length);
            assert!(numbers.iter().all(|&number| number == 0.0));
            if length * size_of::<f32>() >= HUGE {
                assert_eq!(numbers.as_ptr().align_offset(HUGE), 0, "{length}");
            }
            numbers.fill(1.0);
            assert_eq!(numbers.iter().map(|&number| f64::from(number)).sum::<f64>(), length as f64);
        }
        for length in [None, Some(usize::MAX), Some(usize::MAX / 4), Some(1 << 60)] {
            assert!(matches!(Pages::<f32>::zeros(length), Err(ModelError::Step(_))), "{length:?}");
        }
    }
}
