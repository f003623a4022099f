//! Time of one step and its draws, for whole packages at several batch sizes, without engine or wire.
//!
//! `PIXELD_BENCH_PACKAGES` names a directory of packages. `make bench-step` writes random ones at published sizes, runs
//! this and eager PyTorch in turn on the same weights, and prints both.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says so and stops")]

use std::path::PathBuf;

use criterion::{BenchmarkId, Criterion};
use pixeld::head::Tuning;
use pixeld::image::Canvas;
use pixeld::model::{Condition, ParamRows, Placement, Slot, StepRow};
use pixeld::{noise, repository};

const BATCHES: [u32; 3] = [1, 4, 16];

#[expect(clippy::disallowed_methods, reason = "cargo hands a benchmark no arguments of its own")]
fn packages() -> Option<PathBuf> {
    std::env::var_os("PIXELD_BENCH_PACKAGES").map(PathBuf::from)
}

fn bench_package(criterion: &mut Criterion, name: &str, source: &repository::Source) {
    let mut group = criterion.benchmark_group(format!("step/{name}"));
    group.sample_size(20);
    for batch in BATCHES {
        let placement = Placement::new(batch, 1);
        let mut model =
            repository::load(source, placement, repository::Limits::default()).expect("a package that loads");
        let spec = model.spec().clone();
        let mut out = ParamRows::new(spec.head.width(spec.shape));
        let mut canvases = vec![Canvas::empty(spec.shape); batch as usize];
        for slot in 0..batch {
            model.open(Slot(slot), &Condition::default()).expect("a slot that opens");
        }
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter(|| {
                let rows: Vec<_> =
                    canvases.iter().zip(0..).map(|(canvas, slot)| StepRow { slot: Slot(slot), canvas }).collect();
                model.step(&rows, &mut out).expect("a step that succeeds");
                for (canvas, slot) in canvases.iter_mut().zip(0..) {
                    let u = noise::uniform(7, slot, canvas.known());
                    let row = out.row(slot as usize);
                    canvas.push(spec.head.draw(row, &Tuning::default(), u).expect("finite parameters").value);
                    if canvas.is_complete() {
                        *canvas = Canvas::empty(spec.shape);
                        model.open(Slot(slot), &Condition::default()).expect("a slot that opens");
                    }
                }
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let Some(root) = packages() else {
        println!("set PIXELD_BENCH_PACKAGES to a directory of packages, or run `make bench-step`");
        return;
    };
    // As the daemon runs by default, and as its peer is run.
    pixeld::torch::limit_threads(1);
    for (name, source) in repository::scan(&root).expect("a directory of packages") {
        bench_package(&mut criterion, &name, &source);
    }
    criterion.final_summary();
}
