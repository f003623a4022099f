//! Which shard gets which images of a job.

use std::ops::Range;

/// Divides the images `0..images` into contiguous ranges, each with the shard it goes to. `loads`: what every shard has
/// already, as images of this kind and of the other.
///
/// Images go where the least are, so that afterwards the shards that got any differ by one at most. A job of one image goes
/// to the least loaded shard as a whole; where two are equal, the other kind of images decides.
#[must_use]
pub fn split(images: u32, loads: &[(u32, u32)]) -> Vec<(usize, Range<u32>)> {
    let mut shards: Vec<_> = loads.iter().copied().enumerate().collect();
    shards.sort_by_key(|&(_, load)| load);
    // Shards are filled up to a common level, as water would; those above it get nothing.
    let (mut total, mut filled) = (u64::from(images), 0);
    for &(_, (load, _)) in &shards {
        if u64::from(load) * filled >= total {
            break;
        }
        total += u64::from(load);
        filled += 1;
    }
    let (mut parts, mut start) = (Vec::new(), 0);
    for (place, (shard, (load, _))) in (0..filled).zip(shards) {
        let level = total / filled + u64::from(place < total % filled);
        // At most `images`: the parts sum up to them.
        let count = level.saturating_sub(u64::from(load)) as u32;
        if count > 0 {
            parts.push((shard, start..start + count));
            start += count;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn idle_shards_get_equal_parts_and_a_single_image_goes_to_the_least_loaded() {
        assert_eq!(split(16, &[(0, 0), (0, 0)]), [(0, 0..8), (1, 8..16)]);
        assert_eq!(split(3, &[(0, 0), (0, 0)]), [(0, 0..2), (1, 2..3)]);
        assert_eq!(split(1, &[(2, 0), (1, 9), (2, 0)]), [(1, 0..1)]);
        assert_eq!(split(1, &[(1, 3), (1, 2)]), [(1, 0..1)], "the other kind decides between equals");
        assert_eq!(split(5, &[(4, 0), (0, 0), (1, 0)]), [(1, 0..3), (2, 3..5)]);
        assert_eq!(split(0, &[(0, 0)]), []);
    }

    proptest! {
        #[test]
        fn a_split_is_complete_contiguous_and_balanced(
            images in 1u32..1000,
            loads in prop::collection::vec((0u32..200, 0u32..3), 1..20),
        ) {
            let parts = split(images, &loads);
            let mut after: Vec<u32> = loads.iter().map(|load| load.0).collect();
            let (mut end, mut got) = (0, Vec::new());
            for (shard, range) in &parts {
                prop_assert!(range.start == end && !range.is_empty(), "{parts:?}");
                prop_assert!(!got.contains(shard), "{shard} twice");
                end = range.end;
                after[*shard] += range.len() as u32;
                got.push(*shard);
            }
            prop_assert_eq!(end, images);
            let fullest = got.iter().map(|&shard| after[shard]).max().unwrap();
            // Nobody who got any would have done better to leave an image to somebody else.
            prop_assert!(after.iter().all(|&load| load + 1 >= fullest), "{loads:?} -> {after:?}");
        }
    }
}
