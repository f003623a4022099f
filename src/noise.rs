//! Noise as a function: `uniform(seed, image, rank)`, with no state anywhere.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by the
//! seed and counting by image and rank. The same three numbers give the same bits whatever else runs, in any order and
//! after a restart; that is what a seed's promise rests on.

use crate::image::Rank;

/// Version of this law. It is part of the counter: changing how uniforms are made means counting it up.
pub const VERSION: u32 = 1;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The uniform number in the open interval (0, 1) that decides the value at `rank` of image `image` under `seed`.
///
/// It is (k + 1/2) / 2^52 with k the top 52 of the first 64 bits of the block, so neither 0 nor 1 can occur.
#[must_use]
pub fn uniform(seed: u64, image: u32, rank: Rank) -> f64 {
    let [low, high] = [seed as u32, (seed >> 32) as u32];
    let [a, b, _, _] = philox([low, high], [rank, image, 0, VERSION]);
    let bits = (u64::from(a) << 32) | u64::from(b);
    ((bits >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
}

/// Ten rounds of Philox4x32.
fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counter;
        let (high0, low0) = multiply(MULTIPLIERS[0], c0);
        let (high1, low1) = multiply(MULTIPLIERS[1], c2);
        counter = [high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with Random123 for Philox4x32 at 10 rounds.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox([0xa409_3822, 0x299f_31d0], counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn uniforms_depend_on_all_three_numbers_and_fill_the_interval() {
        let all: Vec<f64> =
            (0..64).map(|i| uniform((7 << 40) | (i / 16), (i / 4 % 4) as u32, (i % 4) as u32)).collect();
        for (i, a) in all.iter().enumerate() {
            assert!(*a > 0.0 && *a < 1.0);
            assert!(all.iter().skip(i + 1).all(|b| a != b));
        }
        let mean = (0..10_000).map(|rank| uniform(1, 2, rank)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
    }
}
