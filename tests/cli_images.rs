//! `pixeld complete` and `pixeld upscale` on a package of the reference's, which enlarges images block after block.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests count as product code to clippy")]

use std::path::Path;
use std::process::{Command, Output};

use pixeld::image::{Blocks, Canvas, Order, Shape, codec};
use serde_json::Value;

const NAME: &str = "encoder_pre_blocks_torchscript";

/// A directory of packages with that one, and what the reference knows of it.
fn models() -> (tempfile::TempDir, Value) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/image_transformer").join(NAME);
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join(NAME)).unwrap();
    for file in ["model.toml", "weights.pt"] {
        std::fs::copy(from.join(file), root.path().join(NAME).join(file)).unwrap();
    }
    (root, serde_json::from_slice(&std::fs::read(from.join("golden.json")).unwrap()).unwrap())
}

fn pixeld(models: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.env("PIXELD__MODELS__EMBEDDED", "false").args(arguments).arg("--models").arg(models).output().unwrap()
}

fn values(list: &Value) -> Vec<u16> {
    list.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as u16).collect()
}

#[test]
fn a_file_without_end_is_refused() {
    for arguments in [&["complete", "--keep-rows", "2", "/dev/zero"][..], &["check", "--config", "/dev/zero"]] {
        let output = pixeld(models().0.path(), arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_small_image_is_enlarged_to_what_the_reference_makes_of_it() {
    let (models, golden) = models();
    let [shape, low] = [(4, 6), (2, 3)].map(|(height, width)| Shape::new(height, width, 1, 17).unwrap());
    let file = |name: &str| models.path().join(name).to_str().unwrap().to_owned();
    let plain =
        |sample: &&Value| sample["temperature"] == 1.0 && sample["top_k"].is_null() && sample["top_p"].is_null();
    let sample = golden["samples"].as_array().unwrap().iter().find(plain).unwrap();
    std::fs::write(file("small.png"), codec::encode_png(&values(&sample["low"]), low, None).unwrap()).unwrap();
    let (seed, index) = (sample["seed"].to_string(), sample["image"].to_string());
    let (small, out, dir) = (file("small.png"), file("sheet.png"), file("larger-images"));
    let output = pixeld(
        models.path(),
        &["upscale", &small, "--seed", &seed, "--first-index", &index, "--out", &out, "--out-dir", &dir, "--json"],
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [told, known] =
        [&report["images"][0]["log_likelihood"], &sample["log_likelihood"]].map(|nats| nats.as_f64().unwrap());
    assert!((told - known).abs() < 1e-3, "{told} against {known}");
    assert_eq!([&report["images"][0]["from"], &report["totals"]["values"]], [&Value::from(small.as_str()), &24.into()]);
    let made = std::fs::read(Path::new(&dir).join(format!("small-{index}.png"))).unwrap();
    assert_eq!(codec::decode_png(&made, shape, None).unwrap(), values(&sample["values"]));
    // One line of two images, each enlarged to 96 pixels, with gaps of 4.
    let sheet = Shape::new(4 + 64 + 4, 4 + 96 + 4 + 96 + 4, 3, 256).unwrap();
    assert!(codec::decode_png(&std::fs::read(&out).unwrap(), sheet, None).is_ok());

    // Its upper half is kept, and the same noise makes the same lower half of it.
    let large = Path::new(&dir).join(format!("small-{index}.png"));
    let complete = ["complete", "--keep-rows", "2", large.to_str().unwrap()];
    let noise = ["--seed", &seed, "--first-index", &index, "--low-resolution", &small, "--out-dir", &dir, "--json"];
    let output = pixeld(models.path(), &[&complete[..], &noise].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["totals"]["values"], 12);
    let completed = std::fs::read(Path::new(&dir).join(format!("small-{index}-{index}.png"))).unwrap();
    assert_eq!(completed, made);

    // The image does not fit as one to be completed, nor can a model be left without what it needs.
    for (arguments, words) in [
        (&["complete", "--keep-rows", "2", &small][..], "small.png: must be 6 pixels wide and 4 high"),
        (&complete, "--low-resolution: the model needs a low-resolution image of 2 x 3"),
        (
            &[&complete[..], &["--low-resolution", complete[3]]].concat(),
            "--low-resolution: must be 3 pixels wide and 2 high",
        ),
        (
            &[&complete[..], &["--low-resolution", &small, &small]].concat(),
            "--low-resolution: must be 1 image or 1, got 2",
        ),
        (&["sample", "--out", &out], "use `pixeld upscale`: the model needs a low-resolution image of 2 x 3"),
    ] {
        let output = pixeld(models.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn small_images_are_refused_where_they_are_not_there_or_not_taken() {
    let root = tempfile::tempdir().unwrap();
    let [image, array] = ["image.png", "images.npy"].map(|name| root.path().join(name).to_str().unwrap().to_owned());
    let shape = Shape::new(8, 8, 1, 17).unwrap();
    std::fs::write(&image, codec::encode_png(&[0; 64], shape, None).unwrap()).unwrap();
    npy(&array, [8, 8], &[vec![0; 64]]);
    for (flag, file, words) in [
        ("--low-resolution", image.as_str(), "takes"),
        ("--low-resolution-npy", array.as_str(), "takes"),
        ("--low-resolution-npy", "/no/such/low.npy", "/no/such/low.npy"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
        let output = command.args(["score", "--model", "digits", "--class", "1", &image, flag, file]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains(flag) || file.starts_with("/no"), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

/// A NumPy file of images of one channel, in `uint8`.
fn npy(path: &str, [height, width]: [u32; 2], images: &[Vec<u16>]) {
    let shape = format!("({}, {height}, {width})", images.len());
    let header = format!("{:117}\n", format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"));
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes().chain(images.iter().flatten().map(|&value| value as u8)));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_image_is_scored_given_its_small_one_as_the_reference_scores_it() {
    let (models, golden) = models();
    let [shape, low] = [(4, 6), (2, 3)].map(|(height, width)| Shape::new(height, width, 1, 17).unwrap());
    let file = |name: &str| models.path().join(name).to_str().unwrap().to_owned();
    let [images, lows] = ["images", "low"].map(|key| golden[key].as_array().unwrap().iter().map(values).collect());
    let (images, lows): (Vec<Vec<u16>>, Vec<Vec<u16>>) = (images, lows);
    let nats = |values: &Value| -values.as_array().unwrap().iter().map(|nats| nats.as_f64().unwrap()).sum::<f64>();
    let known: Vec<f64> = golden["log_probs"].as_array().unwrap().iter().map(nats).collect();
    assert_ne!(lows[0], lows[1]);
    let (mut large, mut small) = (Vec::new(), Vec::new());
    for (index, (image, low_values)) in images.iter().zip(&lows).enumerate() {
        let [of_image, of_low] = ["large", "small"].map(|name| file(&format!("{name}-{index}.png")));
        std::fs::write(&of_image, codec::encode_png(image, shape, None).unwrap()).unwrap();
        std::fs::write(&of_low, codec::encode_png(low_values, low, None).unwrap()).unwrap();
        large.push(of_image);
        small.push(of_low);
    }
    let (all, all_small) = (file("large.npy"), file("small.npy"));
    npy(&all, [4, 6], &images);
    npy(&all_small, [2, 3], &lows);
    let score = |arguments: &[&[String]]| {
        let arguments: Vec<&str> = arguments.iter().copied().flatten().map(String::as_str).collect();
        pixeld(models.path(), &[&["score", "--json"], &arguments[..]].concat())
    };
    let told = |output: Output| -> Vec<f64> {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["nll_nats"].as_f64()).collect()
    };
    let [by_png, by_npy, npy_of_images] = ["--low-resolution", "--low-resolution-npy", "--npy"].map(str::to_owned);
    let [by_png, by_npy, npy_of_images] = [[by_png], [by_npy], [npy_of_images]];
    let [all, all_small] = [[all], [all_small]];
    for arguments in [
        [&large[..], &by_png, &small],
        [&large, &by_npy, &all_small],
        [&[npy_of_images[0].clone(), all[0].clone()], &by_png, &small],
        [&[npy_of_images[0].clone(), all[0].clone()], &by_npy, &all_small],
    ] {
        let told = told(score(&arguments));
        assert_eq!(told.len(), known.len(), "{arguments:?}");
        for (told, known) in told.iter().zip(&known) {
            assert!((told - known).abs() < 1e-3, "{arguments:?}: {told} against {known}");
        }
    }
    // One for all is that of the first image only.
    let told = told(score(&[&large, &by_png, &small[..1]]));
    assert!((told[0] - known[0]).abs() < 1e-3 && (told[1] - known[1]).abs() > 1e-3, "{told:?} against {known:?}");

    npy(&file("wide.npy"), [2, 4], &[vec![0; 8]]);
    npy(&file("bright.npy"), [2, 3], &[vec![17; 6]]);
    for (arguments, words) in [
        ([&large[..], &[], &[]], "--low-resolution: the model needs a low-resolution image of 2 x 3"),
        ([&large, &by_png, &small[..2]], &format!("--low-resolution: must be 1 image or {}, got 2", known.len())),
        ([&large, &by_png, &large], "large-0.png: must be 3 pixels wide and 2 high"),
        ([&large, &by_npy, &[file("wide.npy")]], "wide.npy: must hold images of [2, 3, 1], got [2, 4, 1]"),
        ([&large, &by_npy, &[file("bright.npy")]], "bright.npy: image 0: values must be 0..=16, got 17"),
    ] {
        let output = score(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
}

#[test]
fn a_model_of_two_stages_draws_what_the_reference_draws_and_tells_both_likelihoods() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let drawn: Value = serde_json::from_slice(&std::fs::read(golden.join("two_stages.json")).unwrap()).unwrap();
    let (models, drawn) = (golden.join("two_stages"), &drawn[1]);
    let root = tempfile::tempdir().unwrap();
    let (seed, index, class) = (drawn["seed"].to_string(), drawn["image"].to_string(), drawn["class"].to_string());
    let dir = root.path().join("images");
    let arguments = ["--seed", &seed, "--first-index", &index, "--class", &class, "--out-dir", dir.to_str().unwrap()];
    let output = pixeld(&models, &[&["sample", "--model", "upper", "--json"], &arguments[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made = std::fs::read(dir.join(format!("{class}-{index}.png"))).unwrap();
    assert_eq!(codec::decode_png(&made, Shape::new(4, 6, 3, 5).unwrap(), None).unwrap(), values(&drawn["values"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (told, known) in [("log_likelihood", "log_likelihood"), ("low_resolution_log_likelihood", "low_log_likelihood")]
    {
        let [told, known] = [&report["images"][0][told], &drawn[known]].map(|nats| nats.as_f64().unwrap());
        assert!((told - known).abs() < 1e-3, "{told} against {known}");
    }
    // The small image is kept too, and the larger one scores given it.
    let low = dir.join("low-resolution").join(format!("{class}-{index}.png"));
    let lower = Shape::new(2, 3, 3, 5).unwrap();
    assert_eq!(codec::decode_png(&std::fs::read(&low).unwrap(), lower, None).unwrap(), values(&drawn["low"]));
    let [image, low] = [dir.join(format!("{class}-{index}.png")), low].map(|path| path.to_str().unwrap().to_owned());
    let output =
        pixeld(&models, &["score", "--model", "upper", "--json", "--class", &class, &image, "--low-resolution", &low]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let score: Value = serde_json::from_str(String::from_utf8(output.stdout).unwrap().lines().next().unwrap()).unwrap();
    let [scored, known] = [-score["nll_nats"].as_f64().unwrap(), drawn["log_likelihood"].as_f64().unwrap()];
    assert!((scored - known).abs() < 1e-3, "{scored} against {known}");
    let listed = pixeld(&models, &["models", "--json"]);
    let listed: Vec<Value> =
        String::from_utf8(listed.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        [&listed[0]["low_resolution_model"], &listed[1]["low_resolution_model"]],
        [&Value::Null, &"lower".into()]
    );
}

#[test]
fn a_completion_keeps_the_rows_that_were_given() {
    let root = tempfile::tempdir().unwrap();
    let manifest = "format = 1\nname = \"toy\"\nfamily = \"toy\"\n[image]\nheight = 4\nwidth = 3\nchannels = 3\nlevels = 64\n\
                    order = \"block_raster\"\nblock_height = 2\nblock_width = 1\nblock_unit = \"pixels\"\n\
                    [head]\nkind = \"categorical\"\n[architecture]\nsharpness = 0.1\n";
    std::fs::create_dir(root.path().join("toy")).unwrap();
    std::fs::write(root.path().join("toy/model.toml"), manifest).unwrap();
    let shape = Shape::new(4, 3, 3, 64).unwrap();
    let order = Order::BlockRaster(Blocks::new(shape, 2, 3).unwrap());
    let given: Vec<u16> = (0..36).collect();
    let file = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("given.png"), codec::encode_png(&given, shape, None).unwrap()).unwrap();
    let (image, dir) = (file("given.png"), file("completed"));
    let arguments = ["complete", "--keep-rows", "2", "--count", "2", "--seed", "5", "--out-dir", &dir, &image];
    let output = pixeld(root.path(), &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let completed = ["given-0.png", "given-1.png"]
        .map(|name| codec::decode_png(&std::fs::read(Path::new(&dir).join(name)).unwrap(), shape, None).unwrap());
    for image in &completed {
        assert_eq!(image[..18], given[..18]);
        assert_ne!(image[18..], given[18..]);
    }
    assert_ne!(completed[0], completed[1]);

    let output = pixeld(root.path(), &[&arguments[..], &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!([&report["model"], &report["seed"]], [&Value::from("toy"), &5.into()]);
    let told = report["images"].as_array().unwrap();
    assert_eq!(told.len(), 2);
    for (index, (line, completed)) in told.iter().zip(&completed).enumerate() {
        assert_eq!(
            [&line["from"], &line["index"], &line["seed"]],
            [&Value::from(image.as_str()), &index.into(), &5.into()]
        );
        // Blocks of two rows, column after column.
        let whole = Canvas::from_raster(shape, order, completed).unwrap();
        let crc32c = crc32c::crc32c(&codec::values_to_raw(whole.values(), shape));
        assert_eq!(line["crc32c"], format!("{crc32c:08x}"));
        let [nats, bits] = ["log_likelihood", "bits_per_dim"].map(|field| line[field].as_f64().unwrap());
        assert!(nats < 0.0 && (bits + nats / (36.0 * std::f64::consts::LN_2)).abs() < 1e-9, "{nats} {bits}");
    }
    assert_eq!(report["totals"]["values"], 2 * 18, "what was given is not drawn");

    let output = pixeld(root.path(), &["complete", "--keep-rows", "1", &image]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("multiple of the 2 rows of a block"));
}

#[test]
fn images_of_a_palette_come_out_in_colour_and_are_taken_in() {
    let root = tempfile::tempdir().unwrap();
    let manifest = "format = 1\nname = \"toy\"\nfamily = \"toy\"\n[image]\nheight = 4\nwidth = 4\nchannels = 1\nlevels = 3\n\
                    order = \"raster\"\npalette = [[255, 255, 255], [200.4, 10, 0], [10, 20, 30]]\n\
                    [head]\nkind = \"categorical\"\n[architecture]\nsharpness = 0.0\n";
    std::fs::create_dir(root.path().join("toy")).unwrap();
    std::fs::write(root.path().join("toy/model.toml"), manifest).unwrap();
    let file = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let rgb = |path: &Path, height, width| {
        let samples =
            codec::decode_png(&std::fs::read(path).unwrap(), Shape::new(height, width, 3, 256).unwrap(), None);
        samples.unwrap().as_chunks::<3>().0.to_vec()
    };
    let colours = [[255; 3], [200, 10, 0], [10, 20, 30]];

    let (sheet, dir) = (file("sheet.png"), file("drawn"));
    let output = pixeld(root.path(), &["sample", "--seed", "3", "--out", &sheet, "--out-dir", &dir]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let drawn = Path::new(&dir).join("image-0.png");
    let pixels = rgb(&drawn, 4, 4);
    assert!(colours.iter().all(|colour| pixels.contains(colour)) && pixels.iter().all(|p| colours.contains(p)));
    assert_eq!(rgb(Path::new(&sheet), 104, 104)[104 * 4 + 4], pixels[0]);

    // Not quite the colours of the palette: a photograph, say.
    let photo: Vec<u16> = pixels.iter().flatten().map(|sample| sample.saturating_sub(4)).collect();
    let photo_png = codec::encode_png(&photo, Shape::new(4, 4, 3, 256).unwrap(), None).unwrap();
    std::fs::write(file("photo.png"), photo_png).unwrap();
    let (photo, completed) = (file("photo.png"), file("completed"));
    let arguments = ["complete", "--keep-rows", "2", "--seed", "5", "--out", &sheet, "--out-dir", &completed, &photo];
    let output = pixeld(root.path(), &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made = rgb(&Path::new(&completed).join("photo-0.png"), 4, 4);
    assert_eq!(made[..8], pixels[..8]);
    assert_ne!(made[8..], pixels[8..]);
    // The image, what is kept of it on the darkest ground, and the completion.
    let shown = rgb(Path::new(&sheet), 104, 4 + 3 * 100);
    let at = |cell: usize, row: usize| shown[(4 + 24 * row) * 304 + 4 + 100 * cell];
    assert_eq!([at(0, 0), at(1, 0), at(0, 3), at(1, 3)], [pixels[0], pixels[0], pixels[12], colours[2]]);

    let output = pixeld(root.path(), &["score", "--json", drawn.to_str().unwrap(), &photo]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let bits: Vec<f64> = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["bits_per_dim"].as_f64())
        .collect();
    assert_eq!(bits.len(), 2, "{lines}");
    assert!(bits.iter().all(|bits| (bits - 3f64.log2()).abs() < 1e-9), "{bits:?}");
}
