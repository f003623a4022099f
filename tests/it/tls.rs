//! TLS: who is let in, what is refused at the start, and certificates that change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::model_service_client::ModelServiceClient;
use pixeld::rpc::proto::{ListModelsRequest, Model};
use pixeld::security::{Security, TlsFiles};
use rcgen::date_time_ymd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::{Daemon, connect, patiently, read, stream};
use crate::pki::{Authority, Files, Pair, connect_tls, over_tls};

async fn list(channel: Channel) -> Result<Vec<Model>, Status> {
    let listed =
        patiently(async { ModelServiceClient::new(channel).list_models(ListModelsRequest::default()).await }).await;
    listed.map(|answer| answer.into_inner().models)
}

/// Whether somebody who trusts `authority` and shows `identity` is answered.
async fn answered(address: SocketAddr, authority: &Authority, identity: Option<&Pair>) -> bool {
    let listed = list(connect_tls(address, &authority.pem(), identity)).await;
    if let Err(status) = &listed {
        assert!(matches!(status.code(), Code::Unavailable | Code::Unknown), "{status:?}");
        assert!(std::error::Error::source(status).is_some(), "the connection ends, not the call: {status:?}");
    }
    listed.is_ok()
}

/// Waits until somebody is answered, or is not.
async fn becomes(expected: bool, address: SocketAddr, authority: &Authority, identity: Option<&Pair>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    patiently(async {
        while answered(address, authority, identity).await != expected {
            ticks.tick().await;
        }
    })
    .await;
}

#[tokio::test]
async fn calls_are_served_over_tls_to_those_who_trust_the_authority_and_never_in_the_clear() {
    let (ours, other, files) = (Authority::new("ours"), Authority::new("other"), Files::new());
    let (daemon, _gate) = Daemon::gated(4, over_tls(files.tls(&ours.issue(), None))).await;
    let channel = connect_tls(daemon.address, &ours.pem(), None);
    assert_eq!(list(channel.clone()).await.unwrap().len(), 1);
    let events = GenerationServiceClient::new(channel).stream_generate_images(stream(2, 7)).await.unwrap();
    assert_eq!(read(events.into_inner()).await.unwrap().values.len(), 2);
    assert!(!answered(daemon.address, &other, None).await);
    assert!(list(connect(daemon.address)).await.is_err(), "plain text is no TLS");
}

#[tokio::test]
async fn where_clients_need_a_certificate_only_one_of_their_authority_lets_in() {
    let [ours, clients, other] = ["ours", "clients", "other"].map(Authority::new);
    let files = Files::new();
    let (daemon, _gate) = Daemon::gated(4, over_tls(files.tls(&ours.issue(), Some(&clients)))).await;
    let expired = clients.issue_with(|params| params.not_after = date_time_ymd(2020, 1, 1));
    assert!(answered(daemon.address, &ours, Some(&clients.issue())).await);
    for (identity, why) in [
        (None, "none"),
        (Some(other.issue()), "a stranger's"),
        (Some(ours.issue()), "the server's"),
        (Some(expired), "expired"),
    ] {
        assert!(!answered(daemon.address, &ours, identity.as_ref()).await, "{why}");
    }
    // Who the clients' authority is may change too.
    files.write("clients.pem", &other.pem());
    becomes(true, daemon.address, &ours, Some(&other.issue())).await;
    assert!(!answered(daemon.address, &ours, Some(&clients.issue())).await);
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_or_a_cut_stream_and_a_bad_one_is_not() {
    let [old, new] = ["old", "new"].map(Authority::new);
    let files = Files::new();
    let (daemon, gate) = Daemon::gated(4, over_tls(files.tls(&old.issue(), None))).await;
    gate.allow(2);
    let channel = connect_tls(daemon.address, &old.pem(), None);
    let events = GenerationServiceClient::new(channel).stream_generate_images(stream(1, 7)).await.unwrap();
    gate.blocked().await;
    // First the certificate without its key: both stay.
    let next_one = new.issue();
    files.write("server.pem", &next_one.certificate);
    tokio::time::timeout(Duration::from_secs(5), becomes(true, daemon.address, &new, None)).await.unwrap_err();
    assert!(answered(daemon.address, &old, None).await);
    files.write("server.key", &next_one.key);
    becomes(true, daemon.address, &new, None).await;
    assert!(!answered(daemon.address, &old, None).await);
    gate.open();
    assert_eq!(read(events.into_inner()).await.unwrap().values[&0].len(), 60);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_at_the_start_by_key_and_name() {
    let (ours, files) = (Authority::new("ours"), Files::new());
    let (good, unlike) = (ours.issue(), ours.issue());
    let expired = ours.issue_with(|params| params.not_after = date_time_ymd(2020, 2, 3));
    let early = ours.issue_with(|params| params.not_before = date_time_ymd(3000, 1, 1));
    let chain = format!("{}{}", good.certificate, expired.certificate);
    let damaged = good.certificate.replace("MII", "@II");
    let encrypted = good.key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    for (certificate, key, client_ca, at, why) in [
        (&good.certificate, &unlike.key, None, "server.tls.key", "it is not the key of the certificate in"),
        (&expired.certificate, &expired.key, None, "server.tls.certificate", "expired at 2020-02-03T00:00:00Z"),
        (&early.certificate, &early.key, None, "server.tls.certificate", "is valid from 3000-01-01T00:00:00Z on"),
        (&chain, &good.key, None, "server.tls.certificate", "expired at 2020-02-03T00:00:00Z"),
        (&damaged, &good.key, None, "server.tls.certificate", "its PEM is damaged"),
        (&good.key, &good.key, None, "server.tls.certificate", "it holds no PEM block of a certificate"),
        (&good.certificate, &good.certificate, None, "server.tls.key", "it holds no PEM block of a private key"),
        (&good.certificate, &encrypted, None, "server.tls.key", "it holds no PEM block of a private key"),
        (
            &good.certificate,
            &good.key,
            Some(&good.key),
            "server.tls.client_ca",
            "it holds no PEM block of a certificate",
        ),
    ] {
        let tls = TlsFiles {
            certificate: files.write("certificate.pem", certificate),
            key: files.write("key.pem", key),
            client_ca: client_ca.map(|content| files.write("ca.pem", content)),
        };
        let text = Security::load(Some(&tls), &[].into()).unwrap_err().to_string();
        let named: PathBuf = match at {
            "server.tls.key" => tls.key,
            "server.tls.client_ca" => tls.client_ca.unwrap(),
            _ => tls.certificate,
        };
        let expected = format!("{at}: cannot use {}: ", named.display());
        assert!(text.starts_with(&expected) && text.contains(why), "{why}: {text}");
        assert!(!text.contains("MI"), "what a file says is not told: {text}");
    }
}

#[tokio::test]
async fn a_client_that_stops_in_the_handshake_holds_up_nobody_and_is_let_go() {
    for (limit, ends) in [(Duration::from_secs(600), false), (Duration::from_secs(1), true)] {
        let (ours, files) = (Authority::new("ours"), Files::new());
        let mut config = over_tls(files.tls(&ours.issue(), None));
        config.server.connections.handshake_timeout = limit;
        let (daemon, _gate) = Daemon::gated(4, config).await;
        let mut silent = TcpStream::connect(daemon.address).await.unwrap();
        // The head of a record that would be 512 bytes long.
        silent.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).await.unwrap();
        assert!(answered(daemon.address, &ours, None).await);
        if ends {
            assert_eq!(patiently(silent.read(&mut [0; 64])).await.unwrap_or_default(), 0);
        }
    }
}
