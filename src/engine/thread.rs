//! The threads of an engine, one for each shard: receive, tick, repeat.

use std::io;
use std::iter;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::core::{Command, Core, Tick};
use super::guarded::message;
use super::handle::Handle;
use super::shared::{Shard, Shared};
use crate::error::Error;
use crate::model::PixelModel;

/// Commands that may wait for a shard to take them in. It does so between any two steps, so this is only met by a
/// burst within one step; whoever comes on top is refused like anyone who finds the queue full.
const MAX_COMMANDS: u32 = 1024;

/// Settings of one engine, from the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineConfig {
    /// Sampling images, and scoring images, that may wait.
    pub queue_images: u32,
    /// Share of the time that scoring gets while both kinds of work wait, above 0 and below 1.
    pub score_share: f64,
    /// Share of the waiting images that may be of batch work, above 0 and below 1.
    pub batch_share: f64,
    /// An engine that has work and gets nothing done for this long hangs.
    pub stall_timeout: Duration,
}

impl Default for EngineConfig {
    /// What the example configuration has.
    fn default() -> Self {
        Self { queue_images: 1024, score_share: 0.25, batch_share: 0.5, stall_timeout: Duration::from_secs(60) }
    }
}

/// Running engine threads. Dropped instead of stopped, they go on until the last handle is gone and their work is done.
#[derive(Debug)]
pub struct Engine {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts `shards` threads (at least one) over `model` and shards of it. They warm up side by side and then serve. What
    /// is asked of them meanwhile waits.
    ///
    /// # Errors
    /// What kept a shard from being made, or its thread from starting.
    pub fn start(model: Box<dyn PixelModel>, shards: u32, config: EngineConfig) -> io::Result<Self> {
        let spec = model.spec().clone();
        let others = (1..shards).map(|_| model.shard(spec.slots).map_err(io::Error::other));
        let others = others.collect::<io::Result<Vec<_>>>()?;
        let shared = Arc::new(Shared::new(&spec, shards.max(1), &config, Instant::now()));
        let commands = shared.most_images().min(MAX_COMMANDS);
        let (mut senders, mut threads) = (Vec::new(), Vec::new());
        for (index, (model, shard)) in iter::once(model).chain(others).zip(&shared.shards).enumerate() {
            let (sender, receiver) = sync_channel(commands as usize);
            let core = Core::new(model, config.score_share, Instant::now, Arc::clone(shard));
            let inbox = Inbox { receiver, shared: Arc::clone(&shared), shard: Arc::clone(shard), commands };
            let thread = std::thread::Builder::new().name(format!("engine-{}-{index}", spec.name));
            threads.push(thread.spawn(move || serve(core, &inbox))?);
            senders.push(sender);
        }
        Ok(Self { handle: Handle::new(senders, shared), threads })
    }

    /// A handle to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends whatever is left with [`Error::Draining`] and waits for the threads, which is as long as a step takes.
    pub fn stop(self) {
        self.stop_with(Error::Draining);
    }

    /// The same with another error.
    pub fn stop_with(self, error: Error) {
        self.handle.stop(error);
        for thread in self.threads {
            if let Err(payload) = thread.join() {
                tracing::error!(cause = message(payload.as_ref()), "engine thread panicked");
            }
        }
    }
}

/// Where a shard's commands and cancellations come in.
pub(super) struct Inbox {
    pub(super) receiver: Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) shard: Arc<Shard>,
    /// Most commands that wait.
    pub(super) commands: u32,
}

impl Inbox {
    /// Takes in everything that has arrived.
    ///
    /// Cancellations are taken off their list before commands are received, and applied after: a job is given up only
    /// once it was sent, so the command of every cancellation on the list has been received by the time it is applied. The
    /// other way round, a job sent and cancelled in between would be cancelled first, in vain, and then run. A job that
    /// fails in another shard before this one's part was sent is over when the part comes, and not begun.
    pub(super) fn receive(&self, core: &mut Core) {
        let cancelled = self.shard.cancelled.take();
        self.receiver.try_iter().take(self.commands as usize).for_each(|command| core.apply(command));
        cancelled.into_iter().for_each(|job| core.cancel(job));
    }
}

/// The whole life of the thread. What it leaves behind on a panic of its own, readers learn from their promises.
fn serve(mut core: Core, inbox: &Inbox) {
    let _obituary = Obituary(Arc::clone(&inbox.shared));
    let end = core.warm_up().map_err(|error| error.to_string()).and_then(|()| {
        inbox.shared.warmed();
        work(&mut core, inbox)
    });
    if let Err(why) = end {
        tracing::error!(model = inbox.shared.spec.name, why, "engine failed");
        inbox.shared.fail(why);
    }
    inbox.receive(&mut core);
    core.end_all(inbox.shared.end().unwrap_or(&Error::Draining));
}

/// Ticks until there is nobody left to work for, the engine is stopped, or another shard has failed. An error is the end of
/// the model.
fn work(core: &mut Core, inbox: &Inbox) -> Result<(), String> {
    while inbox.shared.end().is_none() {
        match core.tick(|core| inbox.receive(core)) {
            Tick::Worked => {}
            Tick::Fatal(why) => return Err(why),
            // No lost wake-up: a command is in the channel before anyone waits for what comes of it, a cancellation
            // needs no attention while there is no work, whoever stops the engine sends a command after it, and where
            // another shard has failed nothing comes any more that would have to be ended.
            Tick::Idle => match inbox.receiver.recv() {
                Ok(command) => {
                    core.apply(command);
                    inbox.receive(core);
                }
                Err(_) => break,
            },
        }
    }
    Ok(())
}

/// Marks the engine as failed should its thread panic outside the model, before any reader learns that it is gone.
struct Obituary(Arc<Shared>);

impl Drop for Obituary {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the engine thread panicked".into());
        }
    }
}
