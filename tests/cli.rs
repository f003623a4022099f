//! The binary as a user or a script meets it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests count as product code to clippy"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use serde_json::Value;

/// The binary without the models inside it, and with nothing of our own environment.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.env("PIXELD__MODELS__EMBEDDED", "false").stdin(Stdio::null());
    command
}

fn pixeld(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// A directory with a closed-form model of small colour images, called `toy`.
fn models() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    add_model(root.path(), "toy", 6, 5);
    root
}

fn add_model(root: &Path, name: &str, height: u32, width: u32) {
    let manifest = format!(
        "format = 1\nname = \"{name}\"\nfamily = \"toy\"\n[image]\nheight = {height}\nwidth = {width}\nchannels = 3\n\
         levels = 64\norder = \"raster\"\n[head]\nkind = \"categorical\"\n[condition]\nclasses = 10\n\
         [architecture]\nsharpness = 0.1\n"
    );
    std::fs::create_dir(root.join(name)).unwrap();
    std::fs::write(root.join(name).join("model.toml"), manifest).unwrap();
}

/// The log of a process, read as it comes, so that the process never waits for us.
struct Log(Receiver<String>);

impl Log {
    fn follow(stderr: ChildStderr) -> Self {
        let (lines, log) = sync_channel(1 << 20);
        let read = move || BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| lines.send(line));
        std::thread::Builder::new().name("log".to_owned()).spawn(read).unwrap();
        Self(log)
    }

    /// Waits for a line that holds every one of `words`.
    fn wait_for(&self, words: &[&str]) {
        let found = self.0.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "the log ended without {words:?}");
    }
}

/// A running `pixeld serve` on a free port; killed when dropped.
struct Server {
    child: Child,
    url: String,
    log: Log,
}

impl Server {
    fn start(models: &Path) -> Self {
        Self::start_with(models, &[])
    }

    fn start_with(models: &Path, flags: &[&str]) -> Self {
        let mut command = command();
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(flags).arg("--models").arg(models);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.next().unwrap();
        let address = line.strip_prefix("listening on ").expect("the first line");
        assert_eq!(lines.next().as_deref(), Some("ready"));
        Self { url: format!("http://{address}"), log: Log::follow(child.stderr.take().unwrap()), child }
    }

