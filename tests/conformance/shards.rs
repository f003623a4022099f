//! Every family behind an engine of one, two and three shards: the same bytes.

use pixeld::engine::{Engine, EngineConfig};
use pixeld::head::Tuning;
use pixeld::image::Canvas;
use pixeld::job::{Class, Granularity, Reproducibility, SampleJob, ScoreJob};
use pixeld::model::{Condition, PixelModel};

use super::{ROUNDING, conditions, record, small};

/// More than the slots of three shards: some wait.
const IMAGES: u32 = 7;

/// The images of a job in an engine of `shards` shards, their likelihoods to the bit, and how they score.
async fn through_an_engine(model: Box<dyn PixelModel>, shards: u32) -> (Vec<Vec<u16>>, Vec<u64>, Vec<f64>) {
    let (shape, [_, condition, _]) = (model.spec().shape, conditions(&*model));
    let engine =
        Engine::start(model, shards, EngineConfig { queue_images: 64, score_share: 0.5, ..EngineConfig::default() })
            .unwrap();
    let job = SampleJob {
        images: IMAGES,
        first_image: 3,
        condition: condition.clone(),
        lows: Vec::new(),
        prefix: Canvas::with_prefix(shape, vec![1, 4, 2, 0]).unwrap(),
        tuning: Tuning::default(),
        seed: 90,
        noise_from: 0,
        reproducibility: Reproducibility::BatchInvariant,
        class: Class::Interactive,
        granularity: Granularity::Pixel,
        queue_timeout: None,
    };
    let mut images = vec![job.prefix.values().to_vec(); IMAGES as usize];
    let mut stream = engine.handle().sample(job, None).unwrap();
    while let Some(runs) = stream.next(None).await {
        for run in runs.unwrap() {
            let image = &mut images[run.image as usize];
            assert_eq!(image.len(), run.first as usize, "every value once, and in order");
            image.extend(run.values);
        }
    }
    let likelihoods = stream.summary().unwrap().log_likelihoods;
    let item = |values: &Vec<u16>| (Canvas::with_prefix(shape, values.clone()).unwrap(), condition.clone());
    let items: Vec<(Canvas, Condition)> = images.iter().map(item).collect();
    let scoring = ScoreJob { items, per_value: false, class: Class::Interactive };
    let (scores, _) = engine.handle().score(scoring, None).unwrap().scores().await.unwrap();
    engine.stop();
    let scores = scores.iter().map(|score| score.log_likelihood).collect();
    (images, likelihoods.into_iter().map(f64::to_bits).collect(), scores)
}

#[tokio::test]
async fn any_number_of_shards_gives_the_same_bytes_and_scores_in_the_order_of_the_items() {
    let (mut walked, mut varied) = (0, 0);
    for package in small() {
        walked += 1;
        let model = package.load(2, 16);
        let values = model.spec().shape.values() as usize;
        let (images, likelihoods, scores) = through_an_engine(model, 1).await;
        assert!(images.iter().all(|image| image.len() == values), "{}", package.label);
        varied += usize::from(images[0] != images[1]);
        for shards in [2, 3] {
            let sharded = through_an_engine(package.load(2, 16), shards).await;
            assert_eq!((&sharded.0, &sharded.1), (&images, &likelihoods), "{} on {shards} shards", package.label);
            for ((score, single), bits) in sharded.2.iter().zip(&scores).zip(&likelihoods) {
                assert!(
                    (score - single).abs() < values as f64 * ROUNDING,
                    "{}: {score} against {single}",
                    package.label
                );
                let sampled = (score - f64::from_bits(*bits)).abs();
                assert!(sampled < 1e-3, "{}: {score}", package.label);
                record(package.family, "score", sampled);
            }
        }
    }
    // The random weights of one module make it all but certain of every value.
    assert!(varied + 1 >= walked, "{varied} of {walked} packages draw different images");
}

#[test]
fn a_shard_has_slots_of_its_own_and_the_same_bits() {
    for package in small() {
        let mut model = package.load(1, 1);
        let mut shard = model.shard(3).unwrap();
        assert_eq!((shard.spec().slots, model.spec().slots), (3, 1));
        let (image, [_, first, second]) = (super::any_image(&*model, 91), conditions(&*model));
        let slot = pixeld::model::Slot;
        model.open(slot(0), &first).unwrap();
        shard.open(slot(0), &second).unwrap();
        shard.open(slot(2), &first).unwrap();
        let mut differs = 0;
        let (each, values) = (model.spec().values_per_step(), model.spec().shape.values());
        for rank in (0..values).step_by(each as usize) {
            let step =
                |model: &mut dyn PixelModel, slot| super::bits(&super::step(model, slot, &image, rank..rank + each)[0]);
            let other = step(&mut *shard, slot(0));
            let [alone, sharded] = [step(&mut *model, slot(0)), step(&mut *shard, slot(2))];
            assert_eq!(alone, sharded, "{} at rank {rank}", package.label);
            differs += usize::from(alone != other);
        }
        // Not at every rank: all features that know of the class may be cut off there.
        let told_apart = differs > (values / 2 / each) as usize;
        assert_eq!(told_apart, first != second, "{}: another class", package.label);
    }
}
