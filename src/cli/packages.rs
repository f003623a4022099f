//! Which packages a server in this process serves.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::failure::Failure;
use crate::app::{self, App};
use crate::config::{self, Config};
use crate::engine::SCORE_IMAGES;
use crate::model::Placement;
use crate::repository::{self, Limits, Source};
use crate::spec::{Backend, Device};
use crate::torch;

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

/// An app of every package that `config` names, which finds more of them later. Also settles how many threads libtorch may
/// use, which must happen before the first of them is loaded.
pub(super) fn start(mut config: Config) -> Result<App, Failure> {
    config.engine.device = Some(device(&config.engine, config.engine.backend)?);
    torch::limit_threads(config.engine.threads());
    let sources = sources(&config)?;
    if sources.is_empty() {
        tracing::warn!("there are no models to serve: name a directory of packages with --models");
    }
    let later = config.clone();
    let find = move || sources_or_why(&later);
    Ok(App::start_with(config, sources, Arc::new(find)))
}

/// The device that `engine` says or leaves open, for models whose steps `backend` computes.
pub(super) fn device(engine: &config::Engine, backend: Backend) -> Result<Device, Failure> {
    let wanted = if backend == Backend::Native { Some(Device::Cpu) } else { engine.device };
    let found = torch::find(wanted, engine.cuda_libraries.as_deref());
    found.map_err(|why| Failure::Usage(format!("engine.device: {why}")))
}

fn sources_or_why(config: &Config) -> Result<Vec<app::Source>, String> {
    sources(config).map_err(|failure| failure.message().unwrap_or_default().to_owned())
}

/// Every package that `config` names, yet to be loaded.
fn sources(config: &Config) -> Result<Vec<app::Source>, Failure> {
    let placement = Placement {
        slots: config.engine.slots.unwrap_or(1),
        score_images: SCORE_IMAGES,
        backend: config.engine.backend,
        device: config.engine.device.unwrap_or_default(),
        precision: config.engine.precision,
    };
    let limits = Limits { weights_bytes: config.models.max_weight_bytes };
    let source = |(name, package): (String, Source)| {
        let inspected = package.clone();
        app::Source::new(name, move || repository::load(&package, placement, limits))
            .inspected(move || repository::outline(&inspected, limits))
    };
    Ok(packages(config)?.into_iter().map(source).collect())
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
