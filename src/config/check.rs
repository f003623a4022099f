//! From settings as they were written to a [`Config`] that cannot be wrong; every fault is found in one pass.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use humantime_serde::re::humantime::{format_duration, parse_duration};
use tracing_subscriber::EnvFilter;

use super::layers::Setting;
use super::{Admin, AdminAddress, Config, Engine, Health, Log, Metrics, Models, Server, Trace};
use crate::engine::EngineConfig;
use crate::engine::catalogue::bare;
use crate::error::Violations;
use crate::job::Limits;
use crate::model::manifest::check_name;
use crate::rpc::ConnectionLimits;
use crate::security::{Group, TlsFiles, TokenFiles};
use crate::spec::{Backend, Device, Precision};

/// A number that the machine and the model decide.
pub(super) const AUTO: &str = "auto";
/// No limit.
pub(super) const NONE: &str = "none";
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Below this not even the message of a small image fits.
const SMALLEST_MESSAGE: ByteSize = ByteSize::kib(4);
const LARGEST_MESSAGE: ByteSize = ByteSize::gib(1);
const LARGEST_MEMORY: ByteSize = ByteSize::tib(1);
/// More than any machine has; libtorch counts them in 8 bits.
const MOST_GPUS: u32 = 64;
const LARGEST_WEIGHTS: ByteSize = ByteSize::tib(1);

pub(super) fn check(settings: BTreeMap<String, Setting>) -> Result<Config, Violations> {
    let mut reader = Reader { settings, known: Vec::new(), violations: Violations::new() };
    // A fault leaves a default in place of the value; the config is thrown away then.
    let mut config = Config {
        server: Server {
            listen: reader.read("server.listen", parse_address).unwrap_or_else(|| ([127, 0, 0, 1], 0).into()),
            max_request_bytes: reader.bytes("server.max_request", SMALLEST_MESSAGE..=LARGEST_MESSAGE) as usize,
            max_upload_bytes: reader.bytes("server.max_upload_memory", SMALLEST_MESSAGE..=LARGEST_MEMORY) as usize,
            connections: ConnectionLimits {
                most: reader.number("server.max_connections", 1..=1_000_000),
                streams: reader.number("server.max_streams_per_connection", 1..=1_000_000),
                handshake_timeout: reader.time("server.handshake_timeout", SHORTEST..=LONGEST),
                keepalive_interval: reader.time("server.keepalive_interval", SHORTEST..=LONGEST),
                keepalive_timeout: reader.time("server.keepalive_timeout", SHORTEST..=LONGEST),
                idle: reader.time_or_never("server.max_connection_idle"),
                age: reader.time_or_never("server.max_connection_age"),
                age_grace: reader.time("server.max_connection_age_grace", Duration::ZERO..=LONGEST),
                unread_timeout: Duration::ZERO,
            },
            drain_delay: reader.time("server.drain_delay", Duration::ZERO..=LONGEST),
            drain_timeout: reader.time("server.drain_timeout", Duration::ZERO..=LONGEST),
            tls: reader.tls(),
        },
        auth: reader.tokens(),
        models: Models {
            root: reader.path("models.root"),
            embedded: reader.flag("models.embedded"),
            max_weight_bytes: reader.bytes("models.max_weight_bytes", ByteSize::b(1)..=LARGEST_WEIGHTS),
            aliases: reader.aliases("models.aliases"),
        },
        engine: Engine {
            shards: reader.number_or_auto("engine.shards", 1..=1024),
            slots: reader.number_or_auto("engine.slots", 1..=4096),
            backend: reader.read("engine.backend", parse_backend).unwrap_or_default(),
            device: reader.read("engine.device", parse_device).flatten(),
            cuda_libraries: reader.path("engine.cuda_libraries"),
            precision: reader.read("engine.precision", parse_precision).unwrap_or_default(),
            threads: reader.number_or_auto("engine.threads", 1..=1024),
            max_model_bytes: reader.read("engine.max_model_memory", parse_memory_or_none).flatten(),
            engine: EngineConfig {
                queue_images: reader.number("engine.queue_images", 1..=1_000_000),
                score_share: reader.read("engine.score_share", parse_share).unwrap_or_default(),
                batch_share: reader.read("engine.batch_share", parse_share).unwrap_or_default(),
                stall_timeout: reader.time("engine.stall_timeout", SHORTEST..=LONGEST),
            },
            stall_exit: reader.flag("engine.stall_exit"),
        },
        limits: Limits {
            images_per_request: reader.number("limits.images_per_request", 1..=Limits::MOST),
            items_per_request: reader.number("limits.items_per_request", 1..=Limits::MOST),
            queue_timeout: reader.time("limits.queue_timeout", SHORTEST..=Limits::LONGEST_QUEUE_TIMEOUT),
            unread_timeout: reader.time("limits.unread_timeout", SHORTEST..=LONGEST),
        },
        admin: Admin { listen: reader.read("admin.listen", parse_admin).flatten() },
        health: Health { listen: reader.read("health.listen", parse_address_or_none).flatten() },
        metrics: Metrics { listen: reader.read("metrics.listen", parse_address_or_none).flatten() },
        log: Log {
            filter: reader.read("log.filter", |text| log_filter(text).map(|_| text.to_owned())).unwrap_or_default(),
            json: reader.flag("log.json"),
        },
        trace: Trace {
            endpoint: reader.read("trace.endpoint", parse_collector).flatten(),
            ratio: reader.read("trace.ratio", parse_ratio).unwrap_or_default(),
        },
    };
    // One setting, for answers of both kinds.
    config.server.connections.unread_timeout = config.limits.unread_timeout;
    let mut violations = reader.finish();
    if violations.is_empty() {
        let Server { max_request_bytes: message, max_upload_bytes: memory, .. } = config.server;
        // What a message of packed numbers counts for.
        if memory / 8 < message {
            let least = ByteSize::b(8 * message as u64);
            violations.add("server.max_upload_memory", format!("must be at least eight times server.max_request, {least}, got {}: the largest messages could never be received", ByteSize::b(memory as u64)));
        }
        if let (Some(device @ Device::Cuda(_)), Backend::Native) = (config.engine.device, config.engine.backend) {
            violations.add(
                "engine.backend",
                format!(
                    "must be \"torch\" with engine.device {device}, got \"native\": kernels of our own are for the CPU"
                ),
            );
        }
        let places = config.engine.engine.queue_images;
        for (key, most) in [
            ("limits.images_per_request", config.limits.images_per_request),
            ("limits.items_per_request", config.limits.items_per_request),
        ] {
            if most > places {
                violations.add(key, format!("must be at most engine.queue_images, {places}, got {most}: larger requests could never be queued"));
            }
        }
    }
    violations.into_result(config)
}

