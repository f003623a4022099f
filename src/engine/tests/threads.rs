//! Permits, cancellation, health and the end, in a whole engine.

use std::sync::Weak;
use std::sync::mpsc::sync_channel;

use tokio::time;

use super::streams::{read, settled};
use super::*;
use crate::engine::health::Health;
use crate::engine::shared::Shared;
use crate::engine::thread::Inbox;
use crate::engine::{Engine, EngineConfig, Handle, SCORE_IMAGES};
use crate::model::scripted::{Call, Fault};
use crate::model::{ModelError, PixelModel};

pub(super) fn config(queue_images: u32) -> EngineConfig {
    EngineConfig { queue_images, score_share: 0.5, ..EngineConfig::default() }
}

/// A whole engine, warmed up.
pub(super) struct Daemon {
    pub(super) engine: Engine,
    pub(super) handle: Handle,
    pub(super) script: Arc<Script>,
}

pub(super) fn engine(slots: u32, queue_images: u32) -> Daemon {
    engine_of(1, slots, queue_images)
}

/// The same with `shards` shards of `slots` slots each.
pub(super) fn engine_of(shards: u32, slots: u32, queue_images: u32) -> Daemon {
    let (model, script) = Scripted::new(slots);
    let engine = Engine::start(Box::new(model), shards, config(queue_images)).unwrap();
    let handle = engine.handle();
    while *handle.health().borrow() == Health::Warming {
        std::thread::yield_now();
    }
    Daemon { engine, handle, script }
}

fn image() -> Vec<u16> {
    vec![0; N as usize]
}

#[tokio::test]
async fn dropping_a_stream_frees_its_permits_at_once_and_its_slots_with_the_next_step() {
    let Daemon { handle, script, .. } = engine(1, 1);
    script.shut();
    let running = handle.sample(job(1, 1), None).unwrap();
    let queued = handle.sample(job(2, 1), None).unwrap();
    script.wait_until_held();
    assert!(matches!(handle.sample(job(3, 1), None), Err(Error::QueueFull { free: 0, limit: 2, .. })));
    drop((running, queued));
    let mut next = handle.sample(job(3, 1), None).unwrap();
    let steps = script.calls(Call::Step);
    script.open_gate();
    assert_eq!(read(&mut next).await.1, Ok(()));
    assert_eq!(script.calls(Call::Step) - steps, 1 + u64::from(N), "the step under way, and then only the new job's");
}

#[tokio::test]
async fn refusals_say_what_there_is_and_when_to_come_back() {
    let Daemon { handle, script, .. } = engine(2, 6);
    read(&mut handle.sample(job(1, 2), None).unwrap()).await.1.unwrap();
    settled(&handle).await;
    script.shut();
    let _running = handle.sample(job(1, 5), None).unwrap();
    let Err(Error::QueueFull { name, requested, free, limit, retry_after }) = handle.sample(job(2, 4), None) else {
        panic!("there is no room");
    };
    assert_eq!((name.as_str(), requested, free, limit), ("scripted", 4, 3, 8));
    assert!(retry_after >= Duration::from_millis(10) && retry_after < Duration::from_secs(60), "{retry_after:?}");
    let Err(Error::Invalid(violations)) = handle.sample(job(2, 9), None) else { panic!("it never fits") };
    let violation = violations.iter().next().unwrap();
    assert_eq!(violation.field, "image_count");
    assert!(violation.description.contains("at most 8") && violation.description.contains("got 9"));
    let most = 6 + SCORE_IMAGES as usize;
    let Err(Error::Invalid(violations)) = handle.score(score_job(vec![image(); most + 1]), None) else {
        panic!("it never fits")
    };
    assert_eq!(violations.iter().next().unwrap().field, "items");
    let _scoring = handle.score(score_job(vec![image(); most]), None).unwrap();
    assert!(matches!(handle.score(score_job([image()]), None), Err(Error::QueueFull { requested: 1, .. })));
    script.open_gate();
}

#[tokio::test]
async fn a_reader_that_never_reads_stops_nobody() {
    let Daemon { handle, .. } = engine(2, 8);
    let mut silent = handle.sample(job(1, 2), None).unwrap();
    for seed in 2..20 {
        let mut stream = handle.sample(job(seed, 2), None).unwrap();
        assert_eq!(read(&mut stream).await.1, Ok(()));
    }
    settled(&handle).await;
    let (images, end) = read(&mut silent).await;
    assert_eq!((images[1].len(), end), (N as usize, Ok(())), "and loses nothing");
}

