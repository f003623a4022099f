//! What Prometheus finds: every metric that docs/METRICS.md lists, and no other; and that the board of Grafana and the
//! alert rules ask for nothing else.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests count as product code to clippy")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pixeld::config;
use pixeld::metric::{self, Kind, Metric};

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(port: u16) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// The value of the sample whose name and labels begin with `start`.
fn sample(answer: &str, start: &str) -> Option<f64> {
    answer.lines().find(|line| line.starts_with(start))?.rsplit(' ').next()?.parse().ok()
}

/// What a daemon exports that has drawn three images, scored some, and refused a request.
fn scrape() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--set"]).arg(format!("metrics.listen=127.0.0.1:{port}"));
    let mut daemon = Daemon(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(daemon.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let endpoint = format!("http://{}", lines.next().unwrap().trim_start_matches("listening on "));
    assert_eq!(lines.next().unwrap(), "ready");
    let pixeld = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
        command.args(arguments).args(["--endpoint", &endpoint, "--model", "digits"]).output().unwrap()
    };
    let held_out = concat!(env!("CARGO_MANIFEST_DIR"), "/models/digits/held_out_images.npy");
    assert!(pixeld(&["sample", "--count", "3", "--seed", "1"]).status.success());
    assert!(pixeld(&["score", "--npy", held_out]).status.success());
    assert!(!pixeld(&["sample", "--class", "10"]).status.success());

    // Gauges are set once a second.
    let begun = Instant::now();
    loop {
        let answer = get(port);
        let idle = sample(&answer, "pixeld_images_running{model=\"digits\"}") == Some(0.0);
        if (idle && sample(&answer, "pixeld_model_ready{model=\"digits\"}") == Some(1.0))
            || begun.elapsed() > Duration::from_secs(30)
        {
            return answer;
        }
        std::thread::yield_now();
    }
}

#[test]
fn every_metric_is_there_counted_and_labelled_as_listed() {
    let answer = scrape();
    for Metric { name, kind, labels, help } in metric::ALL {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Seconds { .. } => "histogram",
        };
        assert!(answer.contains(&format!("# HELP {name} {help}\n")), "{name}\n{answer}");
        assert!(answer.contains(&format!("# TYPE {name} {kind}\n")), "{name}\n{answer}");
        let start = format!("{name}{}{{", if kind == "histogram" { "_bucket" } else { "" });
        let line = answer.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{name}\n{answer}"));
        let found = line[start.len()..line.find('}').unwrap()].split(',').map(|label| label.split('=').next().unwrap());
        let found: BTreeSet<_> = found.filter(|label| *label != "le").collect();
        assert_eq!(found, labels.iter().copied().collect(), "{line}");
    }
    let listed: BTreeSet<_> = metric::ALL.iter().map(|metric| metric.name).collect();
    let told = answer.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let ours = told.filter(|name| !name.starts_with("process_"));
    ours.for_each(|name| assert!(listed.contains(name), "{name} is not listed"));

    let model = "{model=\"digits\"}";
    assert_eq!(sample(&answer, &format!("pixeld_values_sampled_total{model}")), Some(3.0 * 64.0));
    assert_eq!(sample(&answer, &format!("pixeld_step_images_total{model}")), Some(3.0 * 64.0));
    let scored = sample(&answer, &format!("pixeld_values_scored_total{model}")).unwrap();
    assert!(scored > 0.0 && scored % 64.0 == 0.0, "{scored}");
    assert_eq!(sample(&answer, &format!("pixeld_time_to_first_value_seconds_count{model}")), Some(1.0));
    let of_phase = |phase: &str, what: &str| {
        sample(&answer, &format!("pixeld_step_seconds_{what}{{model=\"digits\",phase=\"{phase}\"}}")).unwrap()
    };
    let whole = |what: &str| sample(&answer, &format!("pixeld_inter_value_seconds_{what}{model}")).unwrap();
    for phase in ["join", "network", "draw"] {
        assert_eq!(of_phase(phase, "count"), whole("count"), "{phase}");
    }
    let parts = ["join", "network", "draw"].map(|phase| of_phase(phase, "sum"));
    assert!(parts.iter().all(|part| *part > 0.0), "{parts:?}");
    // What lies between two steps is none of them.
    assert!(parts.iter().sum::<f64>() <= whole("sum") + 1e-6, "{parts:?} {}", whole("sum"));
    let memory = |kind: &str| {
        sample(&answer, &format!("pixeld_device_memory_bytes{{model=\"digits\",kind=\"{kind}\"}}")).unwrap()
    };
    assert!(memory("weights") > 1e5 && memory("slots") > 0.0 && memory("scoring") > 0.0, "{answer}");
    let refused =
        "pixeld_requests_total{method=\"/pixeld.v1.GenerationService/StreamGenerateImages\",code=\"InvalidArgument\"}";
    assert_eq!(sample(&answer, refused), Some(1.0), "{answer}");
    assert_eq!(sample(&answer, "pixeld_refusals_total{reason=\"INVALID_REQUEST\"}"), Some(1.0), "{answer}");
    let finished = |work: &str| {
        sample(&answer, &format!("pixeld_images_finished_total{{model=\"digits\",work=\"{work}\"}}")).unwrap()
    };
    assert_eq!((finished("sample"), finished("score") * 64.0), (3.0, scored));
    assert!(sample(&answer, "process_resident_memory_bytes").unwrap() > 1e6);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever wants the page written says so there")]
