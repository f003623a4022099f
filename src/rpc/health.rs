//! `grpc.health.v1`, kept in step with the catalogue.
//!
//! | name | serving |
//! | --- | --- |
//! | `""`, `readiness`, the generation and the scoring service | every package has been looked at, a model serves, no drain |
//! | the model service | until the drain: it answers while models load |
//! | `models/{model}` | that model serves, no drain |
//! | `liveness` | no model has work and gets nothing done; one that drains or is full lives |

use std::collections::HashMap;
use std::time::Duration;

use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::answer::model_name;
use super::proto::generation_service_server::GenerationServiceServer;
use super::proto::model_service_server::ModelServiceServer;
use super::proto::scoring_service_server::ScoringServiceServer;
use crate::engine::catalogue::{Catalogue, State};

/// A model that has work and gets nothing done for this long hangs: no step or slice takes a fraction of it.
const STALLED: Duration = Duration::from_secs(60);
/// How often progress is looked at; nothing announces that something did not happen.
const LOOK: Duration = Duration::from_secs(5);

/// What was last reported under each name; watchers are told of changes only.
#[derive(Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    told: HashMap<String, ServingStatus>,
}

impl Health {
    /// Nothing serves yet.
    pub(super) fn new(reporter: HealthReporter) -> Self {
        Self { reporter, told: HashMap::new() }
    }

    /// Reports the catalogue as it is and as it changes, for ever.
    pub(crate) async fn follow(&mut self, catalogue: &Catalogue) {
        let mut changes = catalogue.watch();
        loop {
            changes.mark_unchanged();
            self.report(catalogue).await;
            if matches!(tokio::time::timeout(LOOK, changes.changed()).await, Ok(Err(_))) {
                return;
            }
        }
    }

    /// Ends every watch, so that no health checker keeps a connection open.
    pub(crate) async fn close(&mut self) {
        for name in self.told.keys() {
            self.reporter.clear_service_status(name).await;
        }
    }

    /// Reports the catalogue as it is.
    pub(crate) async fn report(&mut self, catalogue: &Catalogue) {
        for (name, serving) in statuses(catalogue) {
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            if self.told.get(&name) != Some(&status) {
                self.reporter.set_service_status(&name, status).await;
                self.told.insert(name, status);
            }
        }
    }
}

/// Whether `name`, one of those above, serves now.
#[must_use]
pub fn serves(catalogue: &Catalogue, name: &str) -> bool {
    statuses(catalogue).into_iter().any(|(known, serving)| serving && known == name)
}

/// Every name and whether it serves.
fn statuses(catalogue: &Catalogue) -> Vec<(String, bool)> {
    let open = !catalogue.is_draining();
    let models = catalogue.list();
    let serves = |state: &State| matches!(state, State::Serving { .. });
    let stalled = |state: &State| match state {
        State::Serving { handle, .. } => handle.load().since_progress.is_some_and(|since| since > STALLED),
        _ => false,
    };
    let settled = |state: &State| !matches!(state, State::Loading | State::Warming);
    let ready = open && models.values().all(settled) && models.values().any(serves);
    let each = models.iter().map(|(name, state)| (model_name(name), open && serves(state)));
    let overall = ["", "readiness", GenerationServiceServer::<()>::NAME, ScoringServiceServer::<()>::NAME];
    let fixed = overall.into_iter().map(|name| (name, ready));
    let fixed = fixed.chain([(ModelServiceServer::<()>::NAME, open), ("liveness", !models.values().any(stalled))]);
    fixed.map(|(name, serving)| (name.to_owned(), serving)).chain(each).collect()
}
