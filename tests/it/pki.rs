//! Certificates made on the spot, their files, and clients that trust or show them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use pixeld::config::Config;
use pixeld::security::{Group, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::harness::config;

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Who signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this machine, for either end.
    pub(crate) fn issue(&self) -> Pair {
        self.issue_with(|_| {})
    }

    pub(crate) fn issue_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "pixeld of the tests");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// The files of a daemon, in a directory of their own.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, in place of one that was there at one stroke.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        fs::write(self.path("new"), content).unwrap();
        fs::rename(self.path("new"), self.path(name)).unwrap();
        self.path(name)
    }

    /// The certificate of the daemon and the authority of its clients, if there is one.
    pub(crate) fn tls(&self, Pair { certificate, key }: &Pair, client_ca: Option<&Authority>) -> TlsFiles {
        TlsFiles {
            certificate: self.write("server.pem", certificate),
            key: self.write("server.key", key),
            client_ca: client_ca.map(|authority| self.write("clients.pem", &authority.pem())),
        }
    }

    /// A file of tokens.
    pub(crate) fn tokens(&self, group: Group, tokens: &[&str]) -> (Group, PathBuf) {
        (group, self.write(&format!("{group:?}"), &tokens.join("\n")))
    }
}

/// The usual configuration, over TLS.
pub(crate) fn over_tls(tls: TlsFiles) -> Config {
    let mut config = config();
    config.server.tls = Some(tls);
    config
}

/// A connection of its own, made when it is first used.
pub(crate) fn connect_tls(address: SocketAddr, authority: &str, identity: Option<&Pair>) -> Channel {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    if let Some(Pair { certificate, key }) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().connect_lazy()
}