fn the_list_of_metrics_is_the_one_in_docs() {
    let mut page = "# Metrics\n\nWhere `metrics.listen` names an address, `GET /metrics` there answers in the format of Prometheus. Gauges are \
                    set once a second.\nBeside these there are the usual ones of the process (`process_*`).\n\n\
                    | metric | kind | labels | meaning |\n| :-- | :-- | :-- | :-- |\n"
        .to_owned();
    for Metric { name, kind, labels, help } in metric::ALL {
        let kind = match kind {
            Kind::Counter => "counter".to_owned(),
            Kind::Gauge => "gauge".to_owned(),
            Kind::Seconds { first } => format!("histogram, buckets from {first:e} s"),
        };
        page.push_str(&format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", ")));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    if std::env::var_os("PIXELD_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/METRICS.md is not what PIXELD_WRITE_DOCS=1 makes of src/metric.rs");
}

/// Names of series in `text` that are ours or the process's.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("pixeld_") || word.starts_with("process_")).collect()
}

/// What the queries group and select by, deploy/check.py holds against docs/METRICS.md, which is the list of these tests.
#[test]
fn the_board_and_the_alert_rules_name_series_that_are_exported() {
    let answer = scrape();
    let exported: BTreeSet<_> = answer.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let (board, rules) =
        (include_str!("../deploy/grafana/pixeld.json"), include_str!("../deploy/prometheus/rules.yml"));
    let missing: Vec<_> =
        named(board).into_iter().chain(named(rules)).filter(|name| !exported.contains(name)).collect();
    assert!(missing.is_empty(), "nobody exports {missing:?}");
    // Those under names of others are there twice.
    for metric in metric::ALL.iter().filter(|metric| metric.name.starts_with("pixeld_")) {
        assert!(board.contains(metric.name), "the board shows nothing of {}", metric.name);
    }
    // Reasons are in one table.
    let reasons = rules.lines().filter_map(|line| line.split_once("reason=")?.1.split('"').nth(1));
    for reason in reasons.flat_map(|reasons| reasons.split('|')) {
        assert!(include_str!("../src/rpc/status.rs").contains(&format!("{reason:?}")), "no client is told {reason}");
    }
}

#[test]
fn the_configuration_of_each_manifest_is_one_that_the_daemon_takes() {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
    let mut read = 0;
    for entry in std::fs::read_dir(manifests).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let file = text.split_once("  pixeld.toml: |\n").unwrap().1;
        let file: Vec<_> = file.lines().take_while(|line| line.starts_with("    ")).map(|line| &line[4..]).collect();
        let written = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&written, file.join("\n")).unwrap();
        let layers = config::Layers { file: Some(written.path().into()), ..config::Layers::default() };
        let config = config::load(&layers).unwrap_or_else(|faults| panic!("{}: {faults}", path.display()));
        assert!(config.metrics.listen.is_some());
        read += 1;
    }
    assert!(read >= 3);
}

#[test]
fn readers_of_metrics_who_say_nothing_are_closed_and_few_are_let_in() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--set"]).arg(format!("metrics.listen=127.0.0.1:{port}"));
    let mut daemon = Daemon(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(daemon.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line == "ready").unwrap();
    let connect = || {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    };
    let mut silent: Vec<_> = (0..16).map(|_| connect()).collect();
    silent[0].write_all(b"GET /met").unwrap();
    let closed = |socket: &mut TcpStream| match socket.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    let mut another = connect();
    another.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(closed(&mut another), "one too many is closed before the others are");
    for socket in &mut silent {
        assert!(closed(socket), "it is not waited for without end");
    }
    assert!(get(port).contains("pixeld_build_info"), "there is room again");
}
