//! `grpc.health.v1`, kept in step with the catalogue.
//!
//! | name | serving |
//! | --- | --- |
//! | `""`, `readiness`, the generation and the scoring service | every package that was there at the start has been looked at, a model serves, no drain |
//! | the admin service | always: it answers to the end |
//! | the model service | until the drain: it answers while models load |
//! | `models/{model}` | that model serves, no drain; an alias is a name too. Unknown once it is unloaded |
//! | `liveness` | no model has work and gets nothing done; one that drains or is full lives |

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::answer::model_name;
use super::proto::admin_service_server::AdminServiceServer;
use super::proto::generation_service_server::GenerationServiceServer;
use super::proto::model_service_server::ModelServiceServer;
use super::proto::scoring_service_server::ScoringServiceServer;
use crate::engine::catalogue::{Catalogue, State};

/// How often progress is looked at; nothing announces that something did not happen.
const LOOK: Duration = Duration::from_millis(500);

/// What was last reported under each name; watchers are told of changes only.
#[derive(Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    told: HashMap<String, ServingStatus>,
}

impl Health {
    /// Nothing serves yet.
    pub(crate) fn new() -> Self {
        Self { reporter: HealthReporter::new(), told: HashMap::new() }
    }

    /// What tells it to a service.
    pub(super) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
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
        let statuses = statuses(catalogue);
        let gone: Vec<_> = self.told.keys().filter(|name| !statuses.contains_key(*name)).cloned().collect();
        for name in gone {
            self.reporter.clear_service_status(&name).await;
            self.told.remove(&name);
        }
        for (name, serving) in statuses {
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
fn statuses(catalogue: &Catalogue) -> BTreeMap<String, bool> {
    let (open, models) = (!catalogue.is_draining(), catalogue.list());
    let serves = |state: &State| matches!(state, State::Serving { .. });
    let stalled = |state: &State| state.handle().is_some_and(|handle| handle.stalled().is_some());
    let ready = open && catalogue.is_settled() && models.values().any(serves);
    let each = models.iter().map(|(name, state)| (model_name(name), open && serves(state)));
    let aliases = catalogue.aliases().into_iter().map(|(alias, model)| {
        let serving = models.get(&model).is_some_and(serves);
        (model_name(&alias), open && serving)
    });
    let overall = ["", "readiness", GenerationServiceServer::<()>::NAME, ScoringServiceServer::<()>::NAME];
    let fixed = overall.into_iter().map(|name| (name, ready));
    let fixed = fixed.chain([
        (ModelServiceServer::<()>::NAME, open),
        (AdminServiceServer::<()>::NAME, true),
        ("liveness", !models.values().any(stalled)),
    ]);
    let fixed = fixed.map(|(name, serving)| (name.to_owned(), serving));
    // Models last: their own names go before aliases.
    fixed.chain(aliases).chain(each).collect()
}
