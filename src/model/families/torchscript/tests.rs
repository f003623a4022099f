//! Modules traced here, and what is found out about them.

use std::io::Cursor;

use tch::{CModule, Device, Kind, Tensor};

use super::check::{Buckets, PROBABILITIES, affordable};
use super::leak::{cuts, leak, places};
use super::module::Module;
use super::{Config, FAMILY, Found, Hints, entries, probe};
use crate::image::{Order, Shape};
use crate::model::manifest::Manifest;
use crate::model::{Placement, WeightsFile, WeightsFormat};
use crate::noise;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn traced(input: &[i64], mut forward: impl FnMut(&Tensor) -> Vec<Tensor>) -> Vec<u8> {
    traced_of(&[Tensor::zeros(input, FLOAT)], |inputs| forward(&inputs[0]))
}

fn traced_of(inputs: &[Tensor], mut forward: impl FnMut(&[Tensor]) -> Vec<Tensor>) -> Vec<u8> {
    let _guard = tch::no_grad_guard();
    let module = CModule::create_by_tracing("Traced", "forward", inputs, &mut forward).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("module.pt");
    module.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

fn file(stream: &mut Cursor<Vec<u8>>) -> WeightsFile<'_> {
    WeightsFile { format: WeightsFormat::TorchScript, bytes: stream.get_ref().len() as u64, stream }
}

fn hints(shape: Shape) -> Hints {
    Hints {
        name: "m".to_owned(),
        size: Some([shape.height(), shape.width()]),
        channels: Some(shape.channels()),
        levels: shape.levels(),
        ..Hints::default()
    }
}

fn found(archive: Vec<u8>, hints: &Hints) -> Result<Found, String> {
    crate::torch::limit_threads(1);
    probe(file(&mut Cursor::new(archive)), hints)
}

fn with(shape: Shape, lines: &[&str]) -> Hints {
    let lines: Vec<_> = lines.iter().map(|&line| line.to_owned()).collect();
    Hints { fixed: entries(&lines).unwrap(), ..hints(shape) }
}

fn numbers(seed: u64, shape: &[i64]) -> Tensor {
    let number = |element| 2.0 * (noise::uniform(seed, 0, element) as f32 - 0.5);
    Tensor::from_slice(&(0..shape.iter().product::<i64>() as u32).map(number).collect::<Vec<_>>()).view(shape)
}

fn shape(height: u32, width: u32, channels: u32, levels: u32) -> Shape {
    Shape::new(height, width, channels, levels).unwrap()
}

/// Logits [b, h, w, c, v] of planes [b, c, h, w]: each value's from a sum over those before its group of `group`. What is
/// made of numbers while a call is traced would not be in the module.
fn law(shape: Shape, group: i64) -> impl Fn(&Tensor) -> Tensor {
    let (values, levels) = (i64::from(shape.values()), i64::from(shape.levels()));
    let [h, w, c] = [shape.height(), shape.width(), shape.channels()].map(i64::from);
    let steps = values / group;
    let before = Tensor::ones([steps, steps], FLOAT).tril(-1);
    let before = before.repeat_interleave_self_int(group, 0, None).repeat_interleave_self_int(group, 1, None);
    let taken = (numbers(1, &[values, values]) * before).tr();
    let (offsets, given) = (numbers(2, &[values]), numbers(3, &[values, levels]));
    move |planes| {
        let kept = (planes.permute([0, 2, 3, 1]).reshape([-1, values]).matmul(&taken) + &offsets).tanh();
        (kept.unsqueeze(-1) * &given).view([-1, h, w, c, levels])
    }
}

