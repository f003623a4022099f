//! The load generator against a daemon that stands still, and that is the only thing it may not keep quiet about.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::harness::{Daemon, QUEUE, config, patiently};

/// How long the daemon stands still.
const STALL: Duration = Duration::from_secs(1);

/// `pixeld bench load` of one minute or less, running.
fn load(daemon: &Daemon, flags: &[&str]) -> Child {
    let endpoint = format!("http://{}", daemon.address);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.args(["bench", "load", "--json", "--arrivals", "constant", "--warmup", "0s", "--endpoint", &endpoint]);
    command.args(flags).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

async fn record(load: Child) -> Value {
    let output = patiently(load.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn who_arrives_while_the_daemon_stands_still_is_in_the_tail() {
    let (daemon, gate) = Daemon::gated(4, config()).await;
    gate.allow(1);
    let load = load(&daemon, &["--rate", "40", "--duration", "3s"]);
    gate.blocked().await;
    tokio::time::sleep_until(Instant::now() + STALL).await;
    gate.open();
    let record = record(load).await;
    let (outcomes, figures) = (&record["outcomes"]["reader"], &record["figures"]);
    assert_eq!((&outcomes["scheduled"], &outcomes["refused"]), (&120.into(), &0.into()), "{outcomes}");
    // Of 120 arrivals 40 came during the stall, and 20 of those in its first half.
    for figure in ["first_value_us", "image_us"] {
        let p90 = figures[figure]["p90"].as_u64().unwrap();
        assert!(u128::from(p90) >= STALL.as_micros() / 2, "{figure}: {figures}");
    }
}

#[tokio::test]
async fn what_is_never_answered_is_counted_and_timed_as_far_as_it_went() {
    let (daemon, gate) = Daemon::gated(4, config()).await;
    gate.allow(0);
    let record = record(load(&daemon, &["--rate", "100", "--duration", "1s", "--drain", "100ms"])).await;
    let (outcomes, figures) = (&record["outcomes"], &record["figures"]);
    let taken = u64::from(QUEUE) + 4;
    let reader = &outcomes["reader"];
    assert_eq!((&reader["unfinished"], &reader["refused"]), (&taken.into(), &(100 - taken).into()), "{reader}");
    assert_eq!(outcomes["status"], serde_json::json!({"ResourceExhausted": 100 - taken}));
    let measured = &outcomes["measured"];
    assert_eq!((&measured["images_at_least"], &measured["images"]), (&taken.into(), &taken.into()), "{measured}");
    // The first arrived 1.1 s before the end.
    assert!(figures["first_value_us"]["max"].as_u64().unwrap() >= 1_000_000, "{figures}");
    assert_eq!((&figures["goodput_share"], &figures["images_per_s"]), (&0.0.into(), &0.0.into()));
}

#[tokio::test]
async fn a_deadline_of_the_load_ends_its_streams_on_the_daemon() {
    let (daemon, gate) = Daemon::gated(4, config()).await;
    gate.allow(0);
    let load = load(&daemon, &["--rate", "20", "--duration", "1s", "--deadline", "200ms", "--images", "2"]);
    let record = record(load).await;
    let outcomes = &record["outcomes"];
    assert_eq!((&outcomes["reader"]["failed"], &outcomes["reader"]["scheduled"]), (&10.into(), &10.into()));
    assert_eq!(outcomes["status"], serde_json::json!({"DeadlineExceeded": 10}));
    assert_eq!(outcomes["measured"]["images_at_least"], 20, "two images each");
}
