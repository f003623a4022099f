//! What operators do to a daemon: loading, unloading, budgets, and who may do it.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pixeld::engine::Kind;
use pixeld::error::{Error, Violations};
use pixeld::image::Shape;
use pixeld::job::Class;
use pixeld::rpc::proto::admin_service_client::AdminServiceClient;
use pixeld::rpc::proto::model_service_client::ModelServiceClient;
use pixeld::rpc::proto::{
    DrainServerRequest, GetLoadRequest, GetServerInfoRequest, ListModelsRequest, LoadModelRequest, ModelState,
    StreamGenerateImagesRequest, UnloadModelRequest,
};
use pixeld::security::Group;
use tonic::{Code, Request};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1;

use crate::harness::{Daemon, MODEL, PATIENCE, config, next, patiently, read, refusal, shape, spec, stream};
use crate::operated::{Operated, Shelf};
use crate::steady::{Gate, Steady};

/// A shelf with one steady model called [`MODEL`], and the gate before its steps.
fn shelf() -> (Shelf, Arc<Gate>) {
    let (shelf, gate) = (Shelf::default(), Arc::new(Gate::default()));
    let behind = Arc::clone(&gate);
    shelf.put(MODEL, "r1", move || Ok(Steady::new(MODEL, shape(), 2, &behind).revised("r1", 0)));
    (shelf, gate)
}

fn steady(name: &'static str) -> impl Fn() -> Result<Steady, Violations> + Send + Sync {
    move || Ok(Steady::new(name, shape(), 2, &Gate::default()))
}

fn of(model: &str, seed: u64) -> StreamGenerateImagesRequest {
    let mut request = stream(1, seed);
    request.spec.as_mut().unwrap().model = model.into();
    request
}

/// Waits until health says `status` of `name`.
async fn wait_for(daemon: &Daemon, name: &str, status: ServingStatus) {
    // Health follows the catalogue by a moment, and until then a name that is new is not known.
    let reached = async { while health(daemon, name).await != Ok(status as i32) {} };
    patiently(reached).await;
}

async fn health(daemon: &Daemon, name: &str) -> Result<i32, Code> {
    let request = HealthCheckRequest { service: name.into() };
    let checked = HealthClient::new(daemon.channel.clone()).check(request).await;
    checked.map(|status| status.into_inner().status).map_err(|status| status.code())
}

#[tokio::test]
async fn a_package_is_loaded_while_others_serve_and_its_state_is_told_on_the_way() {
    let (shelf, _gate) = shelf();
    let operated = Operated::start(config(), shelf).await;
    let (finish, loading) = mpsc::sync_channel::<()>(1);
    let loading = Mutex::new(loading);
    operated.shelf.put("late", "r1", move || {
        loading.lock().unwrap().recv().ok();
        steady("late")()
    });
    wait_for(&operated.daemon, "readiness", ServingStatus::Serving).await;

    // Whoever asks may give up: the load goes on.
    let mut impatient = Request::new(LoadModelRequest { name: "models/late".into() });
    impatient.set_timeout(Duration::from_millis(50));
    let status = operated.admin().load_model(impatient).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    assert_eq!(operated.model("late").await.unwrap().state(), ModelState::Loading);
    let status = operated.daemon.generation().stream_generate_images(of("late", 1)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Unavailable, "MODEL_NOT_READY".into(), vec![]));
    let status = operated.unload("late").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "MODEL_BUSY".into(), vec![]));
    wait_for(&operated.daemon, "models/late", ServingStatus::NotServing).await;
    let ready = health(&operated.daemon, "readiness").await;
    assert_eq!(ready, Ok(ServingStatus::Serving as i32), "a load makes nobody wait");

    let (loaded, ()) = tokio::join!(operated.load("late"), async { finish.send(()).unwrap() });
    assert_eq!(loaded.unwrap().state(), ModelState::Ready);
    let events = operated.daemon.generation().stream_generate_images(of("late", 1)).await.unwrap();
    read(events.into_inner()).await.unwrap();
    wait_for(&operated.daemon, "models/late", ServingStatus::Serving).await;
    assert_eq!(operated.load("late").await.unwrap().state(), ModelState::Ready, "it serves already");
}