    fn wait_for(&self, words: &[&str]) {
        self.log.wait_for(words);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn succeed(arguments: &[&str]) -> Output {
    let output = pixeld(arguments);
    assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
    output
}

fn json_lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_of_each_command_tells_its_flags_and_gives_examples() {
    let source = ["--config", "--models", "--set"];
    for (command, flags) in [
        ("serve", &["--listen"][..]),
        (
            "sample",
            &[
                "--endpoint",
                "--model",
                "--class",
                "--count",
                "--seed",
                "--temperature",
                "--top-k",
                "--top-p",
                "--granularity",
                "--out",
                "--out-dir",
                "--npy",
                "--json",
            ],
        ),
        ("complete", &["--keep-rows", "--low-resolution", "--count", "--granularity", "--out", "--json", "<IMAGES>"]),
        ("upscale", &["--endpoint", "--count", "--class", "--granularity", "--out", "--out-dir", "--json", "<IMAGES>"]),
        ("score", &["--endpoint", "--model", "--npy", "--class", "--classes", "--per-value", "--json", "[IMAGES]"]),
        ("score", &["--low-resolution ", "--low-resolution-npy"]),
        ("models", &["--endpoint", "--json"]),
        ("check", &["--print-config"]),
        (
            "bench load",
            &[
                "--endpoint",
                "--model",
                "--class",
                "--images",
                "--granularity",
                "--rate",
                "--arrivals",
                "--burst-size",
                "--streams",
                "--duration",
                "--warmup",
                "--drain",
                "--seed",
                "--cancel-share",
                "--slow-share",
                "--slow-pause",
                "--deadline",
                "--slo-first-value",
                "--slo-image",
                "--connections",
                "--json",
                "scheduled = completed",
            ],
        ),
    ] {
        let output = pixeld(&[&command.split(' ').collect::<Vec<_>>()[..], &["--help"]].concat());
        let text = stdout(&output);
        assert_eq!(code(&output), 0);
        for flag in source.iter().chain(flags).chain(&["Examples:"]) {
            assert!(text.contains(flag), "{command} --help says nothing of {flag}:\n{text}");
        }
    }
    for words in [&["bench", "--help"][..], &["bench", "compare", "--help"]] {
        let text = stdout(&succeed(words));
        assert!(text.contains("compare") && text.contains(".json"), "{words:?}: {text}");
    }
    let output = pixeld(&["--help"]);
    assert!(stdout(&output).contains("Exit codes: 0 done, 64"));
    assert_eq!(code(&output), 0);
    assert_eq!(code(&pixeld(&["--version"])), 0);
}

#[test]
fn wrong_usage_ends_with_64_and_says_why() {
    for (arguments, word) in [
        (&[][..], "Usage"),
        (&["fly"], "fly"),
        (&["sample", "--no-such-flag"], "--no-such-flag"),
        (&["sample", "--count", "many"], "--count"),
        (&["sample", "--endpoint", "http://127.0.0.1:1", "--models", "."], "--models"),
        (&["sample", "--out", "/no/such/directory/x.png"], "/no/such/directory/x.png"),
        (&["complete", "x.png"], "--keep-rows"),
        (&["upscale"], "<IMAGES>"),
        (&["upscale", "/no/such/file.png"], "/no/such/file.png"),
        (&["score"], "--npy"),
        (&["score", "--npy", "/no/such/file.npy"], "/no/such/file.npy"),
        (&["score", "--class", "1", "--classes", "x.npy", "x.png"], "--classes"),
        (&["score", "x.png", "--low-resolution", "y.png", "--low-resolution-npy", "y.npy"], "--low-resolution"),
        (&["serve", "--set", "engine"], "section.key=value"),
        (&["models", "--endpoint", "ftp://127.0.0.1:1"], "http://"),
        (&["models", "--endpoint", "http://127.0.0.1:65536"], "http://HOST:PORT"),
        (&["sample", "--class", "-1"], "--class"),
        (&["score", "--class", "-1", "x.png"], "--class"),
        (&["serve", "--listen", "here"], "server.listen"),
        (&["check", "--config", "/no/such/file.toml"], "/no/such/file.toml"),
        (&["bench", "load"], "--rate"),
        (&["bench", "load", "--rate", "5", "--streams", "2"], "--streams"),
        (&["bench", "load", "--rate", "0"], "above 0 and at most 1000000, got 0"),
        (&["bench", "load", "--rate", "5", "--slow-share", "nan"], "from 0 to 1, got nan"),
        (&["bench", "load", "--rate", "5", "--duration", "10ms"], "at least 1 s, got 10 ms"),
        (&["bench", "load", "--rate", "5", "--slow-share", "0.75", "--cancel-share", "0.5"], "together, got 1.25"),
        (&["bench", "compare", "/no/such/a.json", "/no/such/b.json"], "/no/such/a.json"),
    ] {
        let output = pixeld(arguments);
        assert_eq!(code(&output), 64, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_server_that_is_not_there_ends_with_69_and_its_name() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    for command in [&["models"][..], &["sample"], &["score", "x.png"]] {
        let output = pixeld(&[command, &["--endpoint", &url]].concat());
        assert_eq!(code(&output), 69, "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(&url) && stderr(&output).contains("refused"), "{}", stderr(&output));
    }
}

#[test]
fn a_server_that_does_not_speak_grpc_ends_with_69() {
    let web = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", web.local_addr().unwrap());
    let answer = move || {
        for mut client in web.incoming().map_while(Result::ok) {
            _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    };
    std::thread::Builder::new().spawn(answer).unwrap();
    for command in [&["models"][..], &["sample"], &["score", "x.png"]] {
        let output = pixeld(&[command, &["--endpoint", &url]].concat());
        assert_eq!(code(&output), 69, "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("the connection broke"), "{command:?}: {}", stderr(&output));
    }
}

#[test]
fn a_server_that_takes_the_connection_and_says_nothing_ends_with_69() {
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", deaf.local_addr().unwrap());
    let output = pixeld(&["models", "--endpoint", &url]);
    assert_eq!(code(&output), 69, "{}", stderr(&output));
    assert!(stderr(&output).contains("the connection broke"), "{}", stderr(&output));
}

#[test]
fn every_fault_of_the_configuration_is_told_before_anything_starts() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[server]\nlisten = \"nowhere\"\nport = 1\n[engine]\nslots = 0\n").unwrap();
    let mut command = command();
    command.env("PIXELD__ENGINE__SCORE_SHARE", "2").arg("serve").arg("--config").arg(file.path());
    let output = command.args(["--set", "log.filter=pixeld=loud"]).output().unwrap();
    let text = stderr(&output);
    assert_eq!(code(&output), 64, "{text}");
    for line in ["server.listen: ", "server.port: ", "engine.slots: ", "engine.score_share: ", "log.filter: "] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.contains("PIXELD__ENGINE__SCORE_SHARE"), "{text}");
}

#[test]
fn the_printed_configuration_can_be_given_back() {
    let first = pixeld(&["check", "--print-config", "--set", "engine.slots=3"]);
    assert_eq!(code(&first), 0, "{}", stderr(&first));
    assert!(stdout(&first).contains("slots = 3\n"));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&first.stdout).unwrap();
    let second = pixeld(&["check", "--print-config", "--config", file.path().to_str().unwrap()]);
    assert_eq!(stdout(&first), stdout(&second));
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("broken")).unwrap();
    std::fs::write(root.path().join("broken/model.toml"), "this is no manifest").unwrap();
    let mut command = command();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    command.args(["models", "--set", "log.filter=info", "--models"]).arg(root.path()).stderr(full);
    let output = command.output().unwrap();
    assert_eq!(code(&output), 0);
    assert!(stdout(&output).contains("broken: package refused"), "{}", stdout(&output));
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let mut child =
        command().args(["check", "--print-config"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[test]
fn the_same_arguments_give_the_same_bytes_here_and_on_a_server() {
    let models = models();
    let root = models.path().to_str().unwrap();
    let server = Server::start(models.path());
    server.wait_for(&["serving"]);
    let out = |name: &str| models.path().join(name).to_str().unwrap().to_owned();
    let common = ["sample", "--class", "0,1,1", "--count", "2", "--seed", "7", "--json"];
    let sampled: Vec<_> = [
        (["--models", root, "--granularity", "value"], "a"),
        (["--models", root, "--granularity", "row"], "b"),
        (["--endpoint", &server.url, "--granularity", "pixel"], "c"),
    ]
    .iter()
    .map(|(how, name)| {
        let (sheet, npy) = (out(&format!("{name}.png")), out(&format!("{name}.npy")));
        let output = succeed(&[&common[..], how, &["--out", &sheet, "--npy", &npy]].concat());
        let report = json_lines(&output).remove(0);
        (std::fs::read(sheet).unwrap(), std::fs::read(npy).unwrap(), report)
    })
    .collect();
    for (sheet, npy, report) in &sampled[1..] {
        assert_eq!((sheet, npy), (&sampled[0].0, &sampled[0].1));
        assert_eq!(report["images"], sampled[0].2["images"]);
    }

    let report = &sampled[0].2;
    assert_eq!((&report["model"], &report["seed"]), (&"toy".into(), &7.into()));
    let images = report["images"].as_array().unwrap();
    let column = |key: &str| images.iter().map(|image| image[key].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!(column("class"), [0, 0, 1, 1, 1, 1]);
    assert_eq!(column("index"), [0, 1, 2, 3, 4, 5]);
    let mut crcs: Vec<_> = images.iter().map(|image| image["crc32c"].as_str().unwrap()).collect();
    crcs.sort_unstable();
    crcs.dedup();
    assert_eq!(crcs.len(), 6, "classes asked for again differ");
    let totals = &report["totals"];
    assert_eq!((&totals["images"], &totals["values"]), (&6.into(), &540.into()));
    assert!(totals["values_per_second"].as_f64().unwrap() > 0.0);

    let alone = ["sample", "--models", root, "--class", "1", "--seed", "7", "--first-index", "5", "--json"];
    assert_eq!(json_lines(&succeed(&alone))[0]["images"][0], images[5]);
}

#[test]
fn scoring_what_was_sampled_tells_the_likelihood_that_sampling_told() {
    let models = models();
    let root = models.path().to_str().unwrap();
    let dir = models.path().join("images");
    let npy = models.path().join("images.npy");
    let (dir, npy) = (dir.to_str().unwrap(), npy.to_str().unwrap());
    let sample = ["sample", "--models", root, "--class", "4", "--count", "3", "--seed", "9", "--json"];
    let report = json_lines(&succeed(&[&sample[..], &["--out-dir", dir, "--npy", npy]].concat())).remove(0);

    let files = [0, 1, 2].map(|index| format!("{dir}/4-{index}.png"));
    let score = ["score", "--models", root, "--class", "4", "--json", "--per-value"];
    let from_png = json_lines(&succeed(&[&score[..], &files.each_ref().map(String::as_str)].concat()));
    let from_npy = json_lines(&succeed(&[&score[..], &["--npy", npy]].concat()));
    assert_eq!((from_png.len(), from_npy.len()), (4, 4));
    let bits = |value: &Value| value["bits_per_dim"].as_f64().unwrap();
    for (index, image) in report["images"].as_array().unwrap().iter().enumerate() {
        let (png, npy) = (&from_png[index], &from_npy[index]);
        assert_eq!((&png["item"], &npy["item"]), (&files[index].as_str().into(), &index.to_string().into()));
        assert_eq!(png["nll_nats"], npy["nll_nats"]);
        let nats = png["nll_nats"].as_f64().unwrap();
        assert!((nats + image["log_likelihood"].as_f64().unwrap()).abs() < 1e-3);
        assert!((bits(png) - bits(image)).abs() < 1e-6);
        let values: Vec<f64> =
            png["value_nll_nats"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        assert_eq!(values.len(), 90);
        assert!((values.iter().sum::<f64>() - nats).abs() < 1e-3);
    }
    let mean = from_png[..3].iter().map(bits).sum::<f64>() / 3.0;
    assert!((from_png[3]["mean_bits_per_dim"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert_eq!(from_png[3]["items"], 3);

    let labels = models.path().join("labels.npy");
    let mut bytes = b"\x93NUMPY\x01\x00\x3b\x00".to_vec();
    bytes.extend(format!("{:58}\n", "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }").bytes());
    bytes.extend([4, 4, 5]);
    std::fs::write(&labels, bytes).unwrap();
    let each = ["score", "--models", root, "--json", "--npy", npy, "--classes", labels.to_str().unwrap()];
    let each = json_lines(&succeed(&each));
    assert_eq!([0, 1].map(|index| &each[index]["nll_nats"]), [0, 1].map(|index| &from_npy[index]["nll_nats"]));
    assert_ne!(each[2]["nll_nats"], from_npy[2]["nll_nats"]);
    assert_eq!(each[2]["class"], 5);
}

#[test]
fn refusals_name_the_flag_or_the_file() {
    let models = models();
    add_model(models.path(), "other", 2, 2);
    let root = models.path().to_str().unwrap();
    let wrong = models.path().join("wrong.png");
    std::fs::write(&wrong, b"no image").unwrap();
    let wrong = wrong.to_str().unwrap();
    for (arguments, words) in [
        (&["sample", "--model", "toy", "--class", "10", "--count", "0", "--top-p", "2"][..], "--class --count --top-p"),
        (&["sample", "--model", "toy", "--temperature", "-1", "--top-p", "-0.5"], "--temperature -1 --top-p -0.5"),
        (&["sample", "--model", "nothing"], "nothing other, toy"),
        (&["sample"], "--model other, toy"),
        (&["score", "--model", "toy", "--class", "1", wrong], "wrong.png PNG"),
        (&["score", "--model", "toy", "/no/such.png"], "/no/such.png"),
        (&["bench", "load", "--rate", "5", "--model", "toy", "--class", "10"], "--class 10 toy"),
        (&["bench", "load", "--rate", "900", "--model", "toy", "--images", "300"], "--images 256 300"),
        (&["bench", "load", "--rate", "1", "--model", "toy", "--images", "300"], "--rate --duration 300"),
    ] {
        let output = pixeld(&[arguments, &["--models", root]].concat());
        let text = stderr(&output);
        assert_eq!(code(&output), 64, "{arguments:?}: {text}");
        let missing = words.split(' ').find(|word| !text.contains(word));
        assert_eq!(missing, None, "{arguments:?}: {text}");
    }
}

#[test]
fn check_loads_every_package_and_names_the_ones_that_cannot_be_served() {
    let models = models();
    let root = models.path().to_str().unwrap();
    let good = succeed(&["check", "--models", root]);
    assert!(stdout(&good).contains("[engine]\nshards = \"auto\"\nslots = \"auto\"\n"), "{}", stdout(&good));
    assert!(stdout(&good).contains("toy   ready"), "{}", stdout(&good));

    add_model(models.path(), "broken", 0, 5);
    let bad = pixeld(&["check", "--models", root]);
    assert_eq!(code(&bad), 64);
    assert!(stdout(&bad).contains("height"), "{}", stdout(&bad));
    assert!(stderr(&bad).contains("1 of 2 models cannot be served"), "{}", stderr(&bad));
    // A name that no package may have is a fault like any other.
    add_model(models.path(), "Upper", 4, 5);
    let bad = pixeld(&["check", "--models", root]);
    assert!(stdout(&bad).contains("Upper: package refused: name: of the directory must be"), "{}", stdout(&bad));
    assert!(stderr(&bad).contains("2 of 3 models cannot be served"), "{}", stderr(&bad));
    let server = Server::start(models.path());
    server.wait_for(&["ERROR", "Upper", "of the directory must be"]);

    let npy = models.path().join("images.npy");
    succeed(&["sample", "--models", root, "--model", "toy", "--npy", npy.to_str().unwrap()]);
    for command in [&["sample"][..], &["score", "x.png"], &["score", "--npy", npy.to_str().unwrap()]] {
        let refused = |place: &[&str]| pixeld(&[command, &["--model", "broken"], place].concat());
        let here = refused(&["--models", root]);
        assert_eq!(code(&here), 64, "{command:?}: {}", stderr(&here));
        assert!(stderr(&here).contains("image.height"), "{command:?}: {}", stderr(&here));
        let there = refused(&["--endpoint", &server.url]);
        assert_eq!(code(&there), 69, "{command:?} elsewhere: {}", stderr(&there));
    }

    let listed = json_lines(&succeed(&["models", "--models", root, "--json"]));
    let states: Vec<_> = listed.iter().map(|model| (model["name"].as_str(), model["state"].as_str())).collect();
    assert_eq!(
        states,
        [(Some("Upper"), Some("failed")), (Some("broken"), Some("failed")), (Some("toy"), Some("ready"))]
    );
    assert_eq!(listed[2]["shape"], serde_json::json!([6, 5, 3]));
}

#[test]
fn a_package_inside_the_binary_serves_without_any_file() {
    let output = succeed(&["check", "--set", "models.embedded=true"]);
    assert!(stdout(&output).contains("digits  ready"), "{}", stdout(&output));
}

/// Every column of `outcomes` but `scheduled`, summed over the roles.
fn accounted(outcomes: &Value, column: &str) -> u64 {
    ["reader", "slow", "canceller"].iter().map(|role| outcomes[role][column].as_u64().unwrap()).sum()
}

#[test]
fn a_load_accounts_for_every_stream_and_can_be_compared() {
    let root = tempfile::tempdir().unwrap();
    let common = ["bench", "load", "--set", "models.embedded=true", "--duration", "2s", "--warmup", "300ms"];
    let open = ["--rate", "30", "--cancel-share", "0.3", "--slow-share", "0.2", "--slow-pause", "100ms"];
    let more = ["--connections", "2", "--slo-image", "1h", "--json"];
    let output = succeed(&[&common[..], &open, &more].concat());
    let record = json_lines(&output).remove(0);
    let (outcomes, figures) = (&record["outcomes"], &record["figures"]);
    assert_eq!((&record["kind"], &record["parameters"]["in_process"]), (&"load".into(), &true.into()));

    let endings = ["completed", "refused", "failed", "cancelled", "unfinished", "unsent"];
    for role in ["reader", "slow", "canceller"] {
        let sum: u64 = endings.iter().map(|ending| outcomes[role][ending].as_u64().unwrap()).sum();
        assert_eq!(outcomes[role]["scheduled"], sum, "{role}: {outcomes}");
        assert!(sum > 0, "{role}: {outcomes}");
    }
    let status: u64 = outcomes["status"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    let with_status: u64 = endings[..3].iter().map(|ending| accounted(outcomes, ending)).sum();
    assert_eq!(status, with_status, "{outcomes}");
    assert_eq!((&outcomes["canceller"]["completed"], &outcomes["reader"]["cancelled"]), (&0.into(), &0.into()));
    let reader = |ending: &str| outcomes["reader"][ending].as_u64().unwrap();
    assert_eq!(
        outcomes["measured"]["images"],
        reader("scheduled") - reader("refused"),
        "one image each, none left out"
    );
    let share = reader("completed") as f64 / reader("scheduled") as f64;
    assert!((figures["goodput_share"].as_f64().unwrap() - share).abs() < 1e-9, "{figures}");
    let received = record["per_second"]["images"].as_array().unwrap();
    let images: u64 = received.iter().map(|images| images.as_u64().unwrap()).sum();
    assert_eq!((received.len(), figures["images_per_s"].as_f64().unwrap()), (2, images as f64 / 2.0));
    assert!(figures["goodput_images_per_s"].as_f64().unwrap() <= images as f64 / 2.0, "{figures}");
    for figure in ["first_value_us", "gap_us", "image_us", "send_lag_us"] {
        let spread = ["p50", "p90", "p99", "p999", "max"].map(|name| figures[figure][name].as_u64().unwrap());
        assert!(spread.is_sorted() && spread[4] > 0, "{figure}: {spread:?}");
    }
    assert!(figures["client_cpu_s"].as_f64().unwrap() > 0.0);

    let closed = json_lines(&succeed(&[&common[..], &["--streams", "2", "--granularity", "row", "--json"]].concat()));
    let streams = &closed[0]["outcomes"]["reader"];
    assert!(streams["completed"].as_u64().unwrap() > 0, "{streams}");
    assert_eq!(streams["scheduled"], streams["completed"], "the drain lets the last two finish");
    let in_one = closed[0]["figures"]["values_per_message"].as_f64().unwrap();
    assert!(in_one >= 8.0, "rows of 8 values, never split: {in_one}");

    let file = |name: &str, record: &Value| {
        let path = root.path().join(name);
        std::fs::write(&path, format!("{record}\n{record}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (a, b) = (file("a.json", &record), file("b.json", &closed[0]));
    let same = json_lines(&succeed(&["bench", "compare", "--json", &a, &a]));
    assert!(same.iter().all(|line| line["ratio"] == 1.0 || line["a"] == 0.0), "{same:?}");
    assert!(
        same.iter().any(|line| line["figure"] == "first_value_us.p99" && line["repeats"] == serde_json::json!([2, 2]))
    );
    let text = stdout(&succeed(&["bench", "compare", &a, &b]));
    assert!(text.contains("differing: granularity is value in A and row in B"), "{text}");
    assert!(text.contains("images_per_s"), "{text}");

    std::fs::write(&b, "{\"kind\": \"load\"").unwrap();
    let output = pixeld(&["bench", "compare", &a, &b]);
    assert_eq!(code(&output), 64);
    assert!(stderr(&output).contains("b.json"), "{}", stderr(&output));
}

#[test]
fn a_server_ends_well_when_it_is_told_to() {
    let models = models();
    for signal in ["-TERM", "-INT"] {
        let mut server = Server::start(models.path());
        server.wait_for(&["serving"]);
        send(signal, &server.child);
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn interrupting_a_client_cancels_its_stream() {
    let models = models();
    add_model(models.path(), "large", 128, 128);
    // Frames in the log tell when values are on their way.
    let mut server = Server::start_with(models.path(), &["--set", "log.filter=info,h2=debug"]);
    server.wait_for(&["serving", "large"]);
    let mut command = command();
    command.args(["sample", "--model", "large", "--count", "256", "--endpoint", &server.url]);
    let client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.wait_for(&["send frame=Data"]);
    send("-INT", &client);
    let output = client.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (130, "error: interrupted\n"));
    server.wait_for(&["call ended", "Cancelled"]);
    // Nothing is left that a drain would have to wait for.
    send("-TERM", &server.child);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn interrupting_a_command_that_runs_its_own_models_ends_it() {
    let models = models();
    add_model(models.path(), "large", 128, 128);
    let mut command = command();
    command.args(["sample", "--model", "large", "--count", "256", "--set", "log.filter=h2=debug"]);
    command.arg("--models").arg(models.path());
    let mut client = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = Log::follow(client.stderr.take().unwrap());
    log.wait_for(&["Connection{peer=Client}", "received frame=Data"]);
    send("-INT", &client);
    log.wait_for(&["error: interrupted"]);
    assert_eq!(client.wait().unwrap().code(), Some(130));
}
