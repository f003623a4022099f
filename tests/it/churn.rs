//! Ten thousand clients that leave at any point, and what they leave behind: nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use pixeld::app::Source;
use pixeld::engine::Handle;
use pixeld::image::Shape;
use pixeld::noise;
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::stream_generate_images_response::Event;
use tokio::process::Command;
use tokio::task::{JoinSet, yield_now};
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::{Daemon, MODEL, config, connect, next, patiently, read, stream};
use crate::steady::{Gate, Steady};

/// The test's own name, to run it by.
const TEST: &str = "churn::ten_thousand_streams_dropped_at_any_point_leave_nothing_behind";
const STREAMS: u32 = 10_000;
/// Streams after which every pool and buffer has the size it keeps.
const WARM: u32 = 2_000;
const AT_ONCE: u32 = 64;
const SLOTS: u32 = 4;
/// Steps that the engine may take while every client takes its turn.
const STEPS_A_TURN: u64 = 16;
/// Steps that the engine may take once all have left: the one under way, and one more.
const STEPS_TO_LEAVE: u64 = 2;
/// Places beside the slots: enough for those who are there and those whose leaving has not been noticed.
const QUEUE: u32 = 8 * LARGEST_REQUEST;
/// As the harness configures it.
const LARGEST_REQUEST: u32 = 16;
/// What memory may grow by from then on. A kilobyte lost with each stream would be twice as much.
const SLACK_KIB: u64 = 4 << 10;

/// 8x4 pixels of 3 values: long enough to leave in the middle of.
fn shape() -> Shape {
    Shape::new(8, 4, 3, 16).unwrap()
}

/// How many streams began, and where they were dropped.
#[derive(Debug, Default)]
struct Points {
    begun: AtomicU32,
    /// After so many turns of the runtime, often before there was any answer.
    anywhere: AtomicU32,
    refused: AtomicU32,
    waiting: AtomicU32,
    midway: AtomicU32,
    complete: AtomicU32,
}

/// Opens one stream after the other until `end` have begun, and drops each at a point that chance decides.
async fn come_and_go(number: u32, address: SocketAddr, end: u32, points: Arc<Points>) {
    let mut draws = 0;
    let mut chance = |below: f64| {
        draws += 1;
        (noise::uniform(u64::from(end), number, draws) * below) as u32
    };
    let mut channel = connect(address);
    while points.begun.fetch_update(Relaxed, Relaxed, |begun| (begun < end).then_some(begun + 1)).is_ok() {
        let connection = channel.clone();
        // Now and then the whole connection goes, with the stream in it.
        if chance(20.0) == 0 {
            channel = connect(address);
        }
        let turns = (chance(8.0) == 0).then(|| chance(12.0));
        let images = 1 + chance(2.0);
        // One in ten leaves without having waited for a value, and one in ten stays to the end.
        let values = shape().values();
        let stay = chance(f64::from(values) * 1.25).saturating_sub(values / 8);
        let point = tokio::select! {
            biased;
            point = leave_after(connection, images, stay, &points) => point,
            () = pass(turns) => &points.anywhere,
        };
        point.fetch_add(1, Relaxed);
    }
}

/// Resolves after so many turns of the runtime, or never.
async fn pass(turns: Option<u32>) {
    let Some(turns) = turns else { return std::future::pending().await };
    for _ in 0..turns {
        yield_now().await;
    }
}

/// Opens a stream and drops it once `stay` values have come, or at its end.
async fn leave_after(channel: Channel, images: u32, stay: u32, points: &Points) -> &AtomicU32 {
    let opened = GenerationServiceClient::new(channel).stream_generate_images(stream(images, 1)).await;
    let mut events = match opened {
        Ok(opened) => opened.into_inner(),
        Err(status) if status.code() == Code::ResourceExhausted => return &points.refused,
        Err(status) => panic!("{status:?}"),
    };
    let mut seen = 0;
    while seen < stay {
        match next(&mut events).await.unwrap() {
            Some(Event::Sampled(sampled)) => {
                seen += sampled.runs.iter().map(|run| run.values.len() as u32).sum::<u32>()
            }
            Some(Event::Started(_)) => {}
            Some(Event::Completed(_)) | None => return &points.complete,
        }
    }
    if seen == 0 { &points.waiting } else { &points.midway }
}

