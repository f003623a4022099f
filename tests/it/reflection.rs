//! Reflection, in both versions clients use.

use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::Daemon;

const SERVICES: [&str; 4] =
    ["grpc.health.v1.Health", "pixeld.v1.GenerationService", "pixeld.v1.ModelService", "pixeld.v1.ScoringService"];

macro_rules! lists_services {
    ($version:ident, $daemon:expr) => {{
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let request = $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = $version::server_reflection_client::ServerReflectionClient::new($daemon.channel.clone());
        let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("unexpected {answer:?}")
        };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        for service in SERVICES {
            assert!(names.iter().any(|name| name == service), "{service} is missing in {names:?}");
        }
    }};
}

#[tokio::test]
async fn both_versions_of_reflection_list_every_service() {
    let daemon = Daemon::steady().await;
    lists_services!(v1, daemon);
    lists_services!(v1alpha, daemon);
}