#[tokio::test]
async fn a_package_that_is_refused_says_why_and_can_be_tried_again() {
    let operated = Operated::start(config(), Shelf::default()).await;
    let status = operated.load("new").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "MODEL_NOT_FOUND".into(), vec![]));
    operated.shelf.put("new", "r1", || Err(Violations::one("weights", "tensor a.b is missing")));
    let status = operated.load("new").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "MODEL_FAILED".into(), vec![]));
    assert!(status.message().contains("tensor a.b is missing"), "{status:?}");
    assert_eq!(operated.model("new").await.unwrap().state(), ModelState::Failed);
    operated.shelf.put("new", "r1", || panic!("a bug in a family"));
    assert!(operated.load("new").await.unwrap_err().message().contains("panicked"));
    let broken = Gate::default();
    broken.break_model();
    let broken = Arc::new(broken);
    operated.shelf.put("new", "r1", move || Ok(Steady::new("new", shape(), 1, &broken)));
    let status = operated.load("new").await.unwrap_err();
    assert_eq!(refusal(&status).1, "MODEL_FAILED", "it does not warm up, and ends nothing else");
    operated.shelf.put("new", "r1", steady("new"));
    assert_eq!(operated.load("new").await.unwrap().state(), ModelState::Ready);
    let empty = operated.load("").await.unwrap_err();
    assert_eq!(refusal(&empty), (Code::InvalidArgument, "INVALID_REQUEST".into(), vec!["name".into()]));
}

#[tokio::test]
async fn what_runs_when_a_model_is_unloaded_finishes_and_what_comes_is_turned_away() {
    let (shelf, gate) = shelf();
    let operated = Operated::start(config(), shelf).await;
    wait_for(&operated.daemon, "models/steady", ServingStatus::Serving).await;
    gate.allow(5);
    let mut running = operated.daemon.generation().stream_generate_images(of(MODEL, 1)).await.unwrap().into_inner();
    assert!(next(&mut running).await.unwrap().is_some());
    gate.blocked().await;

    let unloading = operated.unload(MODEL);
    let meanwhile = async {
        wait_for(&operated.daemon, "models/steady", ServingStatus::NotServing).await;
        assert_eq!(operated.model(MODEL).await.unwrap().state(), ModelState::Draining);
        let status = operated.daemon.generation().stream_generate_images(of(MODEL, 2)).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::Unavailable, "MODEL_DRAINING".into(), vec![]));
        assert_eq!(refusal(&operated.load(MODEL).await.unwrap_err()).1, "MODEL_BUSY");
        let loads = operated.admin().get_load(GetLoadRequest::default()).await.unwrap().into_inner().models;
        assert_eq!((loads[0].state(), loads[0].running_images), (ModelState::Draining, 1));
        gate.open();
        let mut last = None;
        while let Some(event) = next(&mut running).await.expect("running streams finish") {
            last = Some(event);
        }
        use pixeld::rpc::proto::stream_generate_images_response::Event;
        assert!(matches!(last, Some(Event::Completed(_))));
    };
    let (drained, ()) = tokio::join!(unloading, meanwhile);
    assert!(drained.unwrap());
    let status = operated.daemon.generation().stream_generate_images(of(MODEL, 3)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "MODEL_NOT_FOUND".into(), vec![]));
    let listed = operated.daemon.models().list_models(ListModelsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.models, []);
    patiently(async { while health(&operated.daemon, "models/steady").await != Err(Code::NotFound) {} }).await;
    assert_eq!(operated.load(MODEL).await.unwrap().state(), ModelState::Ready, "it can come back");
}

#[tokio::test]
async fn what_has_not_finished_at_the_limit_of_an_unload_is_cut_with_a_reason() {
    let (shelf, gate) = shelf();
    let operated = Operated::start(config(), shelf).await;
    gate.allow(5);
    let mut running = operated.daemon.generation().stream_generate_images(of(MODEL, 1)).await.unwrap().into_inner();
    gate.blocked().await;
    let handle = operated.daemon.handle(MODEL);
    let drain_timeout = Some(prost_types::Duration { seconds: 0, nanos: 1 });
    let mut admin = operated.admin();
    let unloading = admin.unload_model(UnloadModelRequest { name: MODEL.into(), drain_timeout });
    let meanwhile = async {
        // The limit has passed. The step that is under way must end, or the thread could not.
        patiently(async {
            let draining = Error::ModelDraining { name: MODEL.into() };
            while handle.admit(Kind::Scoring, 1, Class::Interactive).err() != Some(draining.clone()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        gate.open();
        loop {
            match next(&mut running).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => return status,
            }
        }
    };
    let (answer, status) = tokio::join!(patiently(unloading), meanwhile);
    assert!(!answer.unwrap().into_inner().drained);
    assert_eq!(refusal(&status), (Code::Unavailable, "MODEL_DRAINING".into(), vec![]));
}

#[tokio::test]
async fn a_model_that_another_one_or_an_alias_names_is_not_unloaded() {
    let low = Shape::new(2, 2, 3, 16).unwrap();
    let shelf = Shelf::default();
    shelf.put("upper", "r1", move || Ok(Steady::new("upper", shape(), 1, &Gate::default()).enlarging(low, "lower")));
    shelf.put("lower", "r1", move || Ok(Steady::new("lower", low, 1, &Gate::default())));
    let operated = Operated::start(config(), shelf).await;
    let status = operated.unload("lower").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "MODEL_IN_USE".into(), vec![]));
    assert!(status.message().contains("upper"), "{status:?}");

    // Nor can it be replaced by one that does not fit.
    operated.shelf.put("lower", "r2", move || Ok(Steady::new("lower", shape(), 1, &Gate::default())));
    let status = operated.reload("lower").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "RELOAD_FAILED".into(), vec![]));
    assert!(status.message().contains("models/upper.condition.low_model"), "{status:?}");
    let events = operated.daemon.generation().stream_generate_images(of("upper", 1)).await.unwrap();
    read(events.into_inner()).await.unwrap();

    assert!(operated.unload("upper").await.unwrap());
    operated.alias("stable", "lower").await.unwrap();
    let status = operated.unload("lower").await.unwrap_err();
    assert_eq!(refusal(&status).1, "MODEL_IN_USE");
    assert!(status.message().contains("stable"), "{status:?}");
    operated.alias("stable", "").await.unwrap();
    assert!(operated.unload("lower").await.unwrap());
    let status = operated.load("upper").await.unwrap_err();
    assert!(status.message().contains("must name a package that is served here"), "{status:?}");
}

