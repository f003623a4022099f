//! What the log says of a call.

use std::sync::{Arc, Mutex};

use pixeld::rpc::proto::ListModelsRequest;
use pixeld::rpc::proto::inference::ModelInferRequest;
use pixeld::rpc::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;

use tokio_util::sync::CancellationToken;

use crate::harness::{Daemon, MODEL, connect, patiently};
use crate::uploads::{SCORE, call_until, prefix};

/// Everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is logged on this thread, on which a daemon of a test runs too, until the guard is dropped.
fn log() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

impl Log {
    /// The line of a call to `method`, once it has ended.
    async fn ended(&self, method: &str) -> String {
        let line = async {
            loop {
                let logged = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
                match logged.lines().find(|line| line.contains("call ended") && line.contains(method)) {
                    Some(line) => return line.to_owned(),
                    None => tokio::task::yield_now().await,
                }
            }
        };
        patiently(line).await
    }
}

#[tokio::test]
async fn a_call_that_is_taken_back_in_its_request_was_cancelled() {
    let (log, _guard) = log();
    let daemon = Daemon::steady().await;
    let away = CancellationToken::new();
    let half = vec![prefix(0, 1000), vec![b'\n'; 500].into()];
    let call = tokio::spawn(call_until(away.clone(), connect(daemon.address), SCORE, half));
    // It is there once a later call on a connection of its own was answered.
    daemon.models().list_models(ListModelsRequest::default()).await.unwrap();
    away.cancel();
    let line = log.ended(SCORE).await;
    assert!(line.contains("code=Cancelled"), "{line}");
    assert!(call.await.is_err(), "it was not answered");
}

#[tokio::test]
async fn requests_of_one_stream_do_not_gather_in_the_line_of_its_call() {
    let (log, _guard) = log();
    let daemon = Daemon::steady().await;
    let request = |index: u32| ModelInferRequest {
        model_name: MODEL.into(),
        id: format!("request-{index}"),
        ..ModelInferRequest::default()
    };
    let mut client = GrpcInferenceServiceClient::new(daemon.channel.clone());
    let sent = tokio_stream::iter((0..20).map(request).collect::<Vec<_>>());
    let mut answers = client.model_stream_infer(sent).await.unwrap().into_inner();
    let mut ended = 0;
    while let Some(answer) = patiently(answers.message()).await.unwrap() {
        assert_eq!(answer.error_message, "");
        ended += u32::from(answer.infer_response.unwrap().parameters.contains_key("triton_final_response"));
    }
    assert_eq!(ended, 20);
    let line = log.ended("ModelStreamInfer").await;
    assert!(line.matches("request_id").count() <= 1 && line.len() < 400, "{line}");
}
