//! Revisions and aliases that change while requests run: nobody fails, and every answer is of one revision.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use pixeld::error::Violations;
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::scoring_service_client::ScoringServiceClient;
use pixeld::rpc::proto::stream_score_images_request::Part;
use pixeld::rpc::proto::stream_score_images_response::Event as Scored;
use pixeld::rpc::proto::{Image, ModelState, ScoreItem, ScoringSpec, StreamGenerateImagesRequest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::{MODEL, config, connect, patiently, read, refusal, shape, stream};
use crate::operated::{Operated, Shelf};
use crate::scoring::part;
use crate::steady::{Gate, Steady};

const REVISIONS: [(&str, u32); 2] = [("r1", 0), ("r2", 5)];
const CLIENTS: u64 = 6;
const RELOADS: usize = 12;

fn put(shelf: &Shelf, name: &'static str, (revision, shift): (&'static str, u32)) {
    shelf.put(name, revision, move || Ok(Steady::new(name, shape(), 2, &Gate::default()).revised(revision, shift)));
}

fn of(model: &str, seed: u64) -> StreamGenerateImagesRequest {
    let mut request = stream(2, seed);
    request.spec.as_mut().unwrap().model = model.into();
    request
}

type Images = BTreeMap<u32, Vec<u8>>;

/// Model, revision and images of one answer.
async fn sample(
    client: &mut GenerationServiceClient<tonic::transport::Channel>,
    model: &str,
    seed: u64,
) -> (String, String, Images) {
    let events = client.stream_generate_images(of(model, seed)).await.expect("nobody is refused").into_inner();
    let read = read(events).await.expect("nobody is cut");
    (read.started.model, read.started.model_revision, read.values)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_fails_while_revisions_change_and_every_answer_is_of_one_of_them() {
    let shelf = Shelf::default();
    put(&shelf, MODEL, REVISIONS[0]);
    let mut config = config();
    config.engine.engine.queue_images = 1000;
    let operated = Operated::start(config, shelf).await;
    let mut client = operated.daemon.generation();
    // What each revision draws for each client.
    let mut expected: BTreeMap<(String, u64), Images> = BTreeMap::new();
    for revision in [REVISIONS[1], REVISIONS[0]] {
        put(&operated.shelf, MODEL, revision);
        operated.reload(MODEL).await.unwrap();
        for seed in 0..CLIENTS {
            let (_, told, images) = sample(&mut client, MODEL, seed).await;
            assert_eq!(told, revision.0);
            expected.insert((told, seed), images);
        }
    }
    assert_ne!(expected[&("r1".into(), 0)], expected[&("r2".into(), 0)]);

    let (expected, done) = (Arc::new(expected), Arc::new(AtomicBool::new(false)));
    let answers: Arc<[AtomicU32; 2]> = Arc::default();
    let mut clients = JoinSet::new();
    for seed in 0..CLIENTS {
        let (expected, done, answers) = (Arc::clone(&expected), Arc::clone(&done), Arc::clone(&answers));
        let mut client = GenerationServiceClient::new(connect(operated.daemon.address));
        clients.spawn(async move {
            while !done.load(Relaxed) {
                let (_, revision, images) = sample(&mut client, MODEL, seed).await;
                assert_eq!(Some(&images), expected.get(&(revision.clone(), seed)), "{revision}");
                answers[usize::from(revision == "r2")].fetch_add(1, Relaxed);
            }
        });
    }
    let counts = || [0, 1].map(|revision: usize| answers[revision].load(Relaxed));
    for round in 0..RELOADS {
        let (old, new) = (round % 2, (round + 1) % 2);
        put(&operated.shelf, MODEL, REVISIONS[new]);
        let answer = operated.reload(MODEL).await.unwrap();
        assert_eq!(answer.previous_revision, REVISIONS[old].0);
        assert_eq!(answer.model.unwrap().revision, REVISIONS[new].0);
        // Until requests have been answered by the new one.
        let before = counts()[new];
        patiently(async {
            while counts()[new] < before + 3 && !clients.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    done.store(true, Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert!(counts().iter().all(|&count| count >= RELOADS as u32 / 2 * 3), "{:?}", counts());
}

#[tokio::test]
async fn a_stream_of_scores_that_a_reload_comes_upon_stays_with_the_revision_it_began_with() {
    let shelf = Shelf::default();
    put(&shelf, MODEL, REVISIONS[0]);
    let operated = Operated::start(config(), shelf).await;
    let (items, incoming) = mpsc::channel(4);
    let item = || {
        let image = Image { data: vec![3; shape().values() as usize].into(), ..Image::default() };
        part(Part::Item(ScoreItem { image: Some(image), ..ScoreItem::default() }))
    };
    let spec = ScoringSpec { model: MODEL.into(), ..ScoringSpec::default() };
    items.send(part(Part::Spec(spec))).await.unwrap();
    items.send(item()).await.unwrap();
    let mut client = ScoringServiceClient::new(connect(operated.daemon.address));
    let mut scores = client.stream_score_images(ReceiverStream::new(incoming)).await.unwrap().into_inner();
    let mut score = async || match patiently(scores.message()).await.unwrap().unwrap().event {
        Some(Scored::Score(score)) => Ok(score.nll_nats),
        Some(Scored::Completed(completed)) => Err(completed),
        None => panic!("an event says something"),
    };
    let first = score().await.unwrap();
    put(&operated.shelf, MODEL, REVISIONS[1]);
    operated.reload(MODEL).await.unwrap();
    items.send(item()).await.unwrap();
    assert_eq!(score().await.unwrap(), first);
    drop(items);
    let completed = score().await.unwrap_err();
    assert_eq!((completed.model_revision.as_str(), completed.model.as_str()), ("r1", "models/steady"));
    assert_eq!(operated.model(MODEL).await.unwrap().revision, "r2");
}

#[tokio::test]
async fn a_reload_that_fails_leaves_the_old_revision_serving_and_says_why() {
    let shelf = Shelf::default();
    put(&shelf, MODEL, REVISIONS[0]);
    let operated = Operated::start(config(), shelf).await;
    let mut client = operated.daemon.generation();
    let before = sample(&mut client, MODEL, 1).await;
    let broken = Arc::new(Gate::default());
    broken.break_model();
    type Make = Box<dyn Fn() -> Result<Steady, Violations> + Send + Sync>;
    let bad: [(&str, Make); 3] = [
        ("weights.sha256: says", Box::new(|| Err(Violations::one("weights.sha256", "says 00, the file has 01")))),
        ("loading panicked", Box::new(|| panic!("a bug in a family"))),
        ("broken by the test", Box::new(move || Ok(Steady::new(MODEL, shape(), 2, &broken).revised("r2", 0)))),
    ];
    for (why, make) in bad {
        operated.shelf.put(MODEL, "r2", make);
        let status = operated.reload(MODEL).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::FailedPrecondition, "RELOAD_FAILED".into(), vec![]));
        assert!(status.message().contains(why) && status.message().contains("revision r1"), "{status:?}");
        let model = operated.model(MODEL).await.unwrap();
        assert_eq!((model.state(), model.revision.as_str()), (ModelState::Ready, "r1"));
        assert_eq!(sample(&mut client, MODEL, 1).await, before);
    }
    put(&operated.shelf, MODEL, REVISIONS[1]);
    assert_eq!(operated.reload(MODEL).await.unwrap().previous_revision, "r1");
    assert_eq!(sample(&mut client, MODEL, 1).await.1, "r2");
    let status = operated.reload("nobody").await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "MODEL_NOT_FOUND".into(), vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_alias_moves_between_two_requests_and_answers_name_the_model_behind_it() {
    let shelf = Shelf::default();
    put(&shelf, "a", REVISIONS[0]);
    put(&shelf, "b", REVISIONS[1]);
    let mut config = config();
    config.models.aliases = BTreeMap::from([("stable".into(), "a".into())]);
    let operated = Operated::start(config, shelf).await;
    let mut client = operated.daemon.generation();
    assert_eq!(sample(&mut client, "stable", 1).await.0, "models/a");
    assert_eq!(operated.model("models/stable").await.unwrap().name, "models/a");
    assert_eq!(operated.model("a").await.unwrap().aliases, ["stable"]);

    let done = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for seed in 0..CLIENTS {
        let (done, mut client) = (Arc::clone(&done), GenerationServiceClient::new(connect(operated.daemon.address)));
        clients.spawn(async move {
            let mut count = 0;
            while !done.load(Relaxed) {
                let (model, revision, _) = sample(&mut client, "models/stable", seed).await;
                assert!([("models/a", "r1"), ("models/b", "r2")].contains(&(&model, &revision)), "{model} {revision}");
                count += 1;
            }
            count
        });
    }
    for (old, new) in [("a", "b"), ("b", "a")].repeat(10) {
        assert_eq!(operated.alias("stable", new).await.unwrap(), format!("models/{old}"));
        // Whoever asks from now on gets the new one.
        assert_eq!(sample(&mut client, "stable", 1).await.0, format!("models/{new}"));
    }
    done.store(true, Relaxed);
    while let Some(count) = clients.join_next().await {
        assert!(count.unwrap() > 0);
    }
    for (alias, model, reason) in
        [("a", "b", "INVALID_REQUEST"), ("Big", "a", "INVALID_REQUEST"), ("new", "nobody", "MODEL_NOT_FOUND")]
    {
        assert_eq!(refusal(&operated.alias(alias, model).await.unwrap_err()).1, reason);
    }
    put(&operated.shelf, "stable", REVISIONS[0]);
    assert_eq!(refusal(&operated.load("stable").await.unwrap_err()).2, ["name"]);
}
