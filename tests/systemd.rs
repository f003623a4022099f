//! What a service manager is told: that the daemon is ready, that it lives, that it stops.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests count as product code to clippy")]

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn systemd_hears_of_readiness_of_progress_and_of_the_end() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    // A daemon that says nothing fails the test instead of hanging it.
    socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let hear = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(buffer.split_at(length).0).trim_end().to_owned()
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.args(["serve", "--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut daemon = Daemon(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let mut told = vec![hear()];
    while told.iter().filter(|line| *line == "WATCHDOG=1").count() < 2 || !told.contains(&"READY=1".to_owned()) {
        told.push(hear());
    }
    let stop = Command::new("kill").arg(daemon.0.id().to_string()).status().unwrap();
    assert!(stop.success());
    while hear() != "STOPPING=1" {}
    assert!(daemon.0.wait().unwrap().success());
    told.retain(|line| line != "WATCHDOG=1");
    assert_eq!(told, ["READY=1"]);
}