/// A small generator: the test must not depend on the order in which threads run, but its choices should be the same.
pub(super) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[tokio::test]
async fn ten_thousand_streams_dropped_anywhere_leave_nothing_behind() {
    for (shards, slots) in [(1, 4), (3, 2)] {
        come_and_go(engine_of(shards, slots, 12), shards * slots, shards * SCORE_IMAGES).await;
    }
}

async fn come_and_go(Daemon { handle, script, engine }: Daemon, slots: u32, scored_together: u32) {
    let mut state = 1;
    let (mut alive, mut buffers): (Vec<_>, Vec<Weak<SampleBuffer>>) = (Vec::new(), Vec::new());
    let (mut streams, mut refused) = (0, 0);
    while streams < 5_000 {
        let images = 1 + (random(&mut state) % 3) as u32;
        let granularity = [Granularity::Value, Granularity::Pixel, Granularity::Row][random(&mut state) as usize % 3];
        match handle.sample(SampleJob { granularity, ..job(random(&mut state), images) }, None) {
            Ok(stream) => {
                streams += 1;
                buffers.push(Arc::downgrade(&stream.buffer));
                alive.push(stream);
            }
            Err(Error::QueueFull { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        if random(&mut state).is_multiple_of(16)
            && let Ok(ticket) = handle.score(score_job(vec![image(); images as usize]), None)
            && images == 1
        {
            ticket.scores().await.unwrap();
        }
        while alive.len() > (random(&mut state) % 8) as usize {
            let mut stream = alive.swap_remove(random(&mut state) as usize % alive.len());
            for _ in 0..random(&mut state) % 6 {
                if stream.next(None).await.is_none() {
                    break;
                }
            }
        }
    }
    drop(alive);
    settled(&handle).await;
    assert!(refused > 0, "the queue was never full, so nothing was tried");
    assert_eq!(handle.shared.sampling.free(Class::Batch), 6 + slots);
    assert_eq!(handle.shared.scoring.free(Class::Interactive), 12 + scored_together);
    assert_eq!(buffers.iter().filter(|buffer| buffer.strong_count() > 0).count(), 0);
    for script in script.shards().iter().chain([&script]) {
        assert_eq!(script.open_slots().len(), 0);
        assert_eq!(script.violations(), Vec::<String>::new());
    }
    assert!(handle.shared.shards.iter().all(|shard| shard.burden(Kind::Sampling) == (0, 0)));
    let load = handle.load();
    assert_eq!((load.running, load.queued, load.scoring), (0, 0, 0));
    assert!(load.completed > 0 && load.given_up > 0, "{load:?}");
    assert_eq!(load.submitted, load.completed + load.given_up, "every image ends, once");
    engine.stop();
}

#[test]
fn a_job_sent_and_given_up_while_the_engine_looks_is_never_missed() {
    const JOBS: u64 = 20_000;
    let mut rig = Rig::new(1);
    let shared = Arc::new(Shared::new(Scripted::new(1).0.spec(), 1, &config(8), Instant::now()));
    let shard = Arc::clone(&shared.shards[0]);
    let (sender, receiver) = sync_channel(4);
    let inbox = Inbox { receiver, shared, shard: Arc::clone(&shard), commands: 4 };
    std::thread::scope(|scope| {
        let client = scope.spawn(move || {
            for id in (0..JOBS).map(JobId) {
                let part = Part::new(Arc::new(Whole::new(id, Vec::new())), Arc::clone(&shard), Kind::Sampling, 1);
                let promise = Promise::new(Arc::new(SampleBuffer::new(&job(1, 1))), part);
                sender.send(Command::Sample { id, job: Arc::new(job(1, 1)), images: 0..1, promise }).unwrap();
                shard.cancelled.push(id);
            }
        });
        while !client.is_finished() {
            inbox.receive(&mut rig.core);
        }
    });
    inbox.receive(&mut rig.core);
    assert_eq!(rig.shard.gauges.load(clock()).queued, 0);
}

#[tokio::test]
async fn a_model_that_cannot_go_on_ends_every_stream_and_takes_nothing_more() {
    let faults = [
        vec![Fault::Error(ModelError::Fatal("device lost".into()))],
        vec![Fault::Panic, Fault::Error(ModelError::Step("again".into()))],
    ];
    for faults in faults {
        let Daemon { handle, script, engine } = engine(1, 8);
        script.shut();
        let mut streams: Vec<_> = (0..4).map(|seed| handle.sample(job(seed, 2), None).unwrap()).collect();
        let ticket = handle.score(score_job([image()]), None).unwrap();
        for (later, fault) in faults.into_iter().enumerate() {
            script.fail(Call::Step, 2 + later as u64, fault);
        }
        script.open_gate();
        for stream in &mut streams {
            engine_fault(read(stream).await.1.err().as_ref());
        }
        // Scoring may have had its turn before.
        if let Err(error) = ticket.scores().await {
            engine_fault(Some(&error));
        }
        assert!(matches!(&*handle.health().borrow(), Health::Failed(_)));
        let Err(Error::ModelFailed { name, why }) = handle.sample(job(1, 1), None) else { panic!("it is broken") };
        assert!(name == "scripted" && (why == "device lost" || why.contains("twice in a row: again")), "{why}");
        assert!(matches!(handle.score(score_job([image()]), None), Err(Error::ModelFailed { .. })));
        handle.drain();
        engine.stop();
        assert!(matches!(&*handle.health().borrow(), Health::Failed(_)), "the first cause stays");
    }
}

#[tokio::test]
async fn values_sampled_before_a_fault_are_handed_out_before_it() {
    let Daemon { handle, script, .. } = engine(1, 8);
    script.fail(Call::Step, 6, Fault::Panic);
    let mut stream = handle.sample(SampleJob { granularity: Granularity::Row, ..job(1, 1) }, None).unwrap();
    let (images, end) = read(&mut stream).await;
    assert_eq!(images[0], alone(&job(1, 1))[0].0[..6]);
    engine_fault(end.err().as_ref());
    assert!(stream.next(None).await.is_none());
    assert_eq!(read(&mut handle.sample(job(2, 1), None).unwrap()).await.1, Ok(()), "the engine goes on");
}

#[tokio::test]
async fn a_model_that_does_not_warm_up_is_never_ready() {
    let (model, script) = Scripted::new(1);
    script.fail(Call::Step, 1, Fault::Panic);
    let engine = Engine::start(Box::new(model), 1, config(8)).unwrap();
    let handle = engine.handle();
    // It may have been taken in before the fault, or refused after it.
    if let Ok(mut stream) = handle.sample(job(1, 1), None) {
        engine_fault(read(&mut stream).await.1.err().as_ref());
    }
    let mut health = handle.health();
    assert!(matches!(&*health.wait_for(|health| *health != Health::Warming).await.unwrap(), Health::Failed(_)));
    engine.stop();
}

#[tokio::test]
async fn stopping_ends_whatever_is_left() {
    let Daemon { handle, script, engine } = engine(1, 8);
    script.shut();
    let mut streams: Vec<_> = (0..3).map(|seed| handle.sample(job(seed, 2), None).unwrap()).collect();
    let ticket = handle.score(score_job([image()]), None).unwrap();
    script.wait_until_held();
    let stopping = std::thread::Builder::new().spawn(|| engine.stop()).unwrap();
    let mut health = handle.health();
    health.wait_for(|health| *health == Health::Draining).await.unwrap();
    assert_eq!(handle.sample(job(1, 1), None).unwrap_err(), Error::Draining);
    // The end is set after the health changes; the job must not be done before the engine sees it.
    while handle.shared.end().is_none() {
        tokio::task::yield_now().await;
    }
    script.open_gate();
    for stream in &mut streams {
        assert_eq!(read(stream).await.1, Err(Error::Draining));
    }
    assert_eq!(ticket.scores().await.unwrap_err(), Error::Draining);
    stopping.join().unwrap();
    assert_eq!(handle.score(score_job([image()]), None).unwrap_err(), Error::Draining);
}

#[tokio::test]
async fn an_idle_engine_stops_and_one_without_handles_ends() {
    let Daemon { engine, handle, .. } = engine(1, 8);
    settled(&handle).await;
    engine.stop();
    let Daemon { engine, handle, script } = super::threads::engine(1, 8);
    let mut stream = handle.sample(job(1, 1), None).unwrap();
    drop((engine, handle));
    assert_eq!(read(&mut stream).await.1, Ok(()), "what was admitted goes on");
    drop(stream);
    while Arc::strong_count(&script) > 1 {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn draining_lets_what_was_admitted_finish() {
    let Daemon { handle, script, engine } = engine(1, 8);
    script.shut();
    let mut stream = handle.sample(job(1, 2), None).unwrap();
    let ticket = handle.score(score_job([image()]), None).unwrap();
    handle.drain();
    assert_eq!(handle.sample(job(1, 1), None).unwrap_err(), Error::Draining);
    assert!(time::timeout(Duration::from_millis(5), handle.drained()).await.is_err());
    script.open_gate();
    assert_eq!(read(&mut stream).await.1, Ok(()));
    ticket.scores().await.unwrap();
    assert!(time::timeout(Duration::from_millis(5), handle.drained()).await.is_err(), "the stream has its permits");
    drop(stream);
    handle.drained().await;
    assert_eq!(handle.sample(job(1, 1), None).unwrap_err(), Error::Draining);
    engine.stop();
}
