//! A daemon that is operated from outside: its socket, its signals, and what fifty loads leave behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests count as product code to clippy"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use serde_json::Value;

/// Loads and unloads.
const CYCLES: usize = 50;
/// Cycles after which every pool has the size it keeps.
const WARM: usize = 10;

fn put(root: &Path, name: &str, sharpness: &str) {
    let manifest = format!(
        "format = 1\nname = \"{name}\"\nfamily = \"toy\"\n[image]\nheight = 6\nwidth = 5\nchannels = 3\nlevels = 64\n\
         order = \"raster\"\n[head]\nkind = \"categorical\"\n[condition]\nclasses = 10\n\
         [architecture]\nsharpness = {sharpness}\n"
    );
    fs::create_dir_all(root.join(name)).unwrap();
    fs::write(root.join(name).join("model.toml"), manifest).unwrap();
}

/// A running `pixeld serve` over a folder of packages, killed when dropped.
struct Server {
    child: Child,
    url: String,
    /// Where it answers probes.
    probes: String,
    socket: PathBuf,
    log: BufReader<ChildStderr>,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "toy", "0.1");
        Self::start_in(folder)
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let socket = folder.path().join("admin.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
        command.env("PIXELD__MODELS__EMBEDDED", "false").stdin(Stdio::null());
        command.args(["serve", "--listen", "127.0.0.1:0", "--set", "engine.shards=2", "--models"]).arg(folder.path());
        command.arg("--set").arg(format!("admin.listen=unix:{}", socket.display()));
        command.args(["--set", "health.listen=127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.next().unwrap();
        let url = format!("http://{}", line.strip_prefix("listening on ").expect("the first line"));
        assert_eq!(lines.next().as_deref(), Some("ready"));
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut server = Self { url, probes: String::new(), socket, log, folder, child };
        let probes = server.logged(&["answering probes"]);
        let bound = probes.split("bound=").nth(1).and_then(|rest| rest.split_whitespace().next());
        server.probes = format!("http://{}", bound.expect("where it answers them"));
        server
    }

    fn admin(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
        command.arg("admin").args(words).arg("--socket").arg(&self.socket).output().unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.admin(&[words, &["--json"]].concat());
        assert!(output.status.success(), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn models(&self) -> Vec<Value> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
        let output = command.args(["models", "--json", "--endpoint", &self.url]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn send(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Waits for a line of the log that holds every one of `words`, and gives it.
    fn logged(&mut self, words: &[&str]) -> String {
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
            line.clear();
        }
        panic!("the log ended without {words:?}");
    }

    /// Threads that serve models, all threads, and open files.
    fn counts(&self) -> [usize; 3] {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let tasks: Vec<_> = fs::read_dir(process.join("task")).unwrap().map(Result::unwrap).collect();
        let names = tasks.iter().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        let engines = names.filter(|name| name.starts_with("engine-")).count();
        [engines, tasks.len(), fs::read_dir(process.join("fd")).unwrap().count()]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn health_is_told_by_an_exit_code() {
    let server = Server::start();
    let health = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
        let output = command.arg("health").args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(health(&["--endpoint", &server.url]), (Some(0), "readiness serves\n".to_owned()));
    assert_eq!(health(&["--endpoint", &server.probes, "liveness"]), (Some(0), "liveness serves\n".to_owned()));
    assert_eq!(health(&["--endpoint", &server.probes, "models/toy"]).0, Some(0));
    let (code, said) = health(&["--endpoint", &server.url, "models/nobody"]);
    assert!(code == Some(64) && said.contains("models/nobody"), "{said}");
    put(server.folder.path(), "wrong", "\"much\"");
    assert!(!server.admin(&["load", "wrong"]).status.success());
    let (code, said) = health(&["--endpoint", &server.url, "models/wrong"]);
    assert!(code == Some(69) && said.contains("models/wrong does not serve"), "{code:?} {said}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(health(&["--endpoint", &format!("http://{nobody}")]).0, Some(69));
}

#[test]
fn the_socket_is_the_users_alone_goes_at_the_end_and_does_not_stand_in_the_way_of_the_next() {
    let mut server = Server::start();
    let found = fs::symlink_metadata(&server.socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert_eq!(server.json(&["info"])["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(server.json(&["load-status", "toy"])["state"], "ready");
    assert_eq!(server.json(&["drain"])["draining"], true);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(!server.socket.exists());

    let folder = std::mem::replace(&mut server.folder, tempfile::tempdir().unwrap());
    let server = Server::start_in(folder);
    server.send("-KILL");
    let mut killed = server;
    killed.child.wait().unwrap();
    assert!(killed.socket.exists(), "left behind");
    let folder = std::mem::replace(&mut killed.folder, tempfile::tempdir().unwrap());
    let server = Server::start_in(folder);
    assert_eq!(server.json(&["load-status"])["model"], "toy");

    let elsewhere = Command::new(env!("CARGO_BIN_EXE_pixeld"))
        .args(["admin", "load", "toy", "--endpoint", &server.url])
        .output()
        .unwrap();
    assert!(!elsewhere.status.success());
    let refused = server.admin(&["load", "nobody"]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("known models: toy"));
    let nowhere = Command::new(env!("CARGO_BIN_EXE_pixeld")).args(["admin", "info", "--socket", "/no/such"]).output();
    assert_eq!(nowhere.unwrap().status.code(), Some(69));
}

#[test]
fn fifty_loads_and_unloads_leave_threads_files_and_the_catalogue_where_they_were() {
    let server = Server::start();
    put(server.folder.path(), "other", "0.3");
    let (listed, mut warm) = (server.models(), None);
    for cycle in 0..CYCLES {
        assert_eq!(server.json(&["load", "other"])["state"], "ready");
        assert_eq!(server.models().len(), 2);
        assert_eq!(server.counts()[0], 4, "two shards of two models");
        assert_eq!(server.json(&["unload", "other"])["drained"], true);
        let counts = server.counts();
        assert_eq!(counts[0], 2);
        if cycle == WARM {
            warm = Some(counts);
        }
    }
    assert_eq!(server.models(), listed);
    let ([_, threads, files], [_, before, files_before]) = (server.counts(), warm.unwrap());
    // The runtime keeps threads for blocking work as it sees fit, a connection may be about to close.
    assert!(threads <= before + 4, "{threads} threads, {before} after {WARM} cycles");
    assert!(files <= files_before + 4, "{files} files, {files_before} after {WARM} cycles");
}

#[test]
fn the_filter_of_the_log_changes_while_the_server_runs_and_a_bad_one_changes_nothing() {
    let mut server = Server::start();
    for name in ["first", "second", "third"] {
        put(server.folder.path(), name, "0.3");
    }
    let set = |filter: &str| server.json(&["log-filter", filter]);
    assert_eq!(set("warn"), serde_json::json!({"filter": "warn", "previous_filter": "info"}));
    assert_eq!(server.json(&["load", "first"])["state"], "ready");
    let refused = server.admin(&["log-filter", "pixeld=loud"]);
    assert_eq!(refused.status.code(), Some(64));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("filter: must be a filter such as") && told.contains("pixeld=loud"), "{told}");
    assert_eq!(server.json(&["load", "second"])["state"], "ready");
    assert_eq!(set("info")["previous_filter"], "warn");
    assert_eq!(server.json(&["load", "third"])["state"], "ready");
    let mut lines = String::new();
    while !(lines.contains("serving") && lines.contains("third")) {
        assert!(server.log.read_line(&mut lines).unwrap() > 0, "{lines}");
    }
    let told_of = ["toy", "first", "second"].map(|name| lines.contains(&format!("\"{name}\"")));
    assert_eq!(told_of, [true, false, false], "{lines}");
}

#[test]
fn a_hangup_makes_the_server_look_for_packages_and_say_what_it_found() {
    let mut server = Server::start();
    let before = server.models();
    put(server.folder.path(), "new", "0.3");
    put(server.folder.path(), "toy", "0.2");
    fs::create_dir(server.folder.path().join("bad")).unwrap();
    fs::write(server.folder.path().join("bad/model.toml"), "format = 1\n").unwrap();
    server.send("-HUP");
    let line = server.logged(&["looked for packages"]);
    for part in ["loaded=[\"new\"]", "reloaded=[\"toy\"]", "failed=[\"bad\"]"] {
        assert!(line.contains(part), "{line}");
    }
    let after = server.models();
    assert_eq!(after.iter().map(|model| model["name"].clone()).collect::<Vec<_>>(), ["bad", "new", "toy"]);
    assert_ne!(after[2]["revision"], before[0]["revision"]);
    server.send("-HUP");
    let line = server.logged(&["looked for packages"]);
    assert!(line.contains("unchanged=[\"new\", \"toy\"]"), "{line}");
    server.send("-TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}