/// Hands out settings by name and remembers which there are.
struct Reader {
    settings: BTreeMap<String, Setting>,
    known: Vec<&'static str>,
    violations: Violations,
}

impl Reader {
    /// The setting `key` as `parse` reads it; a fault is noted and gives `None`.
    fn read<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.known.push(key);
        let Some(Setting { text, origin }) = self.settings.remove(key) else {
            self.violations.add(key, "must be set");
            return None;
        };
        let Some(text) = text else {
            self.violations.add(key, format!("must be one value, got a list or a section (from {origin})"));
            return None;
        };
        match parse(&text) {
            Ok(value) => Some(value),
            Err(rule) => {
                self.violations.add(key, format!("must be {rule}, got {text:?} (from {origin})"));
                None
            }
        }
    }

    fn number(&mut self, key: &'static str, range: RangeInclusive<u32>) -> u32 {
        let rule = format!("a whole number {}..={}", range.start(), range.end());
        self.read(key, |text| within(text.parse(), &range, &rule)).unwrap_or_default()
    }

    /// `None` for `auto`.
    fn number_or_auto(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let rule = format!("\"auto\" or a whole number {}..={}", range.start(), range.end());
        let parse = |text: &str| if text == AUTO { Ok(None) } else { within(text.parse(), &range, &rule).map(Some) };
        self.read(key, parse).flatten()
    }

    fn bytes(&mut self, key: &'static str, range: RangeInclusive<ByteSize>) -> u64 {
        let rule = format!("a size such as \"16 MiB\", {} to {}", range.start(), range.end());
        self.read(key, |text| within(ByteSize::from_str(text), &range, &rule)).unwrap_or_default().as_u64()
    }

    /// Every setting in the section `section`: an alias and the model that it stands for.
    fn aliases(&mut self, section: &'static str) -> BTreeMap<String, String> {
        self.known.push(section);
        // A section with nothing in it is a setting by itself.
        if self.settings.get(section).is_some_and(|setting| setting.text.is_none()) {
            self.settings.remove(section);
        }
        let prefix = format!("{section}.");
        let here = self.settings.extract_if(.., |key, _| key.starts_with(&prefix));
        let mut aliases = BTreeMap::new();
        for (key, Setting { text, origin }) in here {
            let (alias, model) = (key.trim_start_matches(&prefix), text.as_deref().map(bare).unwrap_or_default());
            match check_name(alias).and_then(|()| check_name(model)) {
                Ok(()) => _ = aliases.insert(alias.to_owned(), model.to_owned()),
                Err(rule) => self.violations.add(key, format!("a name {rule} (from {origin})")),
            }
        }
        aliases
    }

    fn time(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Duration {
        let [least, most] = [range.start(), range.end()].map(|&end| format_duration(end));
        let rule = format!("a time such as \"30s\" or \"2m\", {least} to {most}");
        self.read(key, |text| within(parse_duration(text), &range, &rule)).unwrap_or_default()
    }

    /// `None` for no time at all.
    fn time_or_never(&mut self, key: &'static str) -> Option<Duration> {
        let [least, most] = [SHORTEST, LONGEST].map(format_duration);
        let rule = format!("\"0s\" for never, or a time such as \"30m\", {least} to {most}");
        let parse = |text: &str| match parse_duration(text) {
            Ok(Duration::ZERO) => Ok(None),
            other => within(other, &(SHORTEST..=LONGEST), &rule).map(Some),
        };
        self.read(key, parse).flatten()
    }

    /// `None` if it is empty.
    fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.read(key, |text| Ok((!text.is_empty()).then(|| PathBuf::from(text)))).flatten()
    }

    fn tls(&mut self) -> Option<TlsFiles> {
        let keys = ["server.tls.certificate", "server.tls.key", "server.tls.client_ca"];
        let [certificate, key, client_ca] = keys.map(|key| self.path(key));
        match (certificate, key) {
            (Some(certificate), Some(key)) => return Some(TlsFiles { certificate, key, client_ca }),
            (Some(_), None) => self.violations.add("server.tls.key", "must be set, as server.tls.certificate is"),
            (None, Some(_)) => self.violations.add("server.tls.certificate", "must be set, as server.tls.key is"),
            (None, None) if client_ca.is_some() => {
                self.violations
                    .add("server.tls.certificate", "must be set with server.tls.key, as server.tls.client_ca is");
            }
            (None, None) => {}
        }
        None
    }

    fn tokens(&mut self) -> TokenFiles {
        let files: TokenFiles =
            Group::ALL.into_iter().filter_map(|group| Some((group, self.path(group.key())?))).collect();
        let guarded = [Group::Generation, Group::Scoring].into_iter().find(|group| files.contains_key(group));
        if let Some(group) = guarded.filter(|_| !files.contains_key(&Group::Inference)) {
            let rule =
                format!("must be set, as {} is: the Open Inference Protocol samples and scores too", group.key());
            self.violations.add(Group::Inference.key(), rule);
        }
        files
    }

    fn flag(&mut self, key: &'static str) -> bool {
        self.read(key, |text| text.parse().map_err(|_| "true or false".to_owned())).unwrap_or_default()
    }

    /// Every fault, those of settings that nobody asked for included.
    fn finish(mut self) -> Violations {
        for (key, Setting { origin, .. }) in self.settings {
            let section = key.split('.').next().unwrap_or_default();
            let mut near: Vec<_> =
                self.known.iter().filter(|known| known.starts_with(&format!("{section}."))).copied().collect();
            if near.is_empty() {
                near = vec!["server", "auth", "models", "engine", "limits", "admin", "metrics", "log", "trace"];
            }
            self.violations.add(key, format!("is not a setting (from {origin}); there are {}", near.join(", ")));
        }
        self.violations
    }
}

