//! Lays the sources of settings over each other: built-in defaults, file, environment, flags.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use config::{Config as Merged, ConfigError, Environment, File, FileFormat, Map, Source, Value, ValueKind};

use super::{Config, check};
use crate::error::Violations;

/// The lowest layer. It is the file that operators start from, so that neither can drift from the other.
pub(super) const DEFAULTS: &str = include_str!("../../deploy/config.example.toml");

/// Bytes of a configuration file.
const MAX_FILE: u64 = 1 << 20;
const PREFIX: &str = "PIXELD";
const SEPARATOR: &str = "__";
const ENVIRONMENT_ORIGIN: &str = "the environment";

/// Variables by name.
pub type Variables = Map<String, String>;

/// What lies above the built-in defaults, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Log filter instead of the built-in one, for commands whose output is not a log.
    pub default_log_filter: Option<&'static str>,
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Variables instead of those of the process.
    pub environment: Option<Variables>,
    /// Settings given as flags.
    pub flags: Vec<Flag>,
}

/// One setting given as a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag as the user knows it, for messages: `--listen`.
    pub name: &'static str,
    /// Path of the setting: `server.listen`.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// One setting as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// `None` for a section or a list where one value belongs.
    pub(super) text: Option<String>,
    /// Who said so.
    pub(super) origin: String,
}

/// Merges all layers and checks the result.
///
/// # Errors
/// Every fault at once, each with the layer it comes from. A file that cannot be read or parsed is reported alone.
pub fn load(layers: &Layers) -> Result<Config, Violations> {
    check::check(merge(layers)?)
}

/// Every setting of the merged layers by its path.
fn merge(layers: &Layers) -> Result<BTreeMap<String, Setting>, Violations> {
    let mut builder = Merged::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    if let Some(filter) = layers.default_log_filter {
        builder = builder.add_source(File::from_str(&format!("log.filter = {filter:?}"), FileFormat::Toml));
    }
    if let Some(path) = &layers.file {
        // Read here rather than by the crate, which would name the file by another path than the user did.
        let mut text = String::new();
        let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
        let why = match read {
            Ok(bytes) if bytes as u64 > MAX_FILE => Some(format!("it is longer than {MAX_FILE} bytes")),
            other => other.err().map(|error| error.to_string()),
        };
        if let Some(why) = why {
            return Err(Violations::one("--config", format!("cannot read {}: {why}", path.display())));
        }
        builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
    }
    let environment = Environment::with_prefix(PREFIX).separator(SEPARATOR).source(layers.environment.clone());

    let mut violations = Violations::new();
    let named = environment.collect().map_err(|error| Violations::one("configuration", error.to_string()))?;
    for key in named.into_keys().filter(|key| is_list_place(key)) {
        violations.add(key, format!("is not a setting (from {ENVIRONMENT_ORIGIN})"));
    }
    builder = builder.add_source(environment);

    for Flag { name, key, value } in &layers.flags {
        let value = Value::new(Some(&(*name).to_owned()), ValueKind::String(value.clone()));
        match builder.clone().set_override(key, value) {
            Ok(with_flag) if !is_list_place(key) => builder = with_flag,
            _ => violations.add(*name, format!("must be section.key=value, got {key:?} as the key")),
        }
    }
    violations.into_result(())?;

    // Nothing but the file and the defaults leaves the origin open, and the defaults are right.
    let file = layers.file.as_ref().map_or_else(|| "the defaults".to_owned(), |path| path.display().to_string());
    let merged = builder.build().map_err(|error| match &error {
        ConfigError::FileParse { cause, .. } => Violations::one(&file, cause.to_string()),
        other => Violations::one("configuration", other.to_string()),
    })?;
    let mut settings = BTreeMap::new();
    flatten(String::new(), merged.cache, &file, &mut settings);
    Ok(settings)
}

/// Whether the crate would take `key` for a place in a list, and make the list as long as the number in it says.
fn is_list_place(key: &str) -> bool {
    key.contains('[')
}

fn flatten(path: String, value: Value, file: &str, settings: &mut BTreeMap<String, Setting>) {
    match value.kind {
        ValueKind::Table(entries) if !entries.is_empty() || path.is_empty() => {
            for (key, value) in entries {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(path, value, file, settings);
            }
        }
        _ => {
            let origin = match value.origin() {
                Some(ENVIRONMENT_ORIGIN) => {
                    format!("{PREFIX}{SEPARATOR}{}", path.to_uppercase().replace('.', SEPARATOR))
                }
                origin => origin.unwrap_or(file).to_owned(),
            };
            settings.insert(path, Setting { text: value.into_string().ok(), origin });
        }
    }
}