#[test]
fn readings_that_leak_are_listed_with_their_proof() {
    let given = shape(3, 4, 3, 5);
    let logits = law(given, 1);
    let levels_first =
        traced(&[2, 3, 3, 4], |planes| vec![logits(planes).permute([0, 4, 3, 1, 2]).reshape([-1, 15, 3, 4])]);
    let Found { manifest, warnings } = found(levels_first, &hints(given)).unwrap();
    assert!(manifest.lines().any(|line| line == "output = \"b (v c) h w\""), "{manifest}");
    assert!(manifest.lines().any(|line| line == "kind = \"categorical\""), "{manifest}");
    assert!(manifest.contains("no step before was seen to change"), "{manifest}");
    for rejected in ["output = \"b (c v) h w\"", "kind = \"factorised_categorical\""] {
        let line = manifest.lines().find(|line| line.starts_with(&format!("#   {rejected}: the module looks at what")));
        assert!(line.is_some_and(|line| line.contains(" change by ")), "{manifest}");
    }
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn a_leak_is_proved_by_one_value_and_the_channel_that_it_changes() {
    let given = shape(3, 4, 2, 5);
    // Of the pixel at row 0 and column 2 the second channel sees the first of row 2 and column 1.
    let (logits, added, place) = (law(given, 2), numbers(4, &[1, 5]), Tensor::zeros([24], FLOAT));
    let _ = place.get(5).fill_(1.0);
    let peeking = traced(&[2, 2, 3, 4], |planes| {
        let seen = planes.narrow(1, 0, 1).narrow(2, 2, 1).narrow(3, 1, 1).reshape([-1, 1]).matmul(&added);
        vec![logits(planes) + seen.view([-1, 1, 1, 1, 5]) * place.view([1, 3, 4, 2, 1])]
    });
    let why = found(peeking, &hints(given)).unwrap_err();
    assert!(why.contains("the parameters at row 0, column 2, channel 1 change by "), "{why}");
    assert!(why.contains(" when nothing but the value at row 2, column 1, channel 0 does"), "{why}");
    assert!(why.contains("kind = \"factorised_categorical\""), "{why}");
}

#[test]
fn what_shows_with_one_level_alone_is_found_by_more_replacements() {
    let given = shape(2, 2, 1, 64);
    let added = numbers(4, &[1, 64]);
    let archive = traced(&[2, 1, 2, 2], |planes| {
        let from_one_level: Tensor = planes.reshape([-1, 4]).narrow(1, 3, 1) - 13.0;
        let at_one_level = (from_one_level.abs() * -1.0 + 1.0).clamp_min(0.0);
        vec![at_one_level.matmul(&added).view([-1, 1, 1, 64]).expand([-1, 2, 2, 64], false)]
    });
    let module = module(archive, &manifest(given, "", "input_scale = \"levels\"\noutput = \"b h w v\""));
    let _guard = tch::no_grad_guard();
    let sought = |draws| leak(&module, &Buckets::of(2), &places(given, Order::Raster), &[3], draws).unwrap();
    assert_eq!(sought(1), None);
    assert!(sought(128).is_some(), "as many trials of each kind as levels");
}

/// A manifest of planes that go in.
fn manifest(shape: Shape, condition: &str, architecture: &str) -> Manifest {
    let [height, width, channels, levels] = [shape.height(), shape.width(), shape.channels(), shape.levels()];
    let text = format!(
        "format = 1\nname = \"m\"\nfamily = \"torchscript\"\n[image]\nheight = {height}\nwidth = {width}\n\
         channels = {channels}\nlevels = {levels}\norder = \"raster\"\n[head]\nkind = \"categorical\"\n{condition}\n\
         [architecture]\ninput = \"b c h w\"\ninput_type = \"float32\"\n{architecture}\n"
    );
    Manifest::parse(text.as_bytes()).unwrap()
}

fn module(archive: Vec<u8>, manifest: &Manifest) -> Module {
    let module = crate::torch::weights::module(file(&mut Cursor::new(archive)), Device::Cpu).unwrap();
    Module::new(module.into(), Config::read(manifest).unwrap(), Device::Cpu)
}

/// 1 where an image of planes in -1..=1, of 256 levels, holds `level`, otherwise 0: [b, values].
fn holds(level: f64, planes: &Tensor, values: i64) -> Tensor {
    (((planes.reshape([-1, values]) + 1.0) * 127.5 - level).abs() * -1.0 + 1.0).clamp_min(0.0)
}

#[test]
fn what_one_level_of_256_gives_away_is_found() {
    let given = shape(4, 4, 1, 256);
    let (logits, added) = (law(given, 1), numbers(4, &[1, 256]));
    let (first, before) = (Tensor::zeros([16, 1], FLOAT), Tensor::zeros([1, 1], FLOAT));
    let _ = first.get(0).fill_(1.0);
    for level in [0.0, 19.0, 137.0, 255.0] {
        // Of the last value the first step sees whether it is that level; of every value, the step before.
        let far = traced(&[2, 1, 4, 4], |planes| {
            let seen = holds(level, planes, 16).narrow(1, 15, 1).matmul(&added);
            vec![logits(planes) + seen.view([-1, 1, 1, 1, 256]) * first.view([1, 4, 4, 1, 1])]
        });
        let near = traced(&[2, 1, 4, 4], |planes| {
            let seen = holds(level, planes, 16).narrow(1, 1, 15);
            let seen = Tensor::cat(&[seen, before.expand([2, 1], false)], 1);
            vec![logits(planes) + seen.view([-1, 4, 4, 1, 1]) * added.view([1, 1, 1, 1, 256])]
        });
        let known = with(given, &["input_scale = \"signed\"", "batches = [2]"]);
        for (archive, value) in [(far, "row 3, column 3"), (near, "row ")] {
            let why = found(archive, &known).unwrap_err();
            assert!(why.contains(&format!("when nothing but the value at {value}")), "level {level}: {why}");
        }
    }
}

#[test]
fn every_level_comes_at_the_last_place_and_at_every_distance() {
    use super::leak::levels_at;
    for (levels, cuts) in [(256u32, 130u32), (17, 18), (2, 5)] {
        let all: Vec<u16> = (0..levels as u16).collect();
        for (by_distance, key) in [(false, 3071), (true, 0), (true, 1), (true, 96)] {
            let mut seen = levels_at(by_distance, key, levels, cuts, (2 * levels).div_ceil(cuts));
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, all, "{levels} levels, by distance {by_distance}, at {key}");
        }
    }
}

