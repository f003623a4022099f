//! `pixeld admin`: operating a server that runs.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use humantime_serde::re::humantime::{self, format_duration};
use serde::Serialize;
use serde_json::{Value, json};
use tonic::Request;

use super::access::{Access, Channel};
use super::connect::Target;
use super::failure::Failure;
use super::{client, connect, output};
use crate::rpc::proto::admin_service_client::AdminServiceClient;
use crate::rpc::proto::{
    DrainServerRequest, GetLoadRequest, GetServerInfoRequest, LoadModelRequest, Model, ModelLoad, ReloadModelRequest,
    SetAliasRequest, SetLogFilterRequest, UnloadModelRequest,
};

const SOCKET: &str = "/run/pixeld/admin.sock";

const AFTER_HELP: &str = "\
The server listens for operators where its configuration says so (admin.listen); docs/OPERATIONS.md tells what each command
does to requests under way. Where that needs a token (auth.admin_tokens), it is taken from the variable PIXELD_TOKEN.

Examples:
  pixeld admin load letters
  pixeld admin reload digits --socket /run/pixeld/admin.sock
  pixeld admin alias stable digits --endpoint http://127.0.0.1:50053
  pixeld admin log-filter info,pixeld=debug
  pixeld admin load-status --json";

/// Flags of `pixeld admin`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Admin {
    #[command(subcommand)]
    command: Command,
    /// Unix socket of the server
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// Server to ask instead, for example http://127.0.0.1:50053
    #[arg(long, global = true, value_name = "URL")]
    endpoint: Option<String>,
    /// One JSON object a line
    #[arg(long, global = true)]
    json: bool,
    /// How long to wait for the answer, for example 2m; what was begun goes on without it
    #[arg(long, global = true, value_name = "TIME")]
    timeout: Option<humantime::Duration>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a package that is not served, or try one again that was refused
    Load {
        /// Name of the package
        name: String,
    },
    /// Take a model out; what runs may finish
    Unload {
        /// Name of the model
        name: String,
        #[command(flatten)]
        drain: Drain,
    },
    /// Load the package of a model again beside the revision that serves, and let it take over
    Reload {
        /// Name of the model
        name: String,
        #[command(flatten)]
        drain: Drain,
    },
    /// Make a name stand for a model
    Alias {
        /// The alias
        alias: String,
        /// The model; without it the alias is removed
        model: Option<String>,
    },
    /// Tell what the server is
    Info,
    /// Tell how busy the models are
    LoadStatus {
        /// One model instead of all
        name: Option<String>,
    },
    /// Log by another filter until the server ends
    LogFilter {
        /// As log.filter, for example info,pixeld=debug
        filter: String,
    },
    /// End the server as SIGTERM does
    Drain,
}

/// How long what runs may take.
#[derive(Args, Clone, Copy, Debug)]
struct Drain {
    /// How long requests under way may take to finish [default: server.drain_timeout]
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<humantime::Duration>,
}

impl Drain {
    fn limit(self) -> Result<Option<prost_types::Duration>, Failure> {
        let limit = self.drain_timeout.map(|limit| Duration::from(limit).try_into());
        limit.transpose().map_err(|error| Failure::Usage(format!("--drain-timeout: {error}")))
    }
}

/// An answer, for scripts and for people.
struct Answer {
    json: Vec<Value>,
    text: String,
}

impl Admin {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let target = match self.endpoint {
            Some(url) => Target::Remote(Box::new(Access::default().remote(&url)?)),
            None => Target::Socket(self.socket),
        };
        let (command, timeout) = (self.command, self.timeout.map(Duration::from));
        let answer = connect::with(target, async |channel: &Channel| command.ask(channel, timeout).await).await?;
        match self.json {
            true => answer.json.iter().try_for_each(output::json),
            false => output::line(&answer.text),
        }
    }
}

impl Command {
    async fn ask(self, channel: &Channel, timeout: Option<Duration>) -> Result<Answer, Failure> {
        let mut client = AdminServiceClient::new(channel.clone()).max_decoding_message_size(client::MAX_ANSWER);
        Ok(match self {
            Command::Load { name } => {
                let answer = client.load_model(within(timeout, LoadModelRequest { name })).await?.into_inner();
                serves(&answer.model.unwrap_or_default(), "")
            }
            Command::Reload { name, drain } => {
                let request = ReloadModelRequest { name, drain_timeout: drain.limit()? };
                let answer = client.reload_model(within(timeout, request)).await?.into_inner();
                serves(&answer.model.unwrap_or_default(), &answer.previous_revision)
            }
            Command::Unload { name, drain } => {
                let request = UnloadModelRequest { name: name.clone(), drain_timeout: drain.limit()? };
                let drained = client.unload_model(within(timeout, request)).await?.into_inner().drained;
                let how = if drained { "every request finished" } else { "requests were cut at the limit" };
                Answer {
                    json: vec![json!({"model": name, "drained": drained})],
                    text: format!("{name} is gone; {how}"),
                }
            }
            Command::Alias { alias, model } => {
                let model = model.unwrap_or_default();
                let request = SetAliasRequest { alias: alias.clone(), model: model.clone() };
                let answer = client.set_alias(within(timeout, request)).await?.into_inner();
                let previous = client::short(&answer.previous_model);
                let now = if model.is_empty() { "nothing" } else { model.as_str() };
                let before = if previous.is_empty() { String::new() } else { format!(", before {previous}") };
                let text = format!("{alias} stands for {now}{before}");
                Answer { json: vec![json!({"alias": alias, "model": model, "previous_model": previous})], text }
            }
            Command::Info => info(client.get_server_info(within(timeout, GetServerInfoRequest {})).await?.into_inner()),
            Command::LoadStatus { name } => {
                let request = GetLoadRequest { model: name.unwrap_or_default() };
                loads(&client.get_load(within(timeout, request)).await?.into_inner().models)
            }
            Command::LogFilter { filter } => {
                let request = SetLogFilterRequest { filter: filter.clone() };
                let previous = client.set_log_filter(within(timeout, request)).await?.into_inner().previous_filter;
                Answer {
                    json: vec![json!({"filter": filter, "previous_filter": previous})],
                    text: format!("the log is filtered by {filter}, before {previous}"),
                }
            }
            Command::Drain => {
                client.drain_server(within(timeout, DrainServerRequest {})).await?;
                Answer { json: vec![json!({"draining": true})], text: "the server drains".to_owned() }
            }
        })
    }
}

