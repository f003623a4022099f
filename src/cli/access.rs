//! What a server asks of its clients: flags that name certificates and a token, and how these reach it.

use std::path::{Path, PathBuf};

use clap::Args;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tonic::{Request, Status, transport};

use super::failure::Failure;
use super::input;
use crate::security::first_token;

/// A channel on which every call brings the token, if there is one.
pub(super) type Channel = InterceptedService<transport::Channel, Bearer>;

/// The variable that holds a token.
const TOKEN: &str = "PIXELD_TOKEN";
/// Bytes of a file: all authorities of a system take a quarter of it.
const MOST_BYTES: u64 = 1 << 20;

/// Flags of every command that may ask a server.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Access {
    /// PEM file of the authorities that may vouch for the server [default: those of the system]
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    tls_ca: Option<PathBuf>,
    /// PEM file of a certificate to show to the server
    #[arg(long, value_name = "FILE", requires_all = ["endpoint", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// PEM file of the key of --tls-cert
    #[arg(long, value_name = "FILE", requires_all = ["endpoint", "tls_cert"])]
    tls_key: Option<PathBuf>,
    /// File that begins with the token for the server [default: the token in the variable PIXELD_TOKEN, if any]
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    token_file: Option<PathBuf>,
}

/// A server elsewhere.
pub(super) struct Remote {
    pub(super) url: String,
    /// For `https`.
    pub(super) tls: ClientTlsConfig,
    pub(super) bearer: Bearer,
}

impl Access {
    /// The server of `url`, reached as the flags say.
    pub(super) fn remote(&self, url: &str) -> Result<Remote, Failure> {
        let Self { tls_ca, tls_cert, tls_key, .. } = self;
        let mut tls = ClientTlsConfig::new();
        tls = match tls_ca {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read("--tls-ca", path)?)),
            None => tls.with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (tls_cert, tls_key) {
            tls = tls.identity(Identity::from_pem(read("--tls-cert", certificate)?, read("--tls-key", key)?));
        }
        if [tls_ca, tls_cert].into_iter().any(Option::is_some) && !url.starts_with("https:") {
            return Err(Failure::Usage(format!(
                "--endpoint {url}: must be https://HOST:PORT with --tls-ca or --tls-cert"
            )));
        }
        Ok(Remote { url: url.to_owned(), tls, bearer: self.bearer()? })
    }

    /// The token of the flags, or of the environment.
    #[expect(clippy::disallowed_methods, reason = "a secret has no place in a configuration file or on a command line")]
    pub(super) fn bearer(&self) -> Result<Bearer, Failure> {
        match (&self.token_file, std::env::var_os(TOKEN)) {
            (Some(path), _) => {
                Bearer::new(&read("--token-file", path)?).map_err(|why| wrong("--token-file", path, &why))
            }
            (None, Some(token)) => {
                Bearer::new(token.as_encoded_bytes()).map_err(|why| Failure::Usage(format!("{TOKEN}: {why}")))
            }
            (None, None) => Ok(Bearer::default()),
        }
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    match input::bytes(path, MOST_BYTES) {
        Ok(Some(content)) => Ok(content),
        Ok(None) => Err(wrong(flag, path, &format!("it is longer than {MOST_BYTES} bytes"))),
        Err(error) => Err(wrong(flag, path, &error.to_string())),
    }
}

fn wrong(flag: &str, path: &Path, why: &str) -> Failure {
    Failure::Usage(format!("{flag} {}: {why}", path.display()))
}

/// Adds the token to a call.
#[derive(Clone, Default)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn new(content: &[u8]) -> Result<Self, String> {
        let token = first_token(content)?;
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| "it holds no token".to_owned())?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}
