//! What this machine can do, measured: the bounds that step times are held against.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use super::isa::Isa;
use super::kernels::{LANES, Lanes, Linear, NARROW, ROWS, Read, WIDE};
use super::pages::Pages;

/// A round reads at least as many bytes: enough that starting it costs nothing, few enough to fit between interruptions.
const LEAST_BYTES: usize = 32 << 20;
/// Rounds of which the best counts: whatever else the machine does only makes a round slower.
const ROUNDS: usize = 20;

/// Bytes a second at which each of `threads` threads reads a buffer of `bytes` bytes of its own, again and again.
#[must_use]
pub fn bandwidth(bytes: usize, threads: usize) -> f64 {
    let groups = (bytes / size_of::<Lanes>()).max(1);
    let passes = (LEAST_BYTES / (groups * size_of::<Lanes>())).max(2);
    let seconds = best(threads, || {
        let mut buffer = Pages::<Lanes>::zeros(Some(groups)).ok();
        buffer.iter_mut().for_each(|buffer| buffer.fill(Lanes([1.0; LANES])));
        move || {
            let buffer = buffer.as_deref().unwrap_or_default();
            for _ in 0..passes {
                let mut sum = 0.0;
                Isa::detect().run(Read { buffer: black_box(buffer), sum: &mut sum });
                black_box(sum);
            }
        }
    });
    (passes * groups * size_of::<Lanes>()) as f64 / seconds
}

/// Multiplications with addition a second that each of `threads` threads does at best: in a product of as many rows as
/// share a pass over a panel, with everything in the nearest cache.
#[must_use]
pub fn multiplications(threads: usize) -> f64 {
    const INPUTS: usize = 64;
    const TURNS: usize = 1 << 11;
    let seconds = best(threads, || {
        let panel = vec![[Lanes([0.5; LANES]); WIDE]; INPUTS];
        let from = vec![Lanes([0.5; LANES]); ROWS * INPUTS / LANES];
        let mut to = vec![Lanes::default(); ROWS * WIDE];
        move || {
            for _ in 0..TURNS {
                Isa::detect().run(Linear::<_, [Lanes; NARROW]> {
                    inputs: INPUTS,
                    wide: black_box(&panel),
                    narrow: &[],
                    bias: None,
                    relu: false,
                    from: black_box(&from),
                    from_stride: INPUTS / LANES,
                    residual: None,
                    to: &mut to,
                    to_stride: WIDE,
                });
            }
            black_box(&to);
        }
    });
    (TURNS * INPUTS * ROWS * WIDE * LANES) as f64 / seconds
}

/// Seconds that the work takes at best, done by all threads at once.
fn best<W: FnMut()>(threads: usize, prepare: impl Fn() -> W + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let run = || {
        let mut work = prepare();
        let round = |_| {
            barrier.wait();
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64()
        };
        (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).fold(0.0, f64::max)
    })
}
