//! The metrics there are: their names and what they mean, in one list. Whoever records one names it from here; what nobody
//! exports costs nothing (`telemetry::metrics`).

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its name in Prometheus.
    pub name: &'static str,
    /// How it is counted.
    pub kind: Kind,
    /// What it is divided by.
    pub labels: &'static [&'static str],
    /// One line for people.
    pub help: &'static str,
}

/// How a metric is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is as it is now.
    Gauge,
    /// A histogram of seconds, in buckets that grow from the first by a half and more.
    Seconds {
        /// Upper end of the first bucket.
        first: f64,
    },
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn seconds(name: &'static str, first: f64, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Seconds { first }, labels, help }
}

/// Calls.
pub const REQUESTS: Metric = counter("pixeld_requests_total", &["method", "code"], "Calls that ended, by gRPC status");
/// Calls refused or given up.
pub const REFUSALS: Metric = counter(
    "pixeld_refusals_total",
    &["reason"],
    "Calls that ended with an error, by the reason that the client was told",
);
/// Calls that began, as gRPC names them (gRFC A66).
pub const GRPC_STARTED: Metric = counter(
    "grpc_server_call_started_total",
    &["grpc_method"],
    "Calls that began, under the name that gRPC has for it",
);
/// Their length, as gRPC names it (gRFC A66).
pub const GRPC_SECONDS: Metric = seconds(
    "grpc_server_call_duration_seconds",
    1e-4,
    &["grpc_method", "grpc_status"],
    "The same as pixeld_request_seconds, under the name that gRPC has for it",
);
/// Their length, as OpenTelemetry names it (semantic conventions for RPC).
pub const RPC_SECONDS: Metric = seconds(
    "rpc_server_call_duration_seconds",
    1e-4,
    &["rpc_system_name", "rpc_method", "rpc_response_status_code", "error_type"],
    "The same as pixeld_request_seconds, under the name that OpenTelemetry has for it; error_type is the status if it is one",
);
/// Their length.
pub const REQUEST_SECONDS: Metric =
    seconds("pixeld_request_seconds", 1e-4, &["method"], "From the first header of a call to the end of its answer");
/// Waiting for a slot.
pub const QUEUE_SECONDS: Metric = seconds(
    "pixeld_queue_seconds",
    1e-5,
    &["model", "class"],
    "From the submission of a finished request to its first slot",
);
/// Waiting for the first value.
pub const FIRST_VALUE_SECONDS: Metric = seconds(
    "pixeld_time_to_first_value_seconds",
    1e-5,
    &["model"],
    "From the submission of a finished sampling request to its first value",
);
/// The pace of values.
pub const INTER_VALUE_SECONDS: Metric = seconds(
    "pixeld_inter_value_seconds",
    5e-6,
    &["model"],
    "From the end of one decode step of a shard to that of the next, with scoring between them: the time between two values of an image",
);
/// The parts of a step.
pub const STEP_SECONDS: Metric = seconds(
    "pixeld_step_seconds",
    5e-6,
    &["model", "phase"],
    "A decode step by what took the time: join (slots opened and closed, prefixes taken in), network, draw (values drawn, readers woken)",
);
/// Images of a step.
pub const STEPPED: Metric = counter(
    "pixeld_step_images_total",
    &["model"],
    "Images that took part in a step, counted at every step; over the number of steps, the mean batch",
);
/// A slice of scoring.
pub const SCORE_SECONDS: Metric =
    seconds("pixeld_score_slice_seconds", 5e-6, &["model"], "One slice of a scoring pass");
/// Values drawn.
pub const VALUES: Metric = counter("pixeld_values_sampled_total", &["model"], "Values drawn, of images given up too");
/// Values scored.
pub const SCORED: Metric = counter("pixeld_values_scored_total", &["model"], "Values scored");
/// Complete images.
pub const FINISHED: Metric =
    counter("pixeld_images_finished_total", &["model", "work"], "Images completed, by work: sample or score");
/// Slots.
pub const SLOTS: Metric = gauge("pixeld_slots", &["model"], "Images that can be in the making at once");
/// Slots in use.
pub const SLOTS_USED: Metric =
    gauge("pixeld_slots_used_ratio", &["model"], "Images in the making over those that there can be");
/// Images in slots.
pub const RUNNING: Metric = gauge("pixeld_images_running", &["model"], "Images in the making");
/// Images that wait.
pub const QUEUED: Metric = gauge(
    "pixeld_images_queued",
    &["model", "class"],
    "Images waiting for a slot, by the class of their request: interactive or batch",
);
/// Images being scored.
pub const SCORING: Metric = gauge("pixeld_images_scoring", &["model"], "Images waiting to be scored, or being scored");
/// Images taken in.
pub const SUBMITTED: Metric =
    counter("pixeld_images_submitted_total", &["model"], "Images taken in, to sample or to score");
/// Images that ended otherwise than complete.
pub const GIVEN_UP: Metric = counter(
    "pixeld_images_given_up_total",
    &["model"],
    "Images that failed, were late or cancelled; of those submitted, what is neither this nor finished is under way",
);
/// Progress.
pub const PROGRESS_AGE: Metric = gauge(
    "pixeld_last_progress_age_seconds",
    &["model"],
    "Time since the shard that is worst off got something done, 0 without work; much more than a step means that it is stuck",
);
/// Memory of the device.
pub const DEVICE_MEMORY: Metric = gauge(
    "pixeld_device_memory_bytes",
    &["model", "kind"],
    "What a model is counted with against engine.max_model_memory: weights, state of its slots, state of scoring; activations come on top",
);
/// Readiness.
pub const READY: Metric = gauge("pixeld_model_ready", &["model"], "1 while the model serves, otherwise 0");
/// Build.
pub const BUILD: Metric = gauge("pixeld_build_info", &["version"], "1; the version is a label");

/// All of them.
pub const ALL: &[Metric] = &[
    REQUESTS,
    REFUSALS,
    REQUEST_SECONDS,
    GRPC_STARTED,
    GRPC_SECONDS,
    RPC_SECONDS,
    QUEUE_SECONDS,
    FIRST_VALUE_SECONDS,
    INTER_VALUE_SECONDS,
    STEP_SECONDS,
    STEPPED,
    SCORE_SECONDS,
    VALUES,
    SCORED,
    FINISHED,
    SLOTS,
    SLOTS_USED,
    RUNNING,
    QUEUED,
    SCORING,
    SUBMITTED,
    GIVEN_UP,
    PROGRESS_AGE,
    DEVICE_MEMORY,
    READY,
    BUILD,
];
