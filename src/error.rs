//! What can go wrong, in the few kinds a caller can act on. Knows nothing of gRPC: `rpc::status` maps each kind once.

use std::fmt;
use std::time::Duration;

/// Violations beyond this many are counted, not kept, so that a hostile request cannot make its own refusal large.
const MAX_VIOLATIONS: usize = 64;

/// One broken rule: which field, and what was wrong with it (the limit and the value given).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field as its author wrote it, for example `spec.sampling.top_p` or `architecture.heads`.
    pub field: String,
    /// Rule, limit and value given; lower case, no final stop.
    pub description: String,
}

/// Every broken rule of one request, file or configuration, collected before anything is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    kept: Vec<Violation>,
    dropped: usize,
}

impl Violations {
    /// Nothing wrong so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A single one.
    #[must_use]
    pub fn one(field: impl Into<String>, description: impl Into<String>) -> Self {
        let mut violations = Self::new();
        violations.add(field, description);
        violations
    }

    /// Adds one violation.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.kept.len() < MAX_VIOLATIONS {
            self.kept.push(Violation { field: field.into(), description: description.into() });
        } else {
            self.dropped += 1;
        }
    }

    /// Adds all of `other`, each field prefixed by `prefix` and a dot.
    pub fn add_within(&mut self, prefix: &str, other: Violations) {
        self.dropped += other.dropped;
        for violation in other.kept {
            self.add(format!("{prefix}.{}", violation.field), violation.description);
        }
    }

    /// Adds all of `other`.
    pub fn add_all(&mut self, other: Violations) {
        self.dropped += other.dropped;
        other.kept.into_iter().for_each(|violation| self.add(violation.field, violation.description));
    }

    /// Whether nothing was wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The violations kept, in the order found.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.kept.iter()
    }

    /// How many more were found than kept.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// `value` if nothing was wrong.
    ///
    /// # Errors
    /// The violations themselves otherwise.
    pub fn into_result<T>(self, value: T) -> Result<T, Violations> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Violation { field, description }) in self.kept.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{field}: {description}")?;
        }
        if self.dropped > 0 {
            write!(f, "; and {} more", self.dropped)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

/// Where a deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineStage {
    /// Before the first value: the request waited for a slot.
    Queue,
    /// Between the first value and the last.
    MidStream,
}

/// Why a request could not be served. Every variant is one row of the table in `rpc::status`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The request breaks the rules listed; sending it again changes nothing.
    #[error("invalid request: {0}")]
    Invalid(Violations),
    /// No model of that name is known.
    #[error("model {name:?} is not known; known models: {known}")]
    ModelNotFound {
        /// The name asked for.
        name: String,
        /// The names there are, comma-separated.
        known: String,
    },
    /// The model is still being loaded or warmed up; try again soon.
    #[error("model {name:?} is not ready yet")]
    ModelLoading {
        /// The model.
        name: String,
    },
    /// The model is known but not serving: its package was refused or it broke down.
    #[error("model {name:?} is not serving: {why}")]
    ModelFailed {
        /// The model.
        name: String,
        /// The first cause.
        why: String,
    },
    /// The model is being unloaded and takes no new work, or was unloaded before the work was done.
    #[error("model {name:?} is being unloaded")]
    ModelDraining {
        /// The model.
        name: String,
    },
    /// Something else is being done with the model.
    #[error("model {name:?} is being {doing}; try again when that is done")]
    ModelBusy {
        /// The model.
        name: String,
        /// What, as in "loaded".
        doing: &'static str,
    },
    /// The model cannot be taken out.
    #[error("model {name:?} is needed by {by}")]
    ModelInUse {
        /// The model.
        name: String,
        /// The alias or the model that names it.
        by: String,
    },
    /// A new revision of the model was refused; the old one serves.
    #[error("model {name:?} still serves revision {revision}, the new one was refused: {why}")]
    ReloadFailed {
        /// The model.
        name: String,
        /// The revision that serves.
        revision: String,
        /// The first cause, or every fault of the package.
        why: String,
    },
    /// There is no memory for another model.
    #[error("model {name:?} needs {wanted} bytes, {free} of the {limit} of engine.max_model_memory are free")]
    ModelMemoryFull {
        /// The model.
        name: String,
        /// Bytes that it needs.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes in all.
        limit: u64,
    },
    /// A promise the request asks for that this build or model cannot keep.
    #[error("{0}")]
    Unsupported(String),
    /// The queue is full; try again after the wait.
    #[error("the queue of model {name:?} is full: {requested} images asked for, {free} of {limit} places free")]
    QueueFull {
        /// The model.
        name: String,
        /// Images the request wanted to queue.
        requested: u32,
        /// Places free now.
        free: u32,
        /// Places in all.
        limit: u32,
        /// An estimate of when to come back.
        retry_after: Duration,
    },
    /// The memory for requests on their way in is taken; try again soon.
    #[error("too much is being uploaded: {requested} bytes asked for, {free} of {limit} free")]
    UploadsFull {
        /// Bytes the message needs.
        requested: usize,
        /// Bytes free now.
        free: usize,
        /// Bytes in all.
        limit: usize,
    },
    /// The client began to send a request and does not go on, or only a little at a time; or its stream paused while others
    /// wanted the memory that it held.
    #[error("the rest of the request did not come in time, or its stream kept memory without need that others wanted")]
    RequestStalled,
    /// The request's deadline or queue timeout passed.
    #[error("deadline exceeded {}", match stage { DeadlineStage::Queue => "while waiting for a slot", DeadlineStage::MidStream => "mid-stream" })]
    DeadlineExceeded {
        /// Where.
        stage: DeadlineStage,
        /// Values sampled and kept so far, over all images of the request.
        values: u64,
    },
    /// The client left the answer unread for too long, so its work was stopped.
    #[error("the answer was left unread for too long")]
    ClientTooSlow {
        /// Values handed to the transport so far, over all images of the request.
        values: u64,
        /// The rank that each image goes on from.
        ranks: Vec<u32>,
    },
    /// The client, or an operator, cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The server is shutting down and takes no new work.
    #[error("the server is draining")]
    Draining,
    /// The request brings no token that lets it in. Says nothing of what was wrong with one.
    #[error("this needs a token: send the metadata `authorization: Bearer TOKEN` with one that is valid here")]
    Unauthenticated,
    /// The request could be met at the earliest after its deadline, as things are; nothing of it was begun.
    #[error("the deadline cannot be met: the last value is expected in {} ms", estimate.as_millis())]
    DeadlineInfeasible {
        /// From now to the last value.
        estimate: Duration,
    },
    /// A request of this name is under way.
    #[error("a request with the id {request_id:?} is under way")]
    AlreadyRunning {
        /// Its name.
        request_id: String,
    },
    /// There was no memory to compute this, even alone.
    #[error("out of memory while computing")]
    OutOfMemory,
    /// The model broke while computing; what is public of the cause.
    #[error("engine fault: {0}")]
    EngineFault(String),
}

impl From<Violations> for Error {
    fn from(violations: Violations) -> Self {
        Error::Invalid(violations)
    }
}
