//! `grpc.health.v1`, asked and watched.

use std::sync::mpsc;

use pixeld::app::{App, Source};
use pixeld::rpc::Listener;
use pixeld::rpc::proto::ListModelsRequest;
use pixeld::rpc::proto::model_service_client::ModelServiceClient;
use pixeld::security::{Group, Security};
use tokio::sync::oneshot;
use tonic::Code;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Daemon, MODEL, PATIENCE, config, connect, shape};
use crate::pki::{Authority, Files, over_tls};
use crate::steady::{Gate, Steady};

const NAMES: [&str; 7] = [
    "",
    "readiness",
    "liveness",
    "pixeld.v1.GenerationService",
    "pixeld.v1.ScoringService",
    "pixeld.v1.ModelService",
    "models/steady",
];

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn every_name_serves_once_the_models_do_and_unknown_names_are_not_found() {
    let daemon = Daemon::steady().await;
    let mut client = HealthClient::new(daemon.channel.clone());
    for name in NAMES {
        // The report follows the catalogue by a moment, so wait for it.
        let mut watch = client.watch(request(name)).await.unwrap().into_inner();
        while watch.message().await.unwrap().unwrap().status != ServingStatus::Serving as i32 {}
        let checked = client.check(request(name)).await.unwrap().into_inner();
        assert_eq!(checked.status, ServingStatus::Serving as i32, "{name:?}");
    }
    assert_eq!(client.check(request("nobody")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_watch_sees_loading_then_serving_then_draining_and_then_ends() {
    let (finish_loading, loading) = mpsc::sync_channel::<()>(1);
    let source = Source::new(MODEL, move || {
        loading.recv().ok();
        Ok(Box::new(Steady::new(MODEL, shape(), 1, &Gate::default())))
    });
    let listener = Listener::bind(config().server.listen).await.unwrap();
    let channel = connect(listener.local_addr().unwrap());
    let quick = Source::new("quick", || Ok(Box::new(Steady::new("quick", shape(), 1, &Gate::default()))));
    let app = App::start(config(), vec![source, quick]);
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(app.serve(listener, async { _ = stopped.await }));

    let mut client = HealthClient::new(channel);
    let status = |status: ServingStatus| Some(status as i32);
    let mut watch = client.watch(request("readiness")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().map(|now| now.status), status(ServingStatus::NotServing));
    let mut other = client.watch(request("models/quick")).await.unwrap().into_inner();
    while other.message().await.unwrap().unwrap().status != ServingStatus::Serving as i32 {}
    let checked = client.check(request("readiness")).await.unwrap().into_inner();
    assert_eq!(checked.status, ServingStatus::NotServing as i32, "one of two models is not all of them");
    let live = client.check(request("liveness")).await.unwrap().into_inner();
    assert_eq!(live.status, ServingStatus::Serving as i32, "loading is living");
    finish_loading.send(()).unwrap();
    assert_eq!(watch.message().await.unwrap().map(|now| now.status), status(ServingStatus::Serving));
    drop(stop);
    assert_eq!(watch.message().await.unwrap().map(|now| now.status), status(ServingStatus::NotServing));
    assert!(watch.message().await.unwrap().is_none(), "a watch keeps no drain waiting");
    tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn probes_need_neither_certificate_nor_token_and_get_health_alone_until_the_end() {
    let (files, authority) = (Files::new(), Authority::new("ours"));
    let tls = files.tls(&authority.issue(), Some(&authority));
    let config = over_tls(tls.clone());
    let security = Security::load(Some(&tls), &[files.tokens(Group::Health, &["a-token-of-health"])].into()).unwrap();
    let listener = async || Listener::bind(config.server.listen).await.unwrap();
    let (clients, probes) = (listener().await, listener().await);
    let (at_clients, at_probes) = (clients.local_addr().unwrap(), connect(probes.local_addr().unwrap()));
    let gate = Gate::default();
    let model = Steady::new(MODEL, shape(), 1, &gate);
    let mut app = App::start(config.clone(), vec![Source::new(MODEL, move || Ok(Box::new(model)))]).guarded(security);
    app.answer_probes(probes).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(app.serve(clients, async { _ = stopped.await }));

    let guarded = HealthClient::new(connect(at_clients)).check(request("readiness")).await;
    assert!(guarded.is_err(), "clients speak TLS");
    let mut client = HealthClient::new(at_probes.clone());
    let mut watch = client.watch(request("readiness")).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status != ServingStatus::Serving as i32 {}
    let listed = ModelServiceClient::new(at_probes).list_models(ListModelsRequest::default()).await;
    assert_eq!(listed.unwrap_err().code(), Code::Unimplemented);
    drop(stop);
    assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
    assert!(watch.message().await.unwrap().is_none(), "a watch keeps no drain waiting");
    tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap().unwrap();
}
