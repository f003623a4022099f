//! `pixeld health`: whether a server serves, for scripts and for the health check of a container.

use std::time::Duration;

use clap::Args;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::access::Access;
use super::connect::{self, Target};
use super::failure::Failure;
use super::output;

/// A server that does not say how it is in this time is not well.
const TIMEOUT: Duration = Duration::from_secs(5);

const AFTER_HELP: &str = "\
Exit codes: 0 it serves, 64 there is no such name, 69 it does not serve or is not there.

Examples:
  pixeld health --endpoint http://127.0.0.1:50051
  pixeld health --endpoint http://127.0.0.1:50051 models/digits";

/// Flags of `pixeld health`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Health {
    /// What to ask for: readiness, liveness, models/NAME or a service by its full name
    #[arg(default_value = "readiness")]
    name: String,
    /// Server to ask, or its listener of probes (health.listen), which asks for no token and speaks no TLS
    #[arg(long, value_name = "URL")]
    endpoint: String,
    #[command(flatten)]
    access: Access,
}

impl Health {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let target = Target::Remote(Box::new(self.access.remote(&self.endpoint)?));
        let mut request = Request::new(HealthCheckRequest { service: self.name.clone() });
        request.set_timeout(TIMEOUT);
        let answer = connect::with(target, async |channel| {
            let checked = HealthClient::new(channel.clone()).check(request).await;
            checked.map_err(|status| match status.code() {
                Code::NotFound => {
                    Failure::Usage(format!("the server knows no {:?}: see `pixeld health --help`", self.name))
                }
                _ => status.into(),
            })
        });
        match answer.await?.into_inner().status() {
            ServingStatus::Serving => output::line(&format!("{} serves", self.name)),
            _ => Err(Failure::Unavailable(format!("{} does not serve", self.name))),
        }
    }
}
