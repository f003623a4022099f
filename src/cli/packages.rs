//! Which packages a server in this process serves.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::failure::Failure;
use crate::app;
use crate::config::Config;
use crate::engine::{SCORE_IMAGES, cohort};
use crate::error::Violations;
use crate::model::Placement;
use crate::repository::{self, Limits, Source};
use crate::{machine, torch};

/// A package that is part of the program.
struct Embedded {
    name: &'static str,
    manifest: &'static [u8],
    weights: &'static [u8],
}

const EMBEDDED: &[Embedded] = &[Embedded {
    name: "digits",
    manifest: include_bytes!("../../models/digits/model.toml"),
    weights: include_bytes!("../../models/digits/weights.pt"),
}];

/// Every package that `config` names, yet to be loaded. Also settles how many threads libtorch may use, which must
/// happen before the first of them is.
pub(super) fn sources(config: &Config) -> Result<Vec<app::Source>, Failure> {
    torch::limit_threads(config.engine.threads());
    let (config_slots, shards) = (config.engine.slots, config.engine.shards());
    let placement = Placement {
        slots: config_slots.unwrap_or(1),
        score_images: SCORE_IMAGES,
        backend: config.engine.backend,
        precision: config.engine.precision,
    };
    let limits = Limits { weights_bytes: config.models.max_weight_bytes };
    let load = move |package| {
        let model = repository::load(&package, placement, limits)?;
        if config_slots.is_some() {
            return Ok(model);
        }
        // Only a model that has been built knows what it takes.
        let slots = cohort::slots(model.spec(), shards, machine::last_level_cache());
        model.shard(slots).map_err(|error| {
            let mut violations = Violations::new();
            violations.add("engine.slots", error.to_string());
            violations
        })
    };
    let found = packages(config)?;
    if found.is_empty() {
        tracing::warn!("there are no models to serve: name a directory of packages with --models");
    }
    let source = |(name, package)| app::Source::new(name, move || load(package));
    Ok(found.into_iter().map(source).collect())
}

/// By name; a package on disk goes before an embedded one.
fn packages(config: &Config) -> Result<BTreeMap<String, Source>, Failure> {
    let mut found = BTreeMap::new();
    if config.models.embedded {
        found.extend(EMBEDDED.iter().map(|package| {
            let manifest = Bytes::from_static(package.manifest);
            let weights = Bytes::from_static(package.weights);
            (package.name.to_owned(), Source::Embedded { manifest, weights })
        }));
    }
    if let Some(root) = &config.models.root {
        let scanned = repository::scan(root).map_err(|error| {
            Failure::Usage(format!(
                "models.root: cannot list {}: {error}; name a directory of packages",
                root.display()
            ))
        })?;
        found.extend(scanned);
    }
    Ok(found)
}

/// The package called `name` among those that `config` names.
pub(super) fn named(config: &Config, name: &str) -> Result<Source, Failure> {
    let mut found = packages(config)?;
    let known = found.keys().cloned().collect::<Vec<_>>().join(", ");
    found.remove(name).ok_or_else(|| Failure::Usage(format!("--model: there is no {name:?}; there are {known}")))
}
