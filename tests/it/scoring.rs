//! Scores, one by one and as a stream of a data set.

use pixeld::image::{Canvas, Order};
use pixeld::rpc::proto::stream_score_images_request::Part;
use pixeld::rpc::proto::stream_score_images_response::Event;
use pixeld::rpc::proto::{
    Conditioning, Image, ImageEncoding, ImageScore, ScoreDetail, ScoreImagesRequest, ScoreItem, ScoringCompleted,
    ScoringSpec, StreamScoreImagesRequest,
};
use tonic::{Code, Status};

use crate::harness::{Daemon, PATIENCE, config, refusal, shape};

/// An image of its own for each number.
pub(crate) fn item(index: u32) -> ScoreItem {
    let data: Vec<u8> = (0..shape().values()).map(|rank| ((rank * 7 + index * 3) % 16) as u8).collect();
    ScoreItem {
        item_id: format!("item-{index}"),
        image: Some(Image { data: data.into(), ..Image::default() }),
        conditioning: None,
    }
}

pub(crate) fn part(part: Part) -> StreamScoreImagesRequest {
    StreamScoreImagesRequest { part: Some(part) }
}

/// Sends all parts, closes, and reads to the end.
pub(crate) async fn score_all(
    daemon: &Daemon,
    parts: Vec<StreamScoreImagesRequest>,
) -> (Vec<ImageScore>, Result<ScoringCompleted, Status>) {
    let answers = daemon.scoring().stream_score_images(tokio_stream::iter(parts)).await.unwrap();
    let (mut answers, mut scores) = (answers.into_inner(), Vec::new());
    loop {
        match tokio::time::timeout(PATIENCE, answers.message()).await.expect("the stream goes on") {
            Ok(Some(answer)) => match answer.event.unwrap() {
                Event::Score(score) => scores.push(score),
                Event::Completed(completed) => {
                    assert!(answers.message().await.unwrap().is_none(), "completed comes last");
                    return (scores, Ok(completed));
                }
            },
            Ok(None) => panic!("cut without a status"),
            Err(status) => return (scores, Err(status)),
        }
    }
}

/// The closed form of the steady model, without its code.
fn nll(values: &[u8]) -> f64 {
    let mut before = 0i32;
    let mut total = 0.0;
    for &value in values {
        let weight = |level: i32| (-0.25 * f64::from((level - before).abs())).exp();
        total -= (weight(i32::from(value)) / (0..16).map(weight).sum::<f64>()).ln();
        before = i32::from(value);
    }
    total
}

#[tokio::test]
async fn scores_are_the_closed_form_in_nats_and_bits_and_sum_over_values() {
    let daemon = Daemon::steady().await;
    let spec = Some(ScoringSpec { detail: ScoreDetail::PerValue.into(), ..ScoringSpec::default() });
    let request = ScoreImagesRequest { spec, items: (0..8).map(item).collect() };
    let answer = daemon.scoring().score_images(request).await.unwrap().into_inner();
    assert_eq!(answer.model_revision, "0123456789abcdef");
    assert!(answer.timing.is_some());
    for (index, score) in (0..8).zip(answer.scores) {
        assert_eq!(score.item_id, format!("item-{index}"));
        let expected = nll(&item(index).image.unwrap().data);
        assert!((score.nll_nats - expected).abs() < 1e-3, "{} against {expected}", score.nll_nats);
        let dims = f64::from(shape().values());
        assert!((score.bits_per_dim - expected / dims / 2f64.ln()).abs() < 1e-5);
        assert_eq!(score.scored_values, shape().values());
        assert_eq!(score.value_nll_nats.len(), shape().values() as usize);
        let summed: f64 = score.value_nll_nats.iter().map(|value| f64::from(*value)).sum();
        assert!((summed - expected).abs() < 1e-3);
    }
}

