//! What goes wrong in a model: what the client of the image sees, what the others see, and how the daemon is afterwards.

use std::time::Duration;

use pixeld::app::AppError;
use tonic::Code;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Daemon, MODEL, Read, config, next, patiently, read, refusal, stream};
use crate::steady::{Gate, Trouble};

/// What one of two images that share a step sees: its seed's values, or a code and a reason.
type Seen = Result<(), (Code, &'static str)>;

const FAULT: Seen = Err((Code::Internal, "ENGINE_FAULT"));
const MEMORY: Seen = Err((Code::ResourceExhausted, "DEVICE_MEMORY_EXHAUSTED"));

async fn image(daemon: &Daemon, seed: u64) -> Result<Read, tonic::Status> {
    read(daemon.generation().stream_generate_images(stream(1, seed)).await?.into_inner()).await
}

/// Two images in one step that `trouble` hits, and a third that waits; what each comes to.
async fn hit(daemon: &Daemon, gate: &Gate, trouble: Trouble) -> [Result<Read, tonic::Status>; 3] {
    gate.allow(1);
    let open = async |seed| daemon.generation().stream_generate_images(stream(1, seed)).await.unwrap().into_inner();
    let victim = open(1).await;
    gate.blocked().await;
    // The engine stands in a step of the first image; the next step is of both.
    let (neighbour, waiting) = (open(2).await, open(3).await);
    gate.trouble(2, trouble);
    gate.open();
    let (victim, neighbour, waiting) = tokio::join!(read(victim), read(neighbour), read(waiting));
    [victim, neighbour, waiting]
}

async fn health(daemon: &Daemon, name: &str) -> i32 {
    let mut client = HealthClient::new(daemon.channel.clone());
    client.check(HealthCheckRequest { service: name.into() }).await.unwrap().into_inner().status
}

/// How the daemon is: as if nothing had been.
async fn check_state_after(daemon: &Daemon) {
    let handle = daemon.handle(MODEL);
    patiently(async {
        let idle = || {
            let load = handle.load();
            load.running + load.queued == 0 && load.since_progress.is_none()
        };
        while !idle() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let load = handle.load();
    assert_eq!(load.submitted, load.completed + load.given_up, "every image ended, once: {load:?}");
    for name in ["", "readiness", "liveness", "models/steady"] {
        assert_eq!(health(daemon, name).await, ServingStatus::Serving as i32, "{name:?}");
    }
    image(daemon, 4).await.expect("the next is served");
}

#[tokio::test]
async fn a_fault_reaches_whom_it_concerns_and_no_further() {
    let table: [(Trouble, Seen, Seen); 6] = [
        (Trouble::NotFinite(0), FAULT, Ok(())),
        (Trouble::SpoiltSlot(0), FAULT, Ok(())),
        (Trouble::Failed, FAULT, FAULT),
        (Trouble::Panic, FAULT, FAULT),
        (Trouble::NoMemory(1), Ok(()), Ok(())),
        (Trouble::NoMemory(2), MEMORY, Ok(())),
    ];
    let (calm, _gate) = Daemon::gated(2, config()).await;
    for (trouble, victim, neighbour) in table {
        let (daemon, gate) = Daemon::gated(2, config()).await;
        let seen = hit(&daemon, &gate, trouble).await;
        for ((seed, expected), seen) in [(1, victim), (2, neighbour), (3, Ok(()))].into_iter().zip(seen) {
            match (expected, seen) {
                (Ok(()), Ok(seen)) => {
                    let alone = image(&calm, seed).await.unwrap();
                    assert_eq!(seen.values, alone.values, "image {seed} after {trouble:?}");
                }
                (Err((code, reason)), Err(status)) => {
                    assert_eq!(refusal(&status), (code, reason.into(), vec![]), "image {seed} after {trouble:?}");
                }
                (expected, seen) => panic!("image {seed} after {trouble:?}: {expected:?} was expected, got {seen:?}"),
            }
        }
        check_state_after(&daemon).await;
    }
}

/// Resolves once `name` has that health.
async fn becomes(daemon: &Daemon, name: &str, status: ServingStatus) {
    let mut client = HealthClient::new(daemon.channel.clone());
    let mut watch = client.watch(HealthCheckRequest { service: name.into() }).await.unwrap().into_inner();
    patiently(async { while watch.message().await.unwrap().unwrap().status != status as i32 {} }).await;
}

#[tokio::test]
async fn a_model_that_hangs_in_a_step_is_not_alive_until_it_gets_on() {
    let mut config = config();
    config.engine.engine.stall_timeout = Duration::from_millis(100);
    let (daemon, gate) = Daemon::gated(1, config).await;
    becomes(&daemon, "liveness", ServingStatus::Serving).await;
    gate.allow(3);
    let running = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    becomes(&daemon, "liveness", ServingStatus::NotServing).await;
    assert_eq!(health(&daemon, "readiness").await, ServingStatus::Serving as i32, "restarting it is what is asked for");
    gate.open();
    becomes(&daemon, "liveness", ServingStatus::Serving).await;
    read(running).await.expect("nothing of it was lost");
    check_state_after(&daemon).await;
}

#[tokio::test]
async fn a_daemon_whose_model_hangs_ends_if_it_was_told_to() {
    let mut config = config();
    config.engine.engine.stall_timeout = Duration::from_millis(100);
    config.engine.stall_exit = true;
    config.server.drain_timeout = Duration::from_millis(200);
    let (daemon, gate) = Daemon::gated(1, config).await;
    gate.allow(3);
    let mut running = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    let (ended, ()) = tokio::join!(daemon.ended(), async {
        while let Ok(Some(_)) = next(&mut running).await {}
        gate.open();
    });
    match ended {
        Err(AppError::ModelBroke { name, why }) => assert!(name == MODEL && why.contains("no step"), "{why}"),
        other => panic!("it ends with the name of the model, not {other:?}"),
    }
}