#[test]
fn levels_may_stand_before_channels_anywhere() {
    let given = shape(3, 4, 3, 5);
    let logits = law(given, 1);
    let forms: [(&str, &dyn Fn(Tensor) -> Tensor); 4] = [
        ("b h w v c", &|rows| rows.transpose(3, 4)),
        ("b (h w) c v", &|rows| rows.view([-1, 12, 3, 5])),
        ("b (h w) v c", &|rows| rows.view([-1, 12, 3, 5]).transpose(2, 3)),
        ("b (h w) (v c)", &|rows| rows.view([-1, 12, 3, 5]).transpose(2, 3).reshape([-1, 12, 15])),
    ];
    for (form, arranged) in forms {
        let archive = traced(&[2, 3, 3, 4], |planes| vec![arranged(logits(planes))]);
        let Found { manifest, .. } = found(archive, &hints(given)).unwrap();
        let line = format!("output = \"{form}\"");
        assert!(manifest.lines().any(|own| own == line), "{form}: {manifest}");
    }
}

#[test]
fn labels_that_a_module_does_not_have_are_refused() {
    let given = shape(3, 4, 1, 5);
    let (logits, labels) = (as_planes(), numbers(5, &[5, 5]));
    let inputs = [Tensor::zeros([2, 1, 3, 4], FLOAT), Tensor::zeros([2], (Kind::Int64, Device::Cpu))];
    let archive =
        traced_of(&inputs, |inputs| vec![logits(&inputs[0]) + labels.index_select(0, &inputs[1]).view([-1, 5, 1, 1])]);
    let build = |condition: &str, null_class: &str| {
        let lines =
            format!("input_scale = \"unit\"\noutput = \"b v h w\"\narguments = [\"image\", \"class\"]\n{null_class}");
        let manifest = manifest(given, condition, &lines);
        let built = (FAMILY.build)(&manifest, Some(file(&mut Cursor::new(archive.clone()))), Placement::new(1, 1));
        built.map(|_| ()).map_err(|faults| faults.to_string())
    };
    assert_eq!(build("[condition]\nclasses = 5\nrequired = true", ""), Ok(()));
    let why = build("[condition]\nclasses = 10\nrequired = true", "").unwrap_err();
    assert!(why.starts_with("condition.classes: must be those of the module, got 10: of label 9, forward: "), "{why}");
    assert!(why.contains("index out of range"), "{why}");
    assert_eq!(build("[condition]\nclasses = 4", "null_class = 4"), Ok(()));
    let why = build("[condition]\nclasses = 5", "null_class = 5").unwrap_err();
    assert!(why.starts_with("architecture.null_class: must be a label of the module: forward: "), "{why}");
    let why = found(archive.clone(), &Hints { classes: 5, ..hints(given) });
    assert!(why.is_ok(), "{why:?}");
}