#[tokio::test]
async fn a_png_scores_as_its_raw_values_do() {
    let daemon = Daemon::steady().await;
    let raw = item(1);
    let data = raw.image.clone().unwrap().data;
    let values = pixeld::image::codec::values_from_raw(&data, shape()).unwrap();
    let canvas = Canvas::from_raster(shape(), Order::Raster, &values).unwrap();
    let png = pixeld::image::codec::encode_png(&canvas.to_raster(Order::Raster), shape(), None).unwrap();
    let image = Image { data: png.into(), encoding: ImageEncoding::Png.into(), shape: None };
    let items = vec![raw, ScoreItem { image: Some(image), ..ScoreItem::default() }];
    let request = ScoreImagesRequest { spec: None, items };
    let scores = daemon.scoring().score_images(request).await.unwrap().into_inner().scores;
    assert_eq!(scores[0].nll_nats, scores[1].nll_nats);
}

#[tokio::test]
async fn a_data_set_of_five_hundred_items_is_scored_in_order_with_its_aggregate() {
    // Fewer places than the window, so the stream must wait for its own items.
    let mut config = config();
    config.engine.engine.queue_images = 1;
    let (daemon, _gate) = Daemon::gated(1, config).await;
    let mut parts = vec![part(Part::Spec(ScoringSpec::default()))];
    parts.extend((0..500).map(|index| part(Part::Item(item(index)))));
    let (scores, completed) = score_all(&daemon, parts).await;
    let completed = completed.unwrap();
    let ids: Vec<_> = scores.iter().map(|score| score.item_id.clone()).collect();
    assert_eq!(ids, (0..500).map(|index| format!("item-{index}")).collect::<Vec<_>>());
    let n = scores.len() as f64;
    let mean = scores.iter().map(|score| score.bits_per_dim).sum::<f64>() / n;
    let squares: f64 = scores.iter().map(|score| (score.bits_per_dim - mean).powi(2)).sum();
    assert_eq!(completed.item_count, 500);
    assert!((completed.mean_bits_per_dim - mean).abs() < 1e-9);
    assert!((completed.bits_per_dim_standard_error - (squares / (n - 1.0) / n).sqrt()).abs() < 1e-9);
    assert_eq!(completed.model_revision, "0123456789abcdef");
    let decoding = completed.timing.unwrap().decode_duration.unwrap();
    assert!(decoding.seconds > 0 || decoding.nanos > 0, "{decoding:?}");
}

#[tokio::test]
async fn the_first_bad_item_ends_a_stream_naming_item_and_field_after_the_scores_before_it() {
    let daemon = Daemon::steady().await;
    let mut bad = item(2);
    bad.image.as_mut().unwrap().data = vec![0; 3].into();
    bad.conditioning = Some(Conditioning { prefix: vec![0].into(), class_label: Some(9), ..Conditioning::default() });
    let spec = || part(Part::Spec(ScoringSpec::default()));
    let parts = vec![spec(), part(Part::Item(item(0))), part(Part::Item(item(1))), part(Part::Item(bad))];
    let (scores, ended) = score_all(&daemon, parts).await;
    assert!(scores.len() <= 2);
    let fields = ["item[2].conditioning.prefix", "item[2].conditioning.class_label", "item[2].image.data"];
    let expected = (Code::InvalidArgument, "INVALID_REQUEST".to_owned(), fields.map(String::from).to_vec());
    assert_eq!(refusal(&ended.unwrap_err()), expected);

    for parts in
        [vec![], vec![part(Part::Item(item(0)))], vec![spec(), spec()], vec![StreamScoreImagesRequest::default()]]
    {
        let (_, ended) = score_all(&daemon, parts).await;
        assert_eq!(refusal(&ended.unwrap_err()).2, ["part"]);
    }
    let (scores, completed) = score_all(&daemon, vec![spec()]).await;
    assert!(scores.is_empty());
    assert_eq!(completed.unwrap().item_count, 0);
}
