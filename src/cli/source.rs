//! Flags that several commands share: where the settings come from, and where the models run.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::access::Access;
use super::connect::Target;
use super::failure::Failure;
use crate::config::{self, Config, Flag, Layers, Trace};
use crate::rpc::proto::{self, FlushPolicy};
use crate::telemetry;

/// Settings of an engine in this process.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Settings {
    /// TOML file with settings; deploy/config.example.toml shows them all
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory with one model package in each subdirectory (models.root)
    #[arg(long = "models", value_name = "DIR")]
    models_root: Option<PathBuf>,
    /// One setting, for example engine.slots=4; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// Where the models run.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Source {
    /// Server to ask, for example http://127.0.0.1:50051 or https://HOST:50051; without it the models run in this process
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "models_root", "set"])]
    pub(super) endpoint: Option<String>,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// Smallest unit that a stream carries.
#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Granularity {
    Value,
    Pixel,
    Row,
}

impl Granularity {
    /// The same on the wire.
    pub(super) fn flush(self) -> FlushPolicy {
        let granularity = match self {
            Granularity::Value => proto::Granularity::Value,
            Granularity::Pixel => proto::Granularity::Pixel,
            Granularity::Row => proto::Granularity::Row,
        };
        FlushPolicy { granularity: granularity.into(), max_delay: None }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be section.key=value, for example engine.slots=4".to_owned()),
    }
}

impl Settings {
    /// The configuration these flags lead to; `listen` goes above everything.
    pub(super) fn load(
        &self,
        listen: Option<&str>,
        default_log_filter: Option<&'static str>,
    ) -> Result<Config, Failure> {
        let flag = |name, key: &str, value: String| Flag { name, key: key.to_owned(), value };
        let mut flags: Vec<Flag> = self.set.iter().map(|(key, value)| flag("--set", key, value.clone())).collect();
        flags.extend(self.models_root.iter().map(|root| flag("--models", "models.root", root.display().to_string())));
        flags.extend(listen.map(|listen| flag("--listen", "server.listen", listen.to_owned())));
        Ok(config::load(&Layers { default_log_filter, file: self.config.clone(), environment: None, flags })?)
    }
}

impl Source {
    /// The server named, or one in this process; its log then says no more than that something is wrong, unless the
    /// configuration says otherwise.
    pub(super) fn target(&self) -> Result<Target, Failure> {
        if let Some(url) = &self.endpoint {
            return Ok(Target::Remote(Box::new(self.access.remote(url)?)));
        }
        let config = self.settings.load(None, Some("warn"))?;
        telemetry::init(&config.log, &Trace::default()).map_err(|error| Failure::Internal(error.to_string()))?;
        Ok(Target::Local(Box::new(config)))
    }
}
