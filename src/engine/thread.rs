//! The engine thread: receive, tick, repeat.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::core::{Command, Core, Tick};
use super::guarded::message;
use super::handle::Handle;
use super::health::Health;
use super::shared::Shared;
use crate::error::Error;
use crate::model::PixelModel;

/// Commands that may wait for the engine to take them in. It does so between any two steps, so this is only met by a
/// burst within one step; whoever comes on top is refused like anyone who finds the queue full.
const MAX_COMMANDS: u32 = 1024;

/// Settings of one engine, from the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineConfig {
    /// Sampling images, and scoring images, that may wait.
    pub queue_images: u32,
    /// Share of the time that scoring gets while both kinds of work wait, above 0 and below 1.
    pub score_share: f64,
}

/// A running engine thread. Dropped instead of stopped, it goes on until the last handle is gone and its work is done.
#[derive(Debug)]
pub struct Engine {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Engine {
    /// Starts the thread; it warms the model up and then serves. What is asked of it meanwhile waits.
    ///
    /// # Errors
    /// What kept the thread from starting.
    pub fn start(model: Box<dyn PixelModel>, config: EngineConfig) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(model.spec(), config.queue_images, Instant::now()));
        let commands = shared.most_images().min(MAX_COMMANDS);
        let (sender, receiver) = sync_channel(commands as usize);
        let core = Core::new(model, config.score_share, Instant::now, Arc::clone(&shared.gauges));
        let inbox = Inbox { receiver, shared: Arc::clone(&shared), commands };
        let thread = std::thread::Builder::new()
            .name(format!("engine-{}", shared.spec.name))
            .spawn(move || serve(core, &inbox))?;
        Ok(Self { handle: Handle::new(sender, shared), thread })
    }

    /// A handle to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends whatever is left with [`Error::Draining`] and waits for the thread, which is as long as a step takes.
    pub fn stop(self) {
        self.handle.stop();
        if let Err(payload) = self.thread.join() {
            tracing::error!(cause = message(payload.as_ref()), "engine thread panicked");
        }
    }
}

/// Where commands and cancellations come in.
pub(super) struct Inbox {
    pub(super) receiver: Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    /// Most commands that wait.
    pub(super) commands: u32,
}

impl Inbox {
    /// Takes in everything that has arrived.
    ///
    /// Cancellations are taken off their list before commands are received, and applied after: a job is cancelled only
    /// once it was sent, so the command of every cancellation on the list has been received by the time it is applied. The
    /// other way round, a job sent and cancelled in between would be cancelled first, in vain, and then run.
    pub(super) fn receive(&self, core: &mut Core) {
        let cancelled = self.shared.cancelled.take();
        self.receiver.try_iter().take(self.commands as usize).for_each(|command| core.apply(command));
        cancelled.into_iter().for_each(|job| core.cancel(job));
    }
}

/// The whole life of the thread. What it leaves behind on a panic of its own, readers learn from their promises.
fn serve(mut core: Core, inbox: &Inbox) {
    let _obituary = Obituary(Arc::clone(&inbox.shared));
    let end = core.warm_up().map_err(|error| error.to_string()).and_then(|()| {
        inbox.shared.change_health(|health| (*health == Health::Warming).then_some(Health::Ready));
        work(&mut core, inbox)
    });
    let error = match end {
        Ok(()) => Error::Draining,
        Err(why) => {
            tracing::error!(model = inbox.shared.spec.name, why, "engine failed");
            let public = Error::EngineFault("the model broke down".into());
            inbox.shared.fail(why);
            public
        }
    };
    inbox.receive(&mut core);
    core.end_all(&error);
}

/// Ticks until there is nobody left to work for, or told to stop. An error is the end of the model.
fn work(core: &mut Core, inbox: &Inbox) -> Result<(), String> {
    while !inbox.shared.is_stopping() {
        match core.tick(|core| inbox.receive(core)) {
            Tick::Worked => {}
            Tick::Fatal(why) => return Err(why),
            // No lost wake-up: a command is in the channel before anyone waits for what comes of it, a cancellation
            // needs no attention while there is no work, and whoever sets the stop flag sends a command after it.
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
