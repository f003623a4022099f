//! Models whose levels are colours.

use pixeld::app::Source;
use pixeld::image::{Palette, Shape, codec};
use pixeld::rpc::proto::{
    GenerateImagesRequest, GetModelRequest, Image, ImageEncoding, ListModelsRequest, ScoreImagesRequest, ScoreItem,
};

use crate::harness::{Daemon, MODEL, config, read, spec, stream};
use crate::steady::{Gate, Steady};

const COLOURS: [[f64; 3]; 3] = [[0.4, 0.0, 255.0], [10.5, 20.0, 30.0], [250.0, 200.0, 100.0]];

#[tokio::test]
async fn a_palette_travels_with_its_model_and_colours_png_files_both_ways() {
    let shape = Shape::new(4, 5, 1, 3).unwrap();
    let palette = Palette::new(COLOURS.to_vec(), shape).unwrap();
    let model = Steady::new(MODEL, shape, 2, &Gate::default()).coloured(palette.clone());
    let daemon = Daemon::start(config(), vec![Source::new(MODEL, move || Ok(Box::new(model)))]).await;

    let bytes = [0, 0, 255, 11, 20, 30, 250, 200, 100];
    let request = GetModelRequest { name: MODEL.into() };
    let told = daemon.models().get_model(request).await.unwrap().into_inner().model.unwrap();
    assert_eq!((told.palette.as_ref(), told.exact_palette.as_slice()), (bytes.as_slice(), COLOURS.as_flattened()));
    let listed = daemon.models().list_models(ListModelsRequest::default()).await.unwrap().into_inner().models;
    assert_eq!((listed[0].palette.as_ref(), listed[0].exact_palette.len()), (bytes.as_slice(), 0));
    let events = daemon.generation().stream_generate_images(stream(1, 5)).await.unwrap().into_inner();
    assert_eq!(read(events).await.unwrap().started.palette.as_ref(), bytes);

    let drawn = async |encoding: ImageEncoding| {
        let request = GenerateImagesRequest { spec: Some(spec(1, 5)), encoding: encoding.into() };
        daemon.generation().generate_images(request).await.unwrap().into_inner().images.remove(0)
    };
    let [raw, png] = [drawn(ImageEncoding::Raw).await, drawn(ImageEncoding::Png).await];
    let samples = codec::decode_png(&png.data, Shape::new(4, 5, 3, 256).unwrap(), None).unwrap();
    let coloured = raw.data.iter().flat_map(|&value| palette.rgb(value.into())).map(u16::from);
    assert!(samples.iter().copied().eq(coloured), "the colours of the raw values");
    assert!((0..3).all(|level| raw.data.contains(&level)), "every colour is among them");

    let near: Vec<u16> = samples.iter().map(|sample| sample.saturating_sub(3)).collect();
    let near = codec::encode_png(&near, Shape::new(4, 5, 3, 256).unwrap(), None).unwrap();
    let near = Image { data: near.into(), encoding: ImageEncoding::Png.into(), shape: None };
    let items = [raw, png, near].map(|image| ScoreItem { image: Some(image), ..ScoreItem::default() }).to_vec();
    let scores = daemon.scoring().score_images(ScoreImagesRequest { spec: None, items }).await.unwrap().into_inner();
    let scores: Vec<_> = scores.scores.iter().map(|score| score.nll_nats).collect();
    assert_eq!([scores[0], scores[0]], scores[1..]);
}