#[tokio::test]
async fn what_does_not_fit_into_the_memory_is_refused_with_the_numbers_and_what_drains_still_counts() {
    let mut config = config();
    config.engine.max_model_bytes = Some(2500);
    let gate = Arc::new(Gate::default());
    let behind = Arc::clone(&gate);
    let shelf = Shelf::default();
    // Decode state and a scoring pass take (2 + 16) x 8 bytes more.
    shelf.put("a", "r1", move || Ok(Steady::new("a", shape(), 2, &behind).weighing(1000).revised("r1", 0)));
    let operated = Operated::start(config, shelf).await;
    let used = async || {
        let info = operated.admin().get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
        let memory = info.model_memory.unwrap();
        assert_eq!(memory.limit_bytes, Some(2500));
        memory.used_bytes
    };
    assert_eq!(used().await, 1144);
    operated.shelf.put("b", "r1", || Ok(Steady::new("b", shape(), 2, &Gate::default()).weighing(1300)));
    let status = operated.load("b").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "MODEL_MEMORY_FULL".into(), vec![]));
    for number in ["1444", "1356", "2500"] {
        assert!(status.message().contains(number), "{status:?}");
    }
    assert_eq!(operated.model("b").await.unwrap().state(), ModelState::Failed);

    // Both revisions are there while the old one drains, and a third model is not.
    gate.allow(5);
    let mut running = operated.daemon.generation().stream_generate_images(of("a", 1)).await.unwrap().into_inner();
    gate.blocked().await;
    operated
        .shelf
        .put("a", "r2", || Ok(Steady::new("a", shape(), 2, &Gate::default()).weighing(1000).revised("r2", 1)));
    assert_eq!(operated.reload("a").await.unwrap().previous_revision, "r1");
    assert_eq!(used().await, 2288);
    operated.shelf.put("c", "r1", || Ok(Steady::new("c", shape(), 2, &Gate::default()).weighing(100)));
    assert_eq!(refusal(&operated.load("c").await.unwrap_err()).1, "MODEL_MEMORY_FULL");
    gate.open();
    while next(&mut running).await.unwrap().is_some() {}
    patiently(async {
        while used().await != 1144 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(operated.load("c").await.unwrap().state(), ModelState::Ready);
}

#[tokio::test]
async fn looking_for_packages_loads_new_ones_reloads_changed_ones_and_leaves_the_rest() {
    let (shelf, _gate) = shelf();
    shelf.put("changed", "r1", || Ok(Steady::new("changed", shape(), 1, &Gate::default()).revised("r1", 0)));
    let operated = Operated::start(config(), shelf).await;
    operated.shelf.put("changed", "r2", || Ok(Steady::new("changed", shape(), 1, &Gate::default()).revised("r2", 0)));
    operated.shelf.put("new", "r1", steady("new"));
    operated.shelf.put("bad", "r1", || Err(Violations::one("weights", "are missing")));
    let found = operated.fleet.rescan().await.unwrap();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!((found.loaded, found.reloaded), (names(&["new"]), names(&["changed"])));
    assert_eq!(found.unchanged, names(&[MODEL]));
    assert_eq!(found.failed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["bad"]);
    assert_eq!(operated.model("changed").await.unwrap().revision, "r2");
    assert_eq!(operated.model(MODEL).await.unwrap().revision, "r1");
}

#[tokio::test]
async fn operators_and_clients_have_listeners_of_their_own() {
    let (shelf, _gate) = shelf();
    let operated = Operated::start(config(), shelf).await;
    let mut elsewhere = AdminServiceClient::new(operated.daemon.channel.clone());
    let status = elsewhere.drain_server(DrainServerRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let status = elsewhere.load_model(LoadModelRequest { name: MODEL.into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let mut models = ModelServiceClient::new(operated.channel.clone());
    assert_eq!(models.list_models(ListModelsRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
    let mut checker = HealthClient::new(operated.channel.clone());
    let request = HealthCheckRequest { service: "pixeld.v1.AdminService".into() };
    assert_eq!(checker.check(request).await.unwrap().into_inner().status, ServingStatus::Serving as i32);
    assert_eq!(services(operated.channel.clone()).await, ["grpc.health.v1.Health", "pixeld.v1.AdminService"]);
    let public = services(operated.daemon.channel.clone()).await;
    assert!(public.iter().any(|name| name == "pixeld.v1.ModelService"), "{public:?}");
    assert!(!public.iter().any(|name| name.contains("Admin")), "{public:?}");
}

/// What reflection lists, itself left out.
async fn services(channel: tonic::transport::Channel) -> Vec<String> {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = v1::ServerReflectionRequest { host: String::new(), message_request };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("{answer:?}") };
    let names = list.service.into_iter().map(|service| service.name);
    let mut names: Vec<_> = names.filter(|name| !name.contains("reflection")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_operator_learns_what_the_server_is_and_how_busy() {
    let (shelf, gate) = shelf();
    let operated = Operated::start(config(), shelf).await;
    let info = operated.admin().get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.version.as_str(), info.shards, info.draining), (env!("CARGO_PKG_VERSION"), 1, false));
    assert!(info.devices[0].cores >= 1 && info.start_time.is_some() && info.uptime.is_some());
    let load = async || {
        let request = GetLoadRequest { model: MODEL.into() };
        operated.admin().get_load(request).await.unwrap().into_inner().models.remove(0)
    };
    let idle = load().await;
    assert_eq!((idle.running_images, idle.queued_images, idle.max_running_images), (0, 0, 2));
    assert_eq!(idle.last_step_age, None);
    gate.allow(5);
    let request = StreamGenerateImagesRequest { spec: Some(spec(3, 1)), ..StreamGenerateImagesRequest::default() };
    let mut running = operated.daemon.generation().stream_generate_images(request).await.unwrap().into_inner();
    gate.blocked().await;
    let busy = load().await;
    assert_eq!((busy.running_images, busy.queued_images), (2, 1));
    let wait = Duration::try_from(busy.estimated_queue_duration.unwrap()).unwrap();
    let step = Duration::try_from(busy.step_duration.unwrap()).unwrap();
    // Two of its kind are ahead of an image that comes now, in two slots: one image's worth of steps.
    assert!(wait.abs_diff(step * shape().values()) < Duration::from_micros(1), "{wait:?} of steps of {step:?}");
    assert!(busy.last_step_age.is_some());
    gate.open();
    while next(&mut running).await.unwrap().is_some() {}
}

#[tokio::test]
async fn an_operator_ends_the_server_and_what_runs_finishes() {
    let (shelf, gate) = shelf();
    let operated = Operated::start(config(), shelf).await;
    gate.allow(5);
    let mut running = operated.daemon.generation().stream_generate_images(stream(1, 1)).await.unwrap().into_inner();
    assert!(next(&mut running).await.unwrap().is_some());
    operated.admin().drain_server(DrainServerRequest {}).await.unwrap();
    wait_for(&operated.daemon, "readiness", ServingStatus::NotServing).await;
    let info = operated.admin().get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert!(info.draining, "it is served to the end");
    assert_eq!(refusal(&operated.load("x").await.unwrap_err()).1, "SERVER_DRAINING");
    gate.open();
    while next(&mut running).await.expect("running streams finish").is_some() {}
    let Operated { daemon, .. } = operated;
    tokio::time::timeout(PATIENCE, daemon.ended()).await.unwrap().unwrap();
}

#[tokio::test]
async fn operators_bring_a_token_where_one_is_asked_for() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "an-operators-own-token\n").unwrap();
    let mut config = config();
    config.auth.insert(Group::Admin, file.path().to_owned());
    let operated = Operated::start(config, shelf().0).await;
    let refused = operated.admin().get_server_info(GetServerInfoRequest {}).await.unwrap_err();
    assert_eq!((refused.code(), refusal(&refused).1.as_str()), (Code::Unauthenticated, "UNAUTHENTICATED"));
    let mut request = Request::new(GetServerInfoRequest {});
    request.metadata_mut().insert("authorization", "Bearer an-operators-own-token".parse().unwrap());
    operated.admin().get_server_info(request).await.unwrap();
}
