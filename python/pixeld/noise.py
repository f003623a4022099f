"""The noise law: one uniform number for every (seed, image, rank), the same on every machine and in every batch.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a keyed function of
a counter, so any number can be computed without those before it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LAW_VERSION = 1
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Philox4x32-10: counter [..., 4] and key [..., 2] of 32-bit words, broadcast together -> words uint32 [..., 4]."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    for _ in range(ROUNDS):
        left, right = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2  # 64-bit products of 32-bit words
        c0, c1, c2, c3 = (right >> _HALF) ^ c1 ^ k0, right & _LOW, (left >> _HALF) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def uniform(seed: int, image: ArrayLike, rank: ArrayLike) -> NDArray[np.float64]:
    """Uniform number in (0, 1), never 0 or 1, for a 64-bit seed and 32-bit image and rank (arrays broadcast).

    The key is the seed, low word first; the counter is (rank, image, 0, LAW_VERSION). The upper 52 of the first 64 bits
    pick one of 2^52 equal cells, and the number is the middle of the cell.
    """
    image, rank = np.broadcast_arrays(np.asarray(image, np.uint64), np.asarray(rank, np.uint64))
    counter = np.stack([rank, image, np.zeros_like(rank), np.full_like(rank, LAW_VERSION)], axis=-1)
    words = philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32]).astype(np.uint64)
    bits = words[..., 0] << _HALF | words[..., 1]
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