#[test]
fn a_batch_that_there_is_no_memory_for_is_not_tried() {
    const MIB: u64 = 1 << 20;
    let given = shape(3, 4, 1, 5);
    let logits = as_planes();
    // 12 MiB of numbers an image that nobody sees.
    let hungry = traced(&[2, 1, 3, 4], |planes| {
        let waste = planes.reshape([-1, 12, 1]).expand([-1, 12, 1 << 18], false).contiguous();
        vec![logits(planes) + waste.sum_dim_intlist([1, 2].as_slice(), false, Kind::Float).view([-1, 1, 1, 1]) * 0.0]
    });
    let of = |batches: &str, sizes: Vec<usize>, free: u64| {
        let lines = format!("input_scale = \"unit\"\noutput = \"b v h w\"\n{batches}");
        let _guard = tch::no_grad_guard();
        let module = module(hungry.clone(), &manifest(given, "", &lines));
        affordable(&module, sizes, free).map_err(|faults| faults.to_string())
    };
    assert_eq!(of("", vec![1, 2, 4, 8, 16], u64::MAX), Ok(vec![1, 2, 4, 8, 16]));
    let kept = of("", vec![1, 2, 4, 8, 16], 100 * MIB).unwrap();
    assert!(kept.first() == Some(&1) && kept.iter().all(|&size| size <= 8), "{kept:?}");
    let why = of("batches = [1000]", vec![1000], 512 * MIB).unwrap_err();
    assert!(why.starts_with("architecture.batches: may hold sizes up to "), "{why}");
    assert!(why.contains(" here: a pass takes ") && why.ends_with(" are free, got 1000"), "{why}");
}

#[test]
fn cuts_fall_on_every_channel_of_every_part() {
    let cuts = cuts(3072, 128);
    assert_eq!((cuts[..7].to_vec(), cuts.last()), (vec![0, 1, 2, 3, 4, 5, cuts[6]], Some(&3071)));
    for part in 0..32 {
        let within: Vec<_> = cuts.iter().filter(|&&cut| cut / 96 == part).collect();
        assert!(within.len() >= 4, "{part}: {within:?}");
    }
    for channel in 0..3 {
        assert!(cuts.iter().filter(|&&cut| cut % 3 == channel).count() > 20);
    }
}

/// Logits of images of 3 x 4 pixels of one channel and 5 levels, as planes.
fn as_planes() -> impl Fn(&Tensor) -> Tensor {
    let logits = law(shape(3, 4, 1, 5), 1);
    move |planes| logits(planes).squeeze_dim(3).permute([0, 3, 1, 2])
}

fn refused(changed: impl Fn(Tensor) -> Tensor) -> String {
    let logits = as_planes();
    found(traced(&[2, 1, 3, 4], |planes| vec![changed(logits(planes))]), &hints(shape(3, 4, 1, 5))).unwrap_err()
}

#[test]
fn what_is_no_number_is_named() {
    let nan = refused(|logits| (logits - 100.0).log());
    assert!(nan.contains("the module gives NaN for an image of random values"), "{nan}");
    let infinite = refused(|logits| logits / 0.0);
    assert!(infinite.contains("the module gives infinite numbers"), "{infinite}");
    assert!(![nan, infinite].iter().any(|why| why.contains("still to come")));
}

#[test]
fn probabilities_are_no_logits() {
    let given = hints(shape(3, 4, 1, 5));
    let why = refused(|logits| logits.softmax(1, None));
    assert!(why.contains(PROBABILITIES), "{why}");
    // Their log is taken.
    let logits = as_planes();
    let log = traced(&[2, 1, 3, 4], |planes| vec![logits(planes).log_softmax(1, None)]);
    assert!(found(log, &given).is_ok());
}

#[test]
fn one_number_a_value_may_be_a_probability_and_that_is_said() {
    let given = shape(3, 4, 1, 2);
    let logits = law(given, 1);
    let planes = |planes: &Tensor| logits(planes).select(4, 1).permute([0, 3, 1, 2]);
    let archive = traced(&[2, 1, 3, 4], |input| vec![planes(input).sigmoid()]);
    let Found { manifest, warnings } = found(archive, &hints(given)).unwrap();
    assert!(manifest.contains("# CHECK: all that it gives lies within 0..=1"), "{manifest}");
    assert!(warnings.iter().any(|warning| warning.contains("after a sigmoid")), "{warnings:?}");
    let archive = traced(&[2, 1, 3, 4], |input| vec![planes(input)]);
    assert!(!found(archive, &hints(given)).unwrap().manifest.contains("CHECK"));
}

