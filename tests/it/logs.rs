//! What the log says of a call.

use std::sync::{Arc, Mutex};

use pixeld::rpc::proto::inference::ModelInferRequest;
use pixeld::rpc::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;

use crate::harness::{Daemon, MODEL, patiently};

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

#[tokio::test]
async fn requests_of_one_stream_do_not_gather_in_the_line_of_its_call() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // Of this thread, on which the daemon runs too.
    let guard = tracing::subscriber::set_default(subscriber);
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
    let line = async {
        loop {
            let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            let line = logged.lines().find(|line| line.contains("call ended") && line.contains("ModelStreamInfer"));
            match line {
                Some(line) => return line.to_owned(),
                None => tokio::task::yield_now().await,
            }
        }
    };
    let line = patiently(line).await;
    drop(guard);
    assert!(line.matches("request_id").count() <= 1 && line.len() < 400, "{line}");
}
