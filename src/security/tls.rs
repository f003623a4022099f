//! TLS: the certificate of the daemon, and the authority whose clients are let in.
//!
//! The three files become one configuration, which is replaced as a whole. A session that was resumed is therefore never
//! older than the authority in force.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use humantime_serde::re::humantime::format_rfc3339_seconds;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};

use super::watched::{Named, Watched};
use crate::error::Violations;

const CERTIFICATE: &str = "server.tls.certificate";
const KEY: &str = "server.tls.key";
const CLIENT_CA: &str = "server.tls.client_ca";
/// The one protocol above TLS that is spoken: HTTP/2.
const ALPN: &[u8] = b"h2";

/// Where certificates are, each a PEM file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the daemon, then those between it and the authority's.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities; a client must show a certificate of one of them. `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The configuration that the files come to, now and whenever they change.
pub(super) fn watch(files: &TlsFiles) -> Result<Watched<Arc<ServerConfig>>, Violations> {
    let TlsFiles { certificate, key, client_ca } = files.clone();
    let named = |key, path| Named { key, path };
    let mut files = vec![named(CERTIFICATE, certificate), named(KEY, key)];
    files.extend(client_ca.map(|path| named(CLIENT_CA, path)));
    Watched::load(files, |files, contents| server(files, contents).map(Arc::new))
}

fn server(files: &[Named], contents: &[Vec<u8>]) -> Result<ServerConfig, Violations> {
    let mut each = files.iter().zip(contents);
    let (Some(certificate), Some(key)) = (each.next(), each.next()) else {
        return Err(Violations::one(CERTIFICATE, "must be set with server.tls.key"));
    };
    let chain = certificates(certificate)?;
    let until = valid_until(certificate.0, &chain)?;
    let private = PrivateKeyDer::from_pem_slice(key.1).map_err(|error| {
        let why = match error {
            pem::Error::NoItemsFound => "it holds no PEM block of a private key (an encrypted one cannot be read)",
            _ => "its PEM is damaged",
        };
        unusable(key.0, why)
    })?;
    let provider = Arc::new(ring::default_provider());
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(certificate.0, error))?;
    let clients = match each.next() {
        None => versions.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(authority)? {
                roots.add(root).map_err(|error| unusable(authority.0, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            versions.with_client_cert_verifier(verifier.map_err(|error| unusable(authority.0, error))?)
        }
    };
    let mut config = clients.with_single_cert(chain, private).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            unusable(key.0, format!("it is not the key of the certificate in {}", certificate.0.path.display()))
        }
        other => unusable(key.0, other),
    })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    tracing::info!(certificate = %certificate.0.path.display(), until, "TLS is on");
    Ok(config)
}

fn unusable(file: &Named, why: impl std::fmt::Display) -> Violations {
    Violations::one(file.key, format!("cannot use {}: {why}", file.path.display()))
}

fn certificates((file, content): (&Named, &Vec<u8>)) -> Result<Vec<CertificateDer<'static>>, Violations> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(content)
        .collect::<Result<_, _>>()
        .map_err(|_| unusable(file, "its PEM is damaged"))?;
    if all.is_empty() {
        return Err(unusable(file, "it holds no PEM block of a certificate"));
    }
    Ok(all)
}

/// When the first certificate of `chain` to expire does.
fn valid_until(file: &Named, chain: &[CertificateDer<'_>]) -> Result<String, Violations> {
    let mut first = None;
    for certificate in chain {
        let parsed = EndEntityCert::try_from(certificate).map_err(|error| unusable(file, error))?;
        // There is nobody to trust, so this fails in any case: on the validity first, if that is what is wrong.
        let check = |time| parsed.verify_for_usage(&[], &[], &[], time, KeyUsage::server_auth(), None, None).err();
        match check(UnixTime::now()) {
            Some(webpki::Error::CertExpired { not_after, .. }) => {
                return Err(unusable(file, format!("a certificate in it expired at {}", date(not_after))));
            }
            Some(webpki::Error::CertNotValidYet { not_before, .. }) => {
                return Err(unusable(file, format!("a certificate in it is valid from {} on", date(not_before))));
            }
            Some(webpki::Error::InvalidCertValidity) => {
                return Err(unusable(file, "a certificate in it ends before it begins"));
            }
            _ => {}
        }
        if let Some(webpki::Error::CertExpired { not_after, .. }) = check(FAR) {
            first = first.into_iter().chain([not_after]).min();
        }
    }
    Ok(first.map_or_else(|| "for ever".to_owned(), date))
}

/// After the end of every certificate but those that have none, by convention the last second of the year 9999.
const FAR: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(253_402_300_799));

fn date(time: UnixTime) -> String {
    // A certificate's year has four digits, which this can format.
    format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())).to_string()
}
