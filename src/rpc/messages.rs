//! What the services make of messages before anything of them is queued, without a connection: for those who make up messages
//! to see whether one is too much.

use prost::Message;
use tonic::Status;

use super::codec::check_fields;
use super::convert;
use super::generation::Generations;
use super::inference::{Inference, Task};
use super::proto::inference::ModelInferRequest;
use super::proto::{ScoreImagesRequest, StreamGenerateImagesRequest};
use super::running::Running;
use super::scoring::Scorings;
use super::status::status;
use crate::engine::catalogue::Catalogue;
use crate::error::{Error, Violations};
use crate::job::{Limits, SampleJob, ScoreJob};

/// The services over some models.
#[derive(Debug)]
pub struct Messages(Inference);

/// What a message asks for.
#[derive(Debug)]
pub enum Asked {
    /// Images.
    Sample(Box<SampleJob>),
    /// Scores.
    Score(ScoreJob),
}

/// What a message is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A `StreamGenerateImagesRequest`.
    Generation,
    /// A `ScoreImagesRequest`.
    Scoring,
    /// A `ModelInferRequest` of the Open Inference Protocol.
    Inference,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Generation, Self::Scoring, Self::Inference];
}

impl Messages {
    /// To the models of `catalogue`.
    #[must_use]
    pub fn new(catalogue: &Catalogue, limits: Limits) -> Self {
        let generations = Generations { catalogue: catalogue.clone(), limits, running: Running::default() };
        Self(Inference { generations, scorings: Scorings { catalogue: catalogue.clone(), limits } })
    }

    /// Reads `message`; places that it was given in a queue are free again.
    ///
    /// # Errors
    /// What the client would be told; a message that is none is a fault of the field `message`.
    pub fn read(&self, kind: Kind, message: &[u8]) -> Result<Asked, Status> {
        self.asked(kind, message).map_err(|error| status(&error))
    }

    fn asked(&self, kind: Kind, message: &[u8]) -> Result<Asked, Error> {
        match kind {
            Kind::Generation => self.generation(decode(message)?),
            Kind::Scoring => self.scoring(decode(message)?),
            Kind::Inference => match self.0.read(decode::<ModelInferRequest>(message)?, true)?.task {
                Task::Sample { spec, granularity } => self.generation(StreamGenerateImagesRequest {
                    spec: Some(*spec),
                    flush: Some(super::proto::FlushPolicy { granularity: granularity.into(), max_delay: None }),
                    include_log_probs: false,
                }),
                Task::Score(request) => self.scoring(request),
            },
        }
    }

    fn generation(&self, request: StreamGenerateImagesRequest) -> Result<Asked, Error> {
        let mut violations = Violations::new();
        let flush = convert::flush(request.flush, &mut violations);
        let desk = self.0.generations.desk();
        convert::generation(request.spec, flush.granularity, desk, None, violations)
            .map(|it| Asked::Sample(it.job.into()))
    }

    fn scoring(&self, request: ScoreImagesRequest) -> Result<Asked, Error> {
        self.0.scorings.read(request, None).map(|admitted| Asked::Score(admitted.job))
    }
}

fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Error> {
    let bad = |why: String| Error::Invalid(Violations::one("message", why));
    check_fields(message).map_err(bad)?;
    M::decode(message).map_err(|error| bad(error.to_string()))
}
