//! The end of a daemon: what runs finishes, what comes is turned away, and nobody can hold it up.

use std::time::{Duration, Instant};

use pixeld::app::{App, Source};
use pixeld::rpc::proto::model_service_client::ModelServiceClient;
use pixeld::rpc::proto::stream_score_images_request::Part;
use pixeld::rpc::proto::{GenerateImagesRequest, ListModelsRequest};
use pixeld::rpc::proto::{ModelState, ScoringSpec, StreamGenerateImagesRequest};
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{
    Daemon, MODEL, PATIENCE, config, connect, connect_deaf, next, patiently, read, refusal, shape, stream,
};
use crate::scoring::part;
use crate::steady::{Gate, Steady};
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;

#[tokio::test]
async fn what_runs_finishes_and_what_comes_is_told_to_go_elsewhere() {
    let (mut daemon, gate) = Daemon::gated(1, config()).await;
    gate.allow(5);
    let mut running = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    assert!(next(&mut running).await.unwrap().is_some());
    let items = tokio_stream::once(part(Part::Spec(ScoringSpec::default()))).chain(tokio_stream::pending());
    let mut idle = daemon.scoring().stream_score_images(items).await.unwrap().into_inner();
    daemon.stop();
    // The scoring client, which has nothing under way, is told first; then everyone knows.
    let told = tokio::time::timeout(PATIENCE, idle.message()).await.unwrap().unwrap_err();
    assert_eq!(refusal(&told), (Code::Unavailable, "SERVER_DRAINING".into(), vec![]));
    let status = daemon.generation().stream_generate_images(stream(1, 2)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Unavailable, "SERVER_DRAINING".into(), vec![]));
    assert!(status.metadata().contains_key(pixeld::rpc::PUSHBACK));
    let listed = daemon.models().list_models(ListModelsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.models[0].state(), ModelState::Draining);
    gate.open();
    read_rest(&mut running).await;
    daemon.ended().await.unwrap();
}

async fn read_rest(events: &mut tonic::Streaming<pixeld::rpc::proto::StreamGenerateImagesResponse>) {
    let mut last = None;
    while let Some(event) = next(events).await.expect("running streams finish") {
        last = Some(event);
    }
    use pixeld::rpc::proto::stream_generate_images_response::Event;
    assert!(matches!(last, Some(Event::Completed(_))));
}

