//! The catalogue, and what becomes of packages that are refused and models that break.

use pixeld::app::{AppError, Source};
use pixeld::error::Violations;
use pixeld::rpc::proto::{Backend, GetModelRequest, ListModelsRequest, ModelState, Order, Precision};
use tonic::Code;

use crate::harness::{Daemon, MODEL, config, read, refusal, shape, stream};
use crate::steady::{Gate, Steady};

#[tokio::test]
async fn a_refused_package_is_listed_with_all_its_faults_while_another_model_serves() {
    let refused = Source::new("broken", || {
        let mut faults = Violations::new();
        faults.add("weights", "tensor a.b is missing");
        faults.add("image.levels", "must be 2..=65536, got 1");
        Err(faults)
    });
    let good = Source::new(MODEL, || Ok(Box::new(Steady::new(MODEL, shape(), 3, &Gate::default()))));
    let panics = Source::new("panics", || panic!("a bug in a family"));
    let daemon = Daemon::start(config(), vec![refused, good, panics]).await;

    let listed = daemon.models().list_models(ListModelsRequest::default()).await.unwrap().into_inner().models;
    let states: Vec<_> = listed.iter().map(|model| (model.name.as_str(), model.state())).collect();
    let expected = [
        ("models/broken", ModelState::Failed),
        ("models/panics", ModelState::Failed),
        ("models/steady", ModelState::Ready),
    ];
    assert_eq!(states, expected);
    let why = &listed[0].state_message;
    assert!(why.contains("a.b is missing") && why.contains("image.levels"), "{why}");

    let mut request = stream(1, 1);
    request.spec.as_mut().unwrap().model = "broken".into();
    let status = daemon.generation().stream_generate_images(request.clone()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "MODEL_FAILED".into(), vec![]));
    request.spec.as_mut().unwrap().model.clear();
    let status = daemon.generation().stream_generate_images(request.clone()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["spec.model".into()]));
    // What does not depend on the model is checked all the same.
    let mut worse = request.clone();
    let spec = worse.spec.as_mut().unwrap();
    spec.image_count = Some(0);
    spec.sampling.get_or_insert_default().top_k = Some(0);
    let status = daemon.generation().stream_generate_images(worse).await.unwrap_err();
    let fields = ["spec.model", "spec.image_count", "spec.sampling.top_k"].map(str::to_owned).to_vec();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_REQUEST".into(), fields));
    request.spec.as_mut().unwrap().model = "models/steady".into();
    read(daemon.generation().stream_generate_images(request).await.unwrap().into_inner()).await.unwrap();
}

#[tokio::test]
async fn a_model_tells_everything_a_client_needs_to_know() {
    let daemon = Daemon::steady().await;
    for name in [MODEL, "models/steady"] {
        let request = GetModelRequest { name: name.into() };
        let model = daemon.models().get_model(request).await.unwrap().into_inner().model.unwrap();
        let model_shape = model.shape.unwrap();
        assert_eq!((model_shape.height, model_shape.width), (4, 5));
        assert_eq!((model_shape.channels, model_shape.levels), (3, 16));
        assert_eq!((model.class_count, model.class_required, model.max_running_images), (2, false, 4));
        assert_eq!((model.architecture.as_str(), model.order()), ("toy", Order::Raster));
        assert_eq!((model.backend(), model.precision()), (Backend::Native, Precision::F32));
        assert_eq!(model.revision, "0123456789abcdef");
        assert!(model.ready_time.is_some());
    }
}

#[tokio::test]
async fn a_model_that_breaks_beyond_repair_ends_the_daemon_with_its_name() {
    let (daemon, gate) = Daemon::gated(1, config()).await;
    gate.allow(3);
    let events = daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    gate.blocked().await;
    gate.break_model();
    gate.open();
    let status = read(events).await.unwrap_err();
    assert!(matches!(status.code(), Code::Internal | Code::FailedPrecondition), "{status:?}");
    match daemon.ended().await {
        Err(AppError::ModelBroke { name, .. }) => assert_eq!(name, MODEL),
        other => panic!("unexpected {other:?}"),
    }
}
