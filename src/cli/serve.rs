//! `pixeld serve`: the daemon.

use std::time::Duration;

use clap::Args;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;
use super::source::Settings;
use super::{output, packages};
use crate::app::App;
use crate::engine::{self, catalogue::Catalogue};
use crate::rpc::{Listener, serves};
use crate::telemetry::{self, metrics};

const AFTER_HELP: &str = "\
Prints `listening on ADDRESS` to standard output once clients can connect, `ready` once no model loads any more, and logs to standard error. The first SIGTERM
or SIGINT lets running requests finish within server.drain_timeout; the second ends at once.

Examples:
  pixeld serve --models ./models
  pixeld serve --listen 0.0.0.0:50051 --config /etc/pixeld.toml
  PIXELD__ENGINE__SLOTS=64 pixeld serve --models /models --set log.json=true";

/// Flags of `pixeld serve`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Serve {
    /// Address and port to listen on; port 0 takes a free one (server.listen) [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let config = self.settings.load(self.listen.as_deref(), None)?;
        let _telemetry = telemetry::init(&config.log, &config.trace)
            .map_err(|error| Failure::Usage(format!("trace.endpoint: {error}")))?;
        let mut signals = Signals::new()?;
        let address = config.server.listen;
        let listener = Listener::bind(address).await.map_err(|error| {
            Failure::Usage(format!("cannot listen on {address}: {error}; choose another with --listen"))
        })?;
        let bound = listener.local_addr().map_err(|error| Failure::Internal(error.to_string()))?;
        if let Some(listen) = config.metrics.listen {
            metrics::serve(listen)
                .map_err(|error| Failure::Usage(format!("metrics.listen: cannot listen on {listen}: {error}")))?;
        }
        let sources = packages::sources(&config)?;
        let observing = config.metrics.listen.is_some();
        let app = App::start(config, sources);
        if observing {
            tokio::spawn(observe(app.catalogue().clone()));
        }
        if let Some(patience) = sd_notify::watchdog_enabled() {
            tokio::spawn(tell_of_life(app.catalogue().clone(), patience));
        }
        output::line(&format!("listening on {bound}"))?;

        let loaded = app.loaded();
        let ready = async {
            loaded.await;
            tell(NotifyState::Ready);
            if let Err(failure) = output::line("ready") {
                tracing::warn!(?failure, "nobody heard that the models are ready");
            }
            std::future::pending::<()>().await;
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut serving = Box::pin(app.serve(listener, async {
            _ = stopped.await;
        }));
        tokio::select! {
            ended = &mut serving => return ended.map_err(|error| Failure::Internal(error.to_string())),
            () = signals.next() => {
                tell(NotifyState::Stopping);
                tracing::info!("stopping; a second signal ends at once");
            }
            () = ready => {}
        }
        drop(stop);
        tokio::select! {
            ended = serving => ended.map_err(|error| Failure::Internal(error.to_string())),
            () = signals.next() => Err(Failure::Interrupted),
        }
    }
}

/// Keeps the gauges as they are.
async fn observe(catalogue: Catalogue) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        engine::observe(&catalogue);
        metrics::observe_process();
    }
}

/// Tells the service manager, where there is one (`NOTIFY_SOCKET`).
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// Tells a service manager that waits for it no longer than `patience` that the daemon lives, while it does.
async fn tell_of_life(catalogue: Catalogue, patience: Duration) {
    let mut ticks = tokio::time::interval(patience / 2);
    loop {
        ticks.tick().await;
        if serves(&catalogue, "liveness") {
            tell(NotifyState::Watchdog);
        }
    }
}

/// The two signals that end a daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::Internal(format!("cannot wait for signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