#[test]
fn what_is_known_beforehand_is_all_that_is_tried() {
    let given = shape(3, 4, 1, 5);
    // Columns before rows, which nobody would try.
    let logits = law(given, 1);
    let turned = || traced(&[2, 1, 3, 4], |planes| vec![logits(planes).squeeze_dim(3).permute([0, 2, 1, 3])]);
    let why = found(turned(), &hints(given)).unwrap_err();
    assert!(why.starts_with("what the module gives has no form that is known"), "{why}");
    assert!(why.contains("--set 'output = "), "{why}");
    let known = with(given, &["output = \"b w h v\"", "std = [0.5]", "input_scale = \"unit\""]);
    let manifest = found(turned(), &known).unwrap().manifest;
    for line in ["output = \"b w h v\"", "std = [0.5]", "input_scale = \"unit\"", "input = \"b c h w\""] {
        assert!(manifest.lines().any(|own| own == line), "{manifest}");
    }
    assert!(!manifest.contains("ASSUMED"), "{manifest}");
    for line in ["input = \"b (h w c)\"", "input_type = \"int64\"", "output = \"b h w v\"", "output_item = 1"] {
        let why = found(turned(), &with(given, &[line])).unwrap_err();
        assert!(why.starts_with(&format!("nothing agrees with what was said beforehand, {line}: ")), "{why}");
    }
    let prefix = found(turned(), &with(given, &["output = \"b w h v\"", "prefix = true"])).unwrap_err();
    assert!(prefix.contains("prefix must be false: the module fails at 1 rows"), "{prefix}");
    let batches = found(turned(), &with(given, &["output = \"b w h v\"", "batches = [3]"])).unwrap();
    assert!(batches.manifest.contains("batches = [3]\n"), "{}", batches.manifest);
}

#[test]
fn what_the_examples_hardly_tell_apart_is_said_to_be_close() {
    let given = shape(3, 4, 1, 5);
    let logits = as_planes();
    let archive = |scaled: f64| traced(&[2, 1, 3, 4], |planes| vec![logits(&(planes * scaled)) * 9.0]);
    // The likeliest image, value after value, of levels from -1 to 1.
    let mut example = vec![0u16; 12];
    for place in 0..12 {
        let signed: Vec<f32> = example.iter().map(|&level| f32::from(level) / 2.0 - 1.0).collect();
        let likeliest = logits(&Tensor::from_slice(&signed).view([1, 1, 3, 4])).argmax(1, false).flatten(0, -1);
        example[place as usize] = likeliest.int64_value(&[place]) as u16;
    }
    let examples = vec![example];
    let alike = found(archive(1e-6), &Hints { examples: examples.clone(), ..hints(given) }).unwrap();
    assert!(alike.manifest.contains("# CLOSE: the next reading takes only 0.0000 bits/dim more"), "{}", alike.manifest);
    assert_eq!(alike.warnings.len(), 1);
    let apart = found(archive(1.0), &Hints { examples, ..hints(given) }).unwrap();
    assert!(apart.manifest.contains("input_scale = \"signed\"\n"), "{}", apart.manifest);
    assert!(!apart.manifest.contains("CLOSE") && apart.warnings.is_empty(), "{}", apart.manifest);
    let small = vec![vec![0; 5]];
    let why = found(archive(1.0), &Hints { examples: small, ..hints(given) }).unwrap_err();
    assert!(why.contains("are they images of 3x4x1?"), "{why}");
}

/// A law of tokens, int64 [b, n], by the token before each, `start` before the first; and an image that begins with `first`,
/// as is likely.
fn follows(start: i64, first: u16, given: Shape) -> (Vec<u8>, Hints) {
    let levels = i64::from(given.levels());
    // Of each token what comes next: most often `first` after `start`.
    let table = numbers(9, &[levels + 1, levels]);
    let _ = table.get(start).get(first.into()).fill_(5.0);
    let values = i64::from(given.values());
    let inputs = [Tensor::zeros([2, values], (Kind::Int64, Device::Cpu))];
    let archive = traced_of(&inputs, |inputs| {
        vec![table.index_select(0, &inputs[0].narrow(1, 0, values).reshape([-1])).view([2, -1, levels])]
    });
    let mut image = vec![1; given.values() as usize];
    image[0] = first;
    (archive, Hints { examples: vec![image], ..with(given, &["batches = [2]"]) })
}

