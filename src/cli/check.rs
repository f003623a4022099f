//! `pixeld check`: everything that could keep a server from serving, found before it is one.

use clap::Args;

use super::connect::Target;
use super::failure::Failure;
use super::models::table;
use super::source::Settings;
use super::{client, connect, output};
use crate::rpc::proto::ModelState;
use crate::security::Security;

const AFTER_HELP: &str = "\
Prints the configuration in force as TOML, reads the files of server.tls and auth, then loads every package as the server would (weights are checked, the model
is warmed up, its golden examples are compared) and prints what came of it.

Examples:
  pixeld check --config pixeld.toml
  pixeld check --models ./models --set engine.slots=64
  pixeld check --print-config > pixeld.toml";

/// Flags of `pixeld check`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Check {
    #[command(flatten)]
    settings: Settings,
    /// Stop after the configuration
    #[arg(long)]
    print_config: bool,
}

impl Check {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let config = self.settings.load(None, None)?;
        output::line(config.to_string().trim_end())?;
        if self.print_config {
            return Ok(());
        }
        Security::load(config.server.tls.as_ref(), &config.auth)?;
        // No log: whatever it would say is in the table.
        let models = connect::with(Target::Local(Box::new(config)), client::list).await?;
        output::line(&format!("\n{}", table(&models)))?;
        let refused = models.iter().filter(|model| model.state() != ModelState::Ready).count();
        match refused {
            0 => Ok(()),
            _ => Err(Failure::Usage(format!("{refused} of {} models cannot be served", models.len()))),
        }
    }
}