#[tokio::test]
async fn an_idle_daemon_ends_at_once_whatever_sockets_are_open() {
    let mut daemon = Daemon::steady().await;
    let _silent = TcpStream::connect(daemon.address).await.unwrap();
    daemon.models().list_models(ListModelsRequest::default()).await.unwrap();
    let start = Instant::now();
    daemon.stop();
    daemon.ended().await.unwrap();
    assert!(start.elapsed() < config().server.drain_timeout / 2, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_silent_socket_and_a_stream_that_never_ends_cannot_hold_the_end_up() {
    let mut config = config();
    config.server.drain_timeout = Duration::from_millis(500);
    let (mut daemon, gate) = Daemon::gated(1, config).await;
    gate.allow(5);
    let _silent = TcpStream::connect(daemon.address).await.unwrap();
    let mut client = GenerationServiceClient::new(connect(daemon.address));
    let mut unread = client.stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    gate.blocked().await;
    let start = Instant::now();
    daemon.stop();
    let (ended, ()) = tokio::join!(daemon.ended(), async {
        // Cut, not completed; only then may the model go on, or the engine could not end.
        while let Ok(Some(_)) = next(&mut unread).await {}
        gate.open();
    });
    ended.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// Ends `daemon` while `clients` hold on to it; what the clients saw last. The bound is generous: `make drain` measures.
async fn ends_in_time(mut daemon: Daemon, limit: Duration) {
    let start = Instant::now();
    daemon.stop();
    daemon.ended().await.unwrap();
    assert!(start.elapsed() < limit + Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_cannot_hold_the_end_up() {
    let mut config = config();
    config.server.drain_timeout = Duration::from_millis(500);
    // Large enough that it cannot hide in the buffers on the way.
    let large = pixeld::image::Shape::new(128, 128, 3, 16).unwrap();
    let source = Source::new(MODEL, move || Ok(Box::new(Steady::new(MODEL, large, 1, &Gate::default()))));
    let daemon = Daemon::start(config, vec![source]).await;
    let mut deaf = GenerationServiceClient::new(connect_deaf(daemon.address));
    let request = StreamGenerateImagesRequest { include_log_probs: true, ..stream(1, 1) };
    let mut unread = deaf.stream_generate_images(request).await.unwrap().into_inner();
    assert!(next(&mut unread).await.unwrap().is_some());
    ends_in_time(daemon, Duration::from_millis(500)).await;
    let cut = async { while next(&mut unread).await.is_ok_and(|event| event.is_some()) {} };
    tokio::time::timeout(PATIENCE, cut).await.expect("its reader sees that it was cut");
}

#[tokio::test]
async fn under_load_every_running_stream_finishes_and_every_queued_request_is_answered() {
    let (mut daemon, gate) = Daemon::gated(2, config()).await;
    gate.allow(5);
    let mut streams = Vec::new();
    for seed in 0..20 {
        streams.push(daemon.generation().stream_generate_images(stream(1, seed)).await.unwrap().into_inner());
    }
    gate.blocked().await;
    let handle = daemon.handle(MODEL);
    daemon.stop();
    // Open calls finish; a new one is told.
    let told = async {
        loop {
            match daemon.generation().stream_generate_images(stream(1, 99)).await {
                Ok(taken) => drop(taken),
                Err(status) => break status,
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(refusal(&told), (Code::Unavailable, "SERVER_DRAINING".into(), vec![]));
    gate.open();
    for mut running in streams {
        read_rest(&mut running).await;
    }
    daemon.ended().await.unwrap();
    let load = handle.load();
    assert!(load.completed >= 20 && load.submitted == load.completed + load.given_up, "{load:?}");
}

#[tokio::test]
async fn the_app_serves_any_pair_of_byte_streams_and_ends_with_them() {
    let source = Source::new(MODEL, || Ok(Box::new(Steady::new(MODEL, shape(), 1, &Gate::default()))));
    let app = App::start(config(), vec![source]);
    app.loaded().await;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let served = tokio::spawn(app.serve(tokio_stream::once(Ok::<DuplexStream, _>(theirs)), std::future::pending()));
    let mut ours = Some(hyper_util::rt::TokioIo::new(ours));
    let connector =
        tower::service_fn(move |_| std::future::ready(ours.take().ok_or(std::io::Error::other("one connection"))));
    let channel = Endpoint::from_static("http://in-process").connect_with_connector(connector).await.unwrap();
    let mut client = GenerationServiceClient::new(channel.clone());
    let events = client.stream_generate_images(stream(1, 3)).await.unwrap().into_inner();
    assert_eq!(read(events).await.unwrap().values[&0].len(), shape().values() as usize);
    let models = ModelServiceClient::new(channel).list_models(ListModelsRequest::default()).await.unwrap();
    assert_eq!(models.into_inner().models.len(), 1);
    drop(client);
    tokio::time::timeout(PATIENCE, served).await.expect("it ends with its last connection").unwrap().unwrap();
}

#[tokio::test]
async fn what_comes_in_the_delay_of_a_drain_is_served_while_health_turns_it_away() {
    let mut config = config();
    // As long as the test takes.
    config.server.drain_delay = Duration::from_secs(3600);
    let (mut daemon, gate) = Daemon::gated(1, config).await;
    gate.open();
    let mut health = HealthClient::new(daemon.channel.clone());
    let readiness = || HealthCheckRequest { service: "readiness".into() };
    let mut watch = health.watch(readiness()).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status != ServingStatus::Serving as i32 {}
    daemon.stop();
    while watch.message().await.unwrap().unwrap().status != ServingStatus::NotServing as i32 {}
    let listed = daemon.models().list_models(ListModelsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.models[0].state(), ModelState::Draining);
    let mut late = daemon.generation().stream_generate_images(stream(1, 3)).await.expect("it is served").into_inner();
    read_rest(&mut late).await;
}

#[tokio::test]
async fn a_daemon_ends_after_the_delay_of_its_drain() {
    let mut config = config();
    config.server.drain_delay = Duration::from_millis(50);
    let mut daemon = Daemon::start(
        config,
        vec![Source::new(MODEL, || Ok(Box::new(Steady::new(MODEL, shape(), 1, &Gate::default()))))],
    )
    .await;
    daemon.stop();
    tokio::time::timeout(PATIENCE, daemon.ended()).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_cut_at_the_limit_hears_that_the_server_ended() {
    let mut config = config();
    config.server.drain_timeout = Duration::from_millis(500);
    let (mut daemon, gate) = Daemon::gated(1, config).await;
    // A step now and then, from the first on: far from enough for all.
    gate.allow(1);
    let stepping = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            gate.allow(1);
        }
    });
    let mut running = daemon.generation().stream_generate_images(stream(8, 1)).await.unwrap().into_inner();
    assert!(next(&mut running).await.unwrap().is_some());
    let mut queued = daemon.generation().stream_generate_images(stream(8, 2)).await.unwrap().into_inner();
    let (mut client, spec) = (daemon.generation(), stream(8, 3).spec);
    let whole = tokio::spawn(async move { client.generate_images(GenerateImagesRequest { spec, encoding: 0 }).await });
    let handle = daemon.handle(MODEL);
    patiently(async {
        while handle.load().submitted < 24 {
            tokio::task::yield_now().await
        }
    })
    .await;
    daemon.stop();
    let ended = async |events: &mut tonic::Streaming<_>| loop {
        match next(events).await {
            Ok(event) => assert!(event.is_some(), "it was cut"),
            Err(status) => break status,
        }
    };
    let told = [ended(&mut running).await, ended(&mut queued).await, whole.await.unwrap().unwrap_err()];
    for told in told {
        assert_eq!(refusal(&told), (Code::Unavailable, "SERVER_DRAINING".into(), vec![]));
    }
    daemon.ended().await.unwrap();
    stepping.abort();
}

#[tokio::test]
async fn a_watch_that_nobody_reads_does_not_hold_the_end_up() {
    let daemon = Daemon::steady().await;
    // Not even one message has room on its way.
    let deaf = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap().initial_stream_window_size(1);
    let mut deaf = HealthClient::new(deaf.connect_lazy());
    let watched = deaf.watch(HealthCheckRequest { service: String::new() }).await.unwrap();
    let half = config().server.drain_timeout / 2;
    tokio::time::timeout(half, ends_in_time(daemon, Duration::ZERO)).await.expect("it is not waited for");
    drop(watched);
}
