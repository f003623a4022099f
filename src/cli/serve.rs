//! `pixeld serve`: the daemon.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;
use super::source::Settings;
use super::{output, packages};
use crate::config::AdminAddress;
use crate::engine::{self, catalogue::Catalogue};
use crate::fleet::{Fleet, Rescan};
use crate::rpc::{AdminListener, Listener, LogFilter, serves};
use crate::security::Security;
use crate::telemetry::{self, metrics};

const AFTER_HELP: &str = "\
Prints `listening on ADDRESS` to standard output once clients can connect, `ready` once no model loads any more, and logs to standard error. The first SIGTERM
or SIGINT lets running requests finish within server.drain_timeout; the second ends at once. SIGHUP looks for packages: new
ones are loaded, changed ones reloaded beside the revision that serves.

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
        let telemetry = telemetry::init(&config.log, &config.trace)
            .map_err(|error| Failure::Usage(format!("trace.endpoint: {error}")))?;
        let (mut signals, hangups) = (Signals::new()?, listen(SignalKind::hangup())?);
        let security = Security::load(config.server.tls.as_ref(), &config.auth)?;
        let address = config.server.listen;
        let listener = Listener::bind(address).await.map_err(|error| {
            Failure::Usage(format!("cannot listen on {address}: {error}; choose another with --listen"))
        })?;
        let probes = match config.health.listen {
            Some(address) => Some(
                Listener::bind(address)
                    .await
                    .map_err(|error| Failure::Usage(format!("health.listen: cannot listen on {address}: {error}")))?,
            ),
            None => None,
        };
        let bound = listener.local_addr().map_err(|error| Failure::Internal(error.to_string()))?;
        let [protected, open] = security.groups();
        tracing::info!(
            tls = security.tls().is_some(),
            protected,
            open,
            "access: groups that need a token and those open"
        );
        if let Some(warning) = security.warning(bound) {
            tracing::warn!(%bound, warning);
        }
        if let Some(listen) = config.metrics.listen {
            metrics::serve(listen)
                .map_err(|error| Failure::Usage(format!("metrics.listen: cannot listen on {listen}: {error}")))?;
        }
        let (observing, admin) = (config.metrics.listen.is_some(), config.admin.listen.clone());
        let admin = match &admin {
            Some(address) => Some(
                bind(address)
                    .await
                    .map_err(|error| Failure::Usage(format!("admin.listen: cannot listen on {address}: {error}")))?,
            ),
            None => None,
        };
        let log = telemetry.filter();
        let log = LogFilter::new(move |filter| log.set(filter));
        let mut app = packages::start(config)?.guarded(security).logging(log);
        if let Some(probes) = probes {
            let bound = probes.local_addr().map_err(|error| Failure::Internal(error.to_string()))?;
            tracing::info!(%bound, "answering probes");
            app.answer_probes(probes).await;
        }
        if let Some(admin) = admin {
            app.administer(admin).map_err(|error| Failure::Internal(error.to_string()))?;
        }
        if observing {
            tokio::spawn(observe(app.catalogue().clone()));
        }
        if let Some(patience) = sd_notify::watchdog_enabled() {
            tokio::spawn(tell_of_life(app.catalogue().clone(), patience));
        }
        tokio::spawn(rescan(hangups, app.fleet().clone()));
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
    let (mut ticks, mut seen) = (tokio::time::interval(Duration::from_secs(1)), BTreeSet::new());
    loop {
        ticks.tick().await;
        engine::observe(&catalogue, &mut seen);
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

async fn bind(address: &AdminAddress) -> std::io::Result<AdminListener> {
    match address {
        AdminAddress::Unix(path) => AdminListener::unix(path),
        AdminAddress::Loopback(address) => AdminListener::loopback(*address).await,
    }
}

/// Looks for packages whenever it is told to.
async fn rescan(mut hangups: Signal, fleet: Fleet) {
    while hangups.recv().await.is_some() {
        tracing::info!("looking for packages");
        match fleet.rescan().await {
            Ok(Rescan { loaded, reloaded, unchanged, failed }) => {
                let failed: Vec<_> = failed.into_iter().map(|(name, _)| name).collect();
                tracing::info!(?loaded, ?reloaded, ?unchanged, ?failed, "looked for packages");
            }
            Err(why) => tracing::error!(why, "cannot look for packages"),
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::Internal(format!("cannot wait for signals: {error}")))
}

/// The two signals that end a daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
