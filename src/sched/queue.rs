//! Images waiting their turn: first in, first out within a class, one entry for each job.

use std::collections::VecDeque;
use std::ops::Range;

use super::{ImageKey, JobId};
use crate::job::Class;

/// After this many interactive images in a row, a waiting batch image goes next, so that batch work never starves.
const INTERACTIVE_RUN: u32 = 8;

/// The images of a job that have not started.
#[derive(Clone, Debug)]
struct Waiting<W> {
    job: JobId,
    images: Range<u32>,
    work: W,
}

/// A two-class queue; `W` says what each image of a job needs.
#[derive(Clone, Debug)]
pub(super) struct Queue<W> {
    interactive: VecDeque<Waiting<W>>,
    batch: VecDeque<Waiting<W>>,
    interactive_run: u32,
}

impl<W: Copy> Queue<W> {
    pub(super) fn new() -> Self {
        Self { interactive: VecDeque::new(), batch: VecDeque::new(), interactive_run: 0 }
    }

    pub(super) fn push(&mut self, job: JobId, images: Range<u32>, work: W, class: Class) {
        let entry = Waiting { job, images, work };
        match class {
            Class::Interactive => self.interactive.push_back(entry),
            Class::Batch => self.batch.push_back(entry),
        }
    }

    pub(super) fn pop(&mut self) -> Option<(ImageKey, W)> {
        let batch_first =
            self.interactive.is_empty() || (self.interactive_run >= INTERACTIVE_RUN && !self.batch.is_empty());
        let line = if batch_first {
            self.interactive_run = 0;
            &mut self.batch
        } else {
            self.interactive_run += 1;
            &mut self.interactive
        };
        let first = line.front_mut()?;
        let taken = first.images.next().map(|index| (ImageKey { job: first.job, index }, first.work));
        if first.images.is_empty() {
            line.pop_front();
        }
        taken
    }

    pub(super) fn remove(&mut self, job: JobId) {
        self.interactive.retain(|waiting| waiting.job != job);
        self.batch.retain(|waiting| waiting.job != job);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.batch.is_empty()
    }

    /// Images, not jobs.
    pub(super) fn images(&self) -> u32 {
        images(&self.interactive) + self.batch_images()
    }

    /// Those of batch jobs.
    pub(super) fn batch_images(&self) -> u32 {
        images(&self.batch)
    }
}

/// Images of `waiting`.
fn images<W>(waiting: &VecDeque<Waiting<W>>) -> u32 {
    waiting.iter().map(|waiting| waiting.images.end - waiting.images.start).sum()
}