/// Keeps the engine from running ahead of the clients: left alone, it is done before they have read what to leave.
async fn pace(gate: &Gate) {
    loop {
        gate.allow(STEPS_A_TURN);
        yield_now().await;
    }
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Resolves once every permit, slot, place in the queue and task is free. `idle`: tasks that an idle daemon has.
async fn idle_again(handle: &Handle, idle: usize) {
    handle.drained().await;
    let works = || {
        let load = handle.load();
        load.running + load.queued + load.scoring > 0 || load.since_progress.is_some()
    };
    while works() || tasks() > idle {
        yield_now().await;
    }
}

/// Resolves once all whose streams were dropped have left the engine too, within the step under way and one more: what they
/// had asked for would take many.
async fn leave(gate: &Gate, handle: &Handle, idle: usize) {
    gate.allow(0);
    handle.drained().await;
    gate.allow(STEPS_TO_LEAVE);
    idle_again(handle, idle).await;
}

/// Memory of this process that is in RAM.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Whether this process runs nothing but this test. Others would be in the memory that is measured.
fn is_alone() -> bool {
    let arguments: Vec<_> = std::env::args().collect();
    ["--exact", TEST].iter().all(|wanted| arguments.iter().any(|argument| argument == wanted))
}

async fn rerun_alone() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let ran = command.args(["--exact", TEST, "--nocapture"]).kill_on_drop(true).output().await.unwrap();
    let (said, complained) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && said.contains("1 passed"), "{said}\n{complained}");
}

#[tokio::test]
async fn ten_thousand_streams_dropped_at_any_point_leave_nothing_behind() {
    if !is_alone() {
        return rerun_alone().await;
    }
    let mut config = config();
    config.engine.engine.queue_images = QUEUE;
    let gate = Gate::default();
    let model = Steady::new(MODEL, shape(), SLOTS, &gate);
    let daemon = Daemon::start(config, vec![Source::new(MODEL, move || Ok(Box::new(model)))]).await;
    let handle = daemon.handle(MODEL);
    read(daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner()).await.unwrap();
    patiently(idle_again(&handle, usize::MAX)).await;
    let mut idle = tasks();
    for _ in 0..1000 {
        yield_now().await;
        idle = idle.min(tasks());
    }

    let (points, mut resident) = (Arc::new(Points::default()), Vec::new());
    for end in [WARM, STREAMS] {
        let mut clients = JoinSet::new();
        for number in 0..AT_ONCE {
            clients.spawn(come_and_go(number, daemon.address, end, Arc::clone(&points)));
        }
        tokio::select! {
            _ = clients.join_all() => {}
            () = pace(&gate) => {}
        }
        patiently(leave(&gate, &handle, idle)).await;
        resident.push(resident_kib());
    }
    for point in [&points.anywhere, &points.waiting, &points.midway, &points.complete] {
        assert!(point.load(Relaxed) > STREAMS / 100, "too few at one of the points: {points:?}");
    }
    assert!(resident[1] < resident[0] + SLACK_KIB, "{resident:?} KiB after {WARM} and {STREAMS} streams");

    // Every place is there to be taken, and not one more.
    gate.allow(1);
    let daemon = &daemon;
    let open = |images| async move { daemon.generation().stream_generate_images(stream(images, 1)).await };
    let mut held = vec![open(SLOTS).await.unwrap()];
    for _ in 0..QUEUE / LARGEST_REQUEST {
        held.push(open(LARGEST_REQUEST).await.unwrap());
    }
    assert_eq!(open(1).await.unwrap_err().code(), Code::ResourceExhausted);
    gate.blocked().await;
    assert_eq!(handle.load().running, SLOTS, "every slot is taken");
    drop(held);
    patiently(leave(&gate, &handle, idle)).await;
}
