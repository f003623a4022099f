//! Spans of calls, as a collector gets them from a daemon that was told where it is.

#![allow(clippy::unwrap_used, reason = "helpers of tests count as product code to clippy")]

use std::process::Stdio;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::{GenerateImagesRequest, GenerationSpec};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_call_is_a_span_of_its_callers_trace() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut exports) = mpsc::channel(16);
    let collector = Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(collector.serve_with_incoming(TcpListenerStream::new(listener)));

    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    // What is sent does not depend on what is logged, but for the request's own words.
    command.args(["serve", "--listen", "127.0.0.1:0", "--set", "log.filter=info", "--set"]);
    command.arg(format!("trace.endpoint={endpoint}")).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut daemon = command.spawn().unwrap();
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let listening = lines.next_line().await.unwrap().unwrap();
    let address = format!("http://{}", listening.trim_start_matches("listening on "));
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));

    let mut client = GenerationServiceClient::connect(address).await.unwrap();
    let spec = GenerationSpec { model: "digits".into(), request_id: "traced".into(), ..GenerationSpec::default() };
    let mut request = Request::new(GenerateImagesRequest { spec: Some(spec), encoding: 0 });
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    client.generate_images(request).await.unwrap();
    drop(client);

    // What waits is sent before the end.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(daemon.id().unwrap().try_into().unwrap()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let export = tokio::time::timeout(Duration::from_secs(30), exports.recv()).await.unwrap().unwrap();
    let spans: Vec<_> =
        export.resource_spans.into_iter().flat_map(|all| all.scope_spans).flat_map(|all| all.spans).collect();
    let [span] = &spans[..] else { panic!("one call, one span: {spans:?}") };
    assert_eq!(span.name, "/pixeld.v1.GenerationService/GenerateImages");
    assert_eq!(span.kind(), SpanKind::Server);
    assert_eq!(span.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    assert_eq!(span.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    let attribute = |key: &str| {
        let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text.as_str()),
            _ => None,
        }
    };
    assert_eq!((attribute("request_id"), attribute("model")), (Some("traced"), Some("digits")));

    let mut log = String::new();
    daemon.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    assert!(daemon.wait().await.unwrap().success(), "{log}");
    let ended = log.lines().find(|line| line.contains("call ended")).unwrap();
    assert!(ended.contains("trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\""), "{ended}");
}
