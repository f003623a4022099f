//! Which vector instructions there are, and the only unsafe code of the project: entering code that is compiled for them, and a
//! hint to the processor.

#![allow(unsafe_code, reason = "see the argument at each block")]

use super::kernels::Kernel;

/// Instructions that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 512-bit vectors, fused multiply-add.
    Avx512,
    /// 256-bit vectors, fused multiply-add; the same bits as [`Isa::Avx512`].
    Avx2,
    /// Whatever every machine has; products and sums are rounded apart.
    Portable,
}

impl Isa {
    /// The widest this machine has.
    #[must_use]
    pub fn detect() -> Self {
        *Self::available().first().unwrap_or(&Isa::Portable)
    }

    /// All that this machine has, the widest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        [Isa::Avx512, Isa::Avx2, Isa::Portable].into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine has it. The standard library keeps the answers, so asking costs a few loads.
    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = || {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                Isa::Avx512 => avx2() && avx512(),
                Isa::Avx2 => avx2(),
                Isa::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// Its name, for people and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// Runs `kernel` with these instructions, or with those there are if these are not.
    pub(super) fn run(self, kernel: impl Kernel) {
        #[cfg(target_arch = "x86_64")]
        {
            /// The kernel with 512-bit vectors.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512(kernel: impl Kernel) {
                kernel.run::<true>();
            }

            /// The kernel with 256-bit vectors.
            #[target_feature(enable = "avx2,fma")]
            fn avx2(kernel: impl Kernel) {
                kernel.run::<true>();
            }

            match self {
                // SAFETY: the function is safe but for the instructions it is compiled for, and this machine has them all:
                // it was asked just now, so no value of this enum, however it was made, leads to one it lacks.
                Isa::Avx512 if self.is_available() => return unsafe { avx512(kernel) },
                // SAFETY: as above.
                Isa::Avx2 if self.is_available() => return unsafe { avx2(kernel) },
                _ => {}
            }
        }
        kernel.run::<false>();
    }
}

/// Asks for the memory at `place`, which may be any place at all, to be brought near; it is read soon.
#[inline(always)]
pub(super) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that reads nothing and cannot fault, wherever it points; every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