fn within<T: PartialOrd, E>(parsed: Result<T, E>, range: &RangeInclusive<T>, rule: &impl Display) -> Result<T, String> {
    parsed.ok().filter(|value| range.contains(value)).ok_or_else(|| rule.to_string())
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an IP address and a port, such as 127.0.0.1:50051 or [::]:50051".to_owned())
}

fn parse_address_or_none(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() { Ok(None) } else { parse_address(text).map(Some) }
}

fn parse_admin(text: &str) -> Result<Option<AdminAddress>, String> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// `None` for `none`.
fn parse_memory_or_none(text: &str) -> Result<Option<u64>, String> {
    if text == NONE {
        return Ok(None);
    }
    let range = ByteSize::b(1)..=LARGEST_MEMORY;
    let rule = format!("\"{NONE}\" or a size such as \"16 GiB\", at most {LARGEST_MEMORY}");
    within(ByteSize::from_str(text), &range, &rule).map(|size| Some(size.as_u64()))
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| *share > 0.0 && *share < 1.0);
    share.ok_or_else(|| "a number above 0 and below 1".to_owned())
}

/// The scheme is checked because the exporter would send nothing over another and not say so.
fn parse_collector(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if !cfg!(feature = "otlp") {
        return Err("empty in this build, which was made without the feature otlp".to_owned());
    }
    let proper = text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
    if proper { Ok(Some(text.to_owned())) } else { Err("a URL such as http://127.0.0.1:4317".to_owned()) }
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "a number 0 to 1".to_owned())
}

fn parse_backend(text: &str) -> Result<Backend, String> {
    let found = [Backend::Native, Backend::Torch].into_iter().find(|backend| backend.name() == text);
    found.ok_or_else(|| "\"native\" or \"torch\"".to_owned())
}

/// `None` for `auto`.
fn parse_device(text: &str) -> Result<Option<Device>, String> {
    let index = |text: &str| text.strip_prefix("cuda:")?.parse().ok().filter(|index| *index < MOST_GPUS);
    match text {
        AUTO => Ok(None),
        "cpu" => Ok(Some(Device::Cpu)),
        _ => index(text)
            .map(|index| Some(Device::Cuda(index)))
            .ok_or_else(|| "\"cpu\", \"cuda:N\" or \"auto\"".to_owned()),
    }
}

fn parse_precision(text: &str) -> Result<Precision, String> {
    let found = [Precision::F32, Precision::Bf16].into_iter().find(|precision| precision.name() == text);
    found.ok_or_else(|| "\"f32\" or \"bf16\"".to_owned())
}

/// Reads a filter of the log. Values of fields are texts, not regular expressions: a short one can take minutes to prepare.
///
/// # Errors
/// What it must be.
pub fn log_filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .with_regex(false)
        .parse(text)
        .map_err(|error| format!("a filter such as \"info,pixeld=debug\" ({error})"))
}