/// `message` with a deadline.
fn within<T>(timeout: Option<Duration>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    request
}

fn serves(model: &Model, previous: &str) -> Answer {
    let (name, revision) = (client::short(&model.name), &model.revision);
    let before = if previous.is_empty() { String::new() } else { format!(", before {previous}") };
    Answer {
        json: vec![json!({
            "model": name, "state": client::state(model), "revision": revision, "previous_revision": previous,
        })],
        text: format!("{name} is {} with revision {revision}{before}", client::state(model)),
    }
}

fn info(info: crate::rpc::proto::GetServerInfoResponse) -> Answer {
    #[derive(Serialize)]
    struct Line<'a> {
        version: &'a str,
        build_revision: &'a str,
        uptime_seconds: f64,
        backend: &'static str,
        precision: &'static str,
        shards: u32,
        cores: u32,
        gpu: Option<&'a str>,
        model_memory_bytes: u64,
        model_memory_limit_bytes: Option<u64>,
        draining: bool,
    }
    let (uptime, memory) =
        (info.uptime.and_then(std_duration).unwrap_or_default(), info.model_memory.unwrap_or_default());
    let (backend, precision) = (client::backend(info.backend()), client::precision(info.precision()));
    let line = Line {
        version: &info.version,
        build_revision: &info.build_revision,
        uptime_seconds: uptime.as_secs_f64(),
        backend,
        precision,
        shards: info.shards,
        cores: info.devices.first().map(|device| device.cores).unwrap_or_default(),
        gpu: info.devices.get(1).map(|device| device.name.as_str()),
        model_memory_bytes: memory.used_bytes,
        model_memory_limit_bytes: memory.limit_bytes,
        draining: info.draining,
    };
    let limit = memory.limit_bytes.map_or_else(|| "no limit".to_owned(), |limit| format!("of {}", ByteSize::b(limit)));
    let text = format!(
        "pixeld {} ({}), up {}{}\nbackend {backend}, precision {precision}, {} shards on {} cores{}\nmodels take {}, {limit}",
        info.version,
        info.build_revision,
        format_duration(Duration::from_secs(uptime.as_secs())),
        if info.draining { ", draining" } else { "" },
        line.shards,
        line.cores,
        line.gpu.map(|gpu| format!(" and {gpu}")).unwrap_or_default(),
        ByteSize::b(memory.used_bytes),
    );
    Answer { json: serde_json::to_value(&line).into_iter().collect(), text }
}

fn loads(loads: &[ModelLoad]) -> Answer {
    let seconds = |time: Option<prost_types::Duration>| time.and_then(std_duration).map(|time| time.as_secs_f64());
    let json = loads.iter().map(|load| {
        json!({
            "model": client::short(&load.model), "revision": load.revision, "state": client::state_word(load.state()),
            "running_images": load.running_images, "queued_images": load.queued_images,
            "scoring_images": load.scoring_images, "slots": load.max_running_images,
            "estimated_wait_seconds": seconds(load.estimated_queue_duration),
            "last_step_age_seconds": seconds(load.last_step_age), "step_seconds": seconds(load.step_duration),
        })
    });
    let text = loads.iter().map(|load| {
        let wait =
            seconds(load.estimated_queue_duration).map_or_else(|| "unknown".to_owned(), |wait| format!("{wait:.3} s"));
        let age =
            seconds(load.last_step_age).map_or_else(|| "idle".to_owned(), |age| format!("last step {age:.3} s ago"));
        format!(
            "{}: {}, {} of {} slots, {} queued, {} scoring, wait {wait}, {age}",
            client::short(&load.model),
            client::state_word(load.state()),
            load.running_images,
            load.max_running_images,
            load.queued_images,
            load.scoring_images,
        )
    });
    let text = text.collect::<Vec<_>>().join("\n");
    Answer { json: json.collect(), text: if loads.is_empty() { "no model serves".to_owned() } else { text } }
}

fn std_duration(duration: prost_types::Duration) -> Option<Duration> {
    duration.try_into().ok()
}
