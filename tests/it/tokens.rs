//! Bearer tokens: who may call what, what the others are told, and tokens that change.

use std::time::Duration;

use pixeld::config::Config;
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::inference::ServerLiveRequest;
use pixeld::rpc::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use pixeld::rpc::proto::model_service_client::ModelServiceClient;
use pixeld::rpc::proto::scoring_service_client::ScoringServiceClient;
use pixeld::rpc::proto::{CancelGenerationRequest, ListModelsRequest, ScoreImagesRequest, StreamScoreImagesRequest};
use pixeld::security::Group;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request::MessageRequest};
use tonic_reflection::pb::{v1alpha, v1alpha::server_reflection_client::ServerReflectionClient as Alpha};

use crate::harness::{Daemon, config, next, patiently, read, refusal, stream};
use crate::pki::Files;

/// A request with these values of `authorization`.
fn with<T>(message: T, values: &[&str]) -> Request<T> {
    let mut request = Request::new(message);
    for value in values {
        request.metadata_mut().append("authorization", value.parse().unwrap());
    }
    request
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn guarded(files: &Files, groups: &[Group]) -> Config {
    let token = |group: Group| format!("some-token-of-{group:?}");
    Config { auth: groups.iter().map(|&group| files.tokens(group, &[&token(group)])).collect(), ..config() }
}

/// What comes of a call of each group: nothing wrong, or the status.
async fn call(daemon: &Daemon, group: Group, values: &[&str]) -> Result<(), Status> {
    let channel = daemon.channel.clone();
    let reflected = || ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    match group {
        Group::Generation => {
            let cancel = CancelGenerationRequest { request_id: "nobody".into() };
            GenerationServiceClient::new(channel.clone()).cancel_generation(with(cancel, values)).await?;
            let mut events = GenerationServiceClient::new(channel)
                .stream_generate_images(with(stream(1, 7), values))
                .await?
                .into_inner();
            next(&mut events).await.map(|_| ())
        }
        Group::Scoring => {
            let scored =
                ScoringServiceClient::new(channel).score_images(with(ScoreImagesRequest::default(), values)).await;
            // There is nothing to score in it, which is another matter.
            scored
                .map(|_| ())
                .or_else(|status| if status.code() == Code::InvalidArgument { Ok(()) } else { Err(status) })
        }
        Group::Models => {
            ModelServiceClient::new(channel).list_models(with(ListModelsRequest::default(), values)).await.map(|_| ())
        }
        Group::Inference => {
            let mut client = GrpcInferenceServiceClient::new(channel);
            client.server_live(with(ServerLiveRequest::default(), values)).await.map(|_| ())
        }
        Group::Reflection => {
            let mut client = ServerReflectionClient::new(channel.clone());
            let one = client.server_reflection_info(with(tokio_stream::once(reflected()), values)).await.map(|_| ());
            let request = v1alpha::ServerReflectionRequest::default();
            let other = Alpha::new(channel).server_reflection_info(with(tokio_stream::once(request), values)).await;
            assert_eq!(one.is_ok(), other.is_ok(), "both versions alike");
            one
        }
        Group::Health => {
            HealthClient::new(channel).check(with(HealthCheckRequest::default(), values)).await.map(|_| ())
        }
        Group::Admin => unreachable!("it is not served here"),
    }
}

const SERVED: [Group; 6] =
    [Group::Generation, Group::Scoring, Group::Models, Group::Inference, Group::Reflection, Group::Health];

#[tokio::test]
async fn each_group_wants_a_token_of_its_own_and_the_refusal_is_always_the_same() {
    let files = Files::new();
    let (daemon, _gate) = Daemon::gated(4, guarded(&files, &SERVED)).await;
    let mut told = std::collections::BTreeSet::new();
    for group in SERVED {
        let right = bearer(&format!("some-token-of-{group:?}"));
        call(&daemon, group, &[&right]).await.unwrap_or_else(|status| panic!("{group:?}: {status:?}"));
        let mut wrong: Vec<_> = SERVED
            .into_iter()
            .filter(|&other| other != group)
            .map(|other| format!("some-token-of-{other:?}"))
            .collect();
        wrong.extend(["", "some-token-of-nobody", "some-token-of-Admin"].map(String::from));
        let wrong: Vec<String> = wrong.iter().map(|token| bearer(token)).collect();
        let mut tries: Vec<Vec<&str>> = wrong.iter().map(|value| vec![value.as_str()]).collect();
        tries.extend([vec![], vec![&right[7..]], vec![&right, &right]]);
        for values in tries {
            let called = call(&daemon, group, &values).await;
            let status = called.err().unwrap_or_else(|| panic!("{group:?} let {values:?} in"));
            assert_eq!(refusal(&status), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned(), vec![]));
            assert_eq!(status.metadata().get("www-authenticate").unwrap(), "Bearer");
            told.insert((status.message().to_owned(), status.details().to_vec()));
        }
    }
    assert_eq!(told.len(), 1, "{told:?}");
}

#[tokio::test]
async fn a_group_without_a_file_is_open() {
    let files = Files::new();
    let (daemon, _gate) = Daemon::gated(4, guarded(&files, &[Group::Generation, Group::Models])).await;
    for group in SERVED {
        let protected = matches!(group, Group::Generation | Group::Models);
        assert_eq!(call(&daemon, group, &[]).await.is_err(), protected, "{group:?}");
    }
}

#[tokio::test]
async fn who_is_refused_is_answered_before_anything_is_sent() {
    let files = Files::new();
    let (daemon, _gate) = Daemon::gated(4, guarded(&files, &[Group::Scoring])).await;
    let endless = tokio_stream::pending::<StreamScoreImagesRequest>();
    let mut client = daemon.scoring();
    let status = patiently(client.stream_score_images(with(endless, &["Bearer wrong"]))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn tokens_change_with_their_file_and_streams_that_run_go_on() {
    let files = Files::new();
    let auth = [files.tokens(Group::Generation, &["the-first-token-1"])].into();
    let (daemon, gate) = Daemon::gated(4, Config { auth, ..config() }).await;
    gate.allow(2);
    let old = bearer("the-first-token-1");
    let running = daemon.generation().stream_generate_images(with(stream(1, 7), &[&old])).await.unwrap();
    gate.blocked().await;
    let new = bearer("the-second-token-2");
    files.tokens(Group::Generation, &["the-second-token-2"]);
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    patiently(async {
        while call(&daemon, Group::Generation, &[&old]).await.is_ok() {
            ticks.tick().await;
        }
    })
    .await;
    call(&daemon, Group::Generation, &[&new]).await.unwrap();
    // A file that is broken leaves the tokens as they are.
    files.tokens(Group::Generation, &["short"]);
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    for _ in 0..8 {
        ticks.tick().await;
        call(&daemon, Group::Generation, &[&new]).await.unwrap();
    }
    gate.open();
    assert_eq!(read(running.into_inner()).await.unwrap().values[&0].len(), 60);
}
