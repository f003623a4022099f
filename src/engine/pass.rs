//! Images on their way through a scoring pass, slice by slice, and what becomes of their scores.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::event::ENGINE_GONE;
use super::part::Part;
use super::stream::Score;
use crate::error::Error;
use crate::head::{Head, NotFinite};
use crate::image::Rank;
use crate::job::ScoreJob;
use crate::model::{ParamRows, ScoreRow};
use crate::sched::{ImageKey, JobId};

/// Where the parts of a scoring job put their scores together.
#[derive(Debug)]
pub(super) struct Sheet {
    scores: Vec<Option<Score>>,
    /// Until the answer was given.
    answer: Option<oneshot::Sender<Scored>>,
}

/// The scores in the order of the items, and when the last one was complete.
pub(super) type Scored = Result<(Vec<Score>, Instant), Error>;

impl Sheet {
    pub(super) fn new(items: usize, answer: oneshot::Sender<Scored>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { scores: vec![None; items], answer: Some(answer) }))
    }
}

/// A shard's end of a scoring job. Like a promise it is kept or broken, and its owner told, however it goes.
#[derive(Debug)]
pub(super) struct ScoreReply {
    /// Set when the first of the job's images is about to be scored.
    pub(super) started: Arc<OnceLock<Instant>>,
    sheet: Arc<Mutex<Sheet>>,
    part: Part,
    kept: bool,
}

impl ScoreReply {
    pub(super) fn new(started: Arc<OnceLock<Instant>>, sheet: Arc<Mutex<Sheet>>, part: Part) -> Self {
        Self { started, sheet, part, kept: false }
    }

    /// See [`Part::is_over`].
    pub(super) fn is_over(&self) -> bool {
        self.part.is_over()
    }

    /// Enters the score of item `index`; whether it was the last one of the part.
    pub(super) fn enter(&mut self, index: u32, score: Score) -> bool {
        if let Some(place) = self.sheet().scores.get_mut(index as usize) {
            *place = Some(score);
        }
        self.part.image_done()
    }

    /// Every score of the part is there; the last part gives the answer.
    pub(super) fn keep(mut self, now: Instant) {
        self.kept = true;
        if self.part.done() {
            let scores = std::mem::take(&mut self.sheet().scores);
            self.answer(Ok((scores.into_iter().flatten().collect(), now)));
        }
    }

    /// The job ends here, and why. Of several failures the first is told.
    pub(super) fn fail(self, error: Error) {
        self.break_off(error);
    }

    fn break_off(&self, error: Error) {
        // Before the others hear of it, who would only say that they were cancelled.
        self.answer(Err(error));
        self.part.failed();
    }

    fn answer(&self, scored: Scored) {
        if let Some(answer) = self.sheet().answer.take() {
            // A ticket that is gone wants no answer.
            let _ = answer.send(scored);
        }
    }

    fn sheet(&self) -> MutexGuard<'_, Sheet> {
        self.sheet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ScoreReply {
    fn drop(&mut self) {
        if !self.kept {
            self.break_off(Error::EngineFault(ENGINE_GONE.into()));
        }
    }
}

/// One image of the pass under way. It keeps its job's images alive: the model is owed the same ones until the pass ends,
/// whoever has given up on them meanwhile.
struct Member {
    key: ImageKey,
    job: Arc<ScoreJob>,
    score: Score,
}

/// The scoring pass under way; empty between passes.
#[derive(Default)]
pub(super) struct Pass {
    members: Vec<Member>,
}

impl Pass {
    /// Takes in one image of a new pass.
    pub(super) fn join(&mut self, key: ImageKey, job: &Arc<ScoreJob>) {
        let values = job.items.get(key.index as usize).map_or(0, |(canvas, _)| canvas.known());
        let log_probs = job.per_value.then(|| Vec::with_capacity(values as usize));
        let score = Score { log_likelihood: 0.0, log_probs };
        self.members.push(Member { key, job: Arc::clone(job), score });
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.members.clear();
    }

    /// The images, as the model takes them.
    pub(super) fn rows(&self) -> Vec<ScoreRow<'_>> {
        self.members.iter().filter_map(Member::row).collect()
    }

    /// Adds up the slice `from..reached`; `failed` hears of every image with a row that is not finite.
    pub(super) fn add(
        &mut self,
        from: Rank,
        reached: Rank,
        rows: &ParamRows,
        head: Head,
        mut failed: impl FnMut(ImageKey),
    ) {
        for (place, member) in self.members.iter_mut().enumerate() {
            if member.add(place, from, reached, rows, head).is_err() {
                failed(member.key);
            }
        }
    }

    /// The score of `key`, which is complete.
    pub(super) fn take(&mut self, key: ImageKey) -> Option<Score> {
        let member = self.members.iter_mut().find(|member| member.key == key)?;
        let log_probs = member.score.log_probs.take();
        Some(Score { log_likelihood: member.score.log_likelihood, log_probs })
    }

    /// Whether any image of the pass belongs to a job that `lives`.
    pub(super) fn serves(&self, lives: impl Fn(JobId) -> bool) -> bool {
        self.members.iter().any(|member| lives(member.key.job))
    }
}

impl Member {
    fn row(&self) -> Option<ScoreRow<'_>> {
        let (canvas, condition) = self.job.items.get(self.key.index as usize)?;
        Some(ScoreRow { canvas, condition })
    }

    fn add(&mut self, place: usize, from: Rank, reached: Rank, rows: &ParamRows, head: Head) -> Result<(), NotFinite> {
        let Some((canvas, _)) = self.job.items.get(self.key.index as usize) else { return Ok(()) };
        let per_step = head.values_per_step(canvas.shape()).max(1) as usize;
        let ranks = (from..reached.min(canvas.known())).enumerate();
        let first = place * ranks.len() / per_step;
        for (index, rank) in ranks {
            let log_prob = head.log_prob(rows.row(first + index / per_step), canvas, rank)?;
            self.score.log_likelihood += log_prob;
            if let Some(log_probs) = &mut self.score.log_probs {
                log_probs.push(log_prob as f32);
            }
        }
        Ok(())
    }
}