#[test]
fn what_stands_before_the_first_value_is_told_by_images_or_said_to_be_assumed() {
    let given = shape(2, 3, 1, 4);
    for start in [4, 0] {
        let (archive, hints) = follows(start, 2, given);
        let Found { manifest, .. } = found(archive.clone(), &hints).unwrap();
        assert!(manifest.lines().any(|line| line == format!("start = {start}")), "{manifest}");
        assert!(manifest.lines().any(|line| line.starts_with(&format!("#   start = {}: ", 4 - start))), "{manifest}");
        assert!(manifest.contains("# Of start, 4 and 0 are tried; another would be given by --set"), "{manifest}");
        let Found { manifest, warnings } = found(archive, &Hints { examples: Vec::new(), ..hints }).unwrap();
        assert!(manifest.contains("ASSUMED") && manifest.lines().any(|line| line == "#   start = 0"), "{manifest}");
        assert!(warnings[0].contains("something was assumed"), "{warnings:?}");
    }
}

#[test]
fn what_one_scale_hides_is_found_under_the_one_that_is_chosen() {
    let given = shape(2, 2, 2, 256);
    // The second channel of a pixel sees a hundredth of the first: less than rounding if that is 1/255 of what it should be.
    let (logits, added) = (law(given, 2), numbers(4, &[1, 256]));
    let forward = |planes: &Tensor| {
        let planes = planes / 255.0;
        let seen = planes.narrow(1, 0, 1).permute([0, 2, 3, 1]).unsqueeze(-1) * &added * 0.01;
        let none: Tensor = &seen * 0.0;
        logits(&planes) + Tensor::cat(&[none, seen], 3)
    };
    // Each value the likeliest after those before it.
    let image = Tensor::zeros([1, 2, 2, 2], FLOAT);
    let mut values = Vec::new();
    for (y, x, c) in (0..2).flat_map(|y| (0..2).flat_map(move |x| (0..2).map(move |c| (y, x, c)))) {
        let level = forward(&image).get(0).get(y).get(x).get(c).argmax(None, false).int64_value(&[]);
        let _ = image.get(0).get(c).get(y).get(x).fill_(level);
        values.push(level as u16);
    }
    let archive = traced(&[2, 2, 2, 2], |planes| vec![forward(planes)]);
    let Found { manifest, .. } = found(archive, &Hints { examples: vec![values], ..hints(given) }).unwrap();
    for line in ["input_scale = \"levels\"", "kind = \"categorical\""] {
        assert!(manifest.lines().any(|own| own == line), "{line}: {manifest}");
    }
    let rejected =
        "#   kind = \"factorised_categorical\": the module looks at what is still to come: the parameters at ";
    assert!(manifest.lines().any(|line| line.starts_with(rejected)), "{manifest}");
}

#[test]
fn two_levels_have_two_scales() {
    let given = shape(3, 4, 1, 2);
    let logits = law(given, 1);
    let Found { manifest, .. } = found(traced(&[2, 1, 3, 4], |planes| vec![logits(planes)]), &hints(given)).unwrap();
    let others: Vec<_> = manifest.lines().filter(|line| line.starts_with("#   input_scale")).collect();
    assert_eq!(others, ["#   input_scale = \"unit\""], "{manifest}");
}

#[test]
fn what_hinders_is_said_with_what_would_help() {
    let given = shape(3, 4, 1, 256);
    let refusal = |archive: Vec<u8>, hints: &Hints| found(archive, hints).unwrap_err();
    let one_logit = traced(&[2, 1, 3, 4], |planes| vec![planes * 0.5]);
    let why = refusal(one_logit, &hints(given));
    assert!(
        why.contains("For each value of an image it gives 1: ") && why.contains("a logit alone --levels 2"),
        "{why}"
    );
    let logits = as_planes();
    let normalised = |planes: &Tensor| planes - planes.mean_dim([0i64].as_slice(), true, Kind::Float);
    let mixing = traced(&[2, 1, 3, 4], |planes| vec![logits(&normalised(planes))]);
    let why = refusal(mixing, &hints(shape(3, 4, 1, 5)));
    assert!(why.starts_with("the module takes images, but those of a batch change each other. "), "{why}");
    let three = traced(&[3, 1, 3, 4], |planes| vec![logits(planes).view([3, 5, 3, 4])]);
    assert!(refusal(three, &hints(shape(3, 4, 1, 5))).contains("--set 'batches = [12]'"));
    let pointwise = traced(&[2, 1, 3, 4], |planes| {
        let none: Tensor = planes * 0.0;
        vec![none.repeat([1, 5, 1, 1]) + numbers(1, &[1, 5, 1, 1])]
    });
    let why = refusal(pointwise, &Hints { size: None, channels: Some(1), ..hints(shape(3, 4, 1, 5)) });
    assert!(why.contains("several sizes, 28x28x1 and 32x32x1 for two: ") && why.contains("--examples"), "{why}");
}
