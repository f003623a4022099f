//! Who may speak to the daemon, and over what: TLS, certificates of clients, bearer tokens. Knows nothing of gRPC.
//!
//! Everything comes from files, which are read again when they change (`watched`).

mod tls;
mod tokens;
mod watched;

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use rustls::ServerConfig;

pub use self::tls::TlsFiles;
use self::tokens::Tokens;
pub use self::tokens::{Group, TokenFiles, first_token};
use self::watched::Watched;
use crate::error::{Error, Violations};

/// What guards a listener. Cheap to clone; the default guards nothing.
#[derive(Clone, Debug, Default)]
pub struct Security {
    tls: Option<Watched<Arc<ServerConfig>>>,
    tokens: Tokens,
}

impl Security {
    /// Reads all files, and goes on reading them as long as the result lives: what is in force changes with them, and stays
    /// when they become unusable. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Every file that cannot be used, under its configuration key.
    pub fn load(tls: Option<&TlsFiles>, tokens: &TokenFiles) -> Result<Self, Violations> {
        match (tls.map(tls::watch).transpose(), Tokens::watch(tokens)) {
            (Ok(tls), Ok(tokens)) => Ok(Self { tls, tokens }),
            (tls, tokens) => {
                let mut faults = Violations::new();
                tls.err().into_iter().chain(tokens.err()).for_each(|more| faults.add_all(more));
                Err(faults)
            }
        }
    }

    /// How a connection that comes now is encrypted; `None`: not at all.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(Watched::now)
    }

    /// The same for a listener that no network reaches: tokens, and no TLS.
    #[must_use]
    pub fn within_the_machine(&self) -> Self {
        Self { tls: None, tokens: self.tokens.clone() }
    }

    /// Whether a request with these headers may use `group`.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], the same whatever is missing or wrong.
    pub fn check(&self, group: Group, headers: &HeaderMap) -> Result<(), Error> {
        self.tokens.check(group, headers)
    }

    /// What is dangerous about listening on `address` like this, for the log.
    #[must_use]
    pub fn warning(&self, address: SocketAddr) -> Option<&'static str> {
        let exposed = !address.ip().to_canonical().is_loopback();
        match (exposed && self.tls.is_none(), self.tokens.is_empty()) {
            (true, true) => Some(
                "anybody who reaches this address may use it, and others can read along: neither server.tls nor auth is set",
            ),
            (true, false) => {
                Some("tokens cross the network in the clear, for others to read and use: server.tls is not set")
            }
            (false, _) => None,
        }
    }

    /// The groups that need a token, and those that do not, in words.
    #[must_use]
    pub fn groups(&self) -> [String; 2] {
        self.tokens.groups()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_exposed_to_the_network_is_warned_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let tokens = Security::load(None, &[(Group::Scoring, file.path().to_owned())].into()).unwrap();
        let warned = |security: &Security, address: &str| security.warning(address.parse().unwrap());
        for loopback in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(warned(&Security::default(), loopback), None, "{loopback}");
            assert_eq!(warned(&tokens, loopback), None, "{loopback}");
        }
        for exposed in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            assert!(warned(&Security::default(), exposed).unwrap().contains("anybody"), "{exposed}");
            assert!(warned(&tokens, exposed).unwrap().contains("in the clear"), "{exposed}");
        }
    }
}
