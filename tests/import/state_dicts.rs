//! State dicts of other code, on random weights, against the outputs of that code (tests/golden/import/README.md).

use std::path::Path;

use pixeld::error::Violations;
use pixeld::import::package::Draft;
use pixeld::import::{self, ImageTransformer, OpenaiPixelCnn, PixelCnnPp, Reading, Tensor, Tensors};

use crate::law::{self, Golden, expect, folder, golden};

const READING: Reading<'_> = Reading { limit: 1 << 20, key: None };

fn tensors(path: &Path) -> Tensors {
    import::read(path, READING).unwrap_or_else(|violations| panic!("{}: {violations}", path.display()))
}

fn pixel_cnn_pp(golden: &Golden, tensors: Tensors) -> Result<Draft, Violations> {
    PixelCnnPp { height: golden.height, width: golden.width }.draft(tensors)
}

fn openai_pixel_cnn(golden: &Golden, tensors: Tensors) -> Result<Draft, Violations> {
    OpenaiPixelCnn { height: golden.height, width: golden.width }.draft(tensors)
}

fn image_transformer(golden: &Golden, tensors: Tensors) -> Result<Draft, Violations> {
    let (num_heads, block_length) = (golden.num_heads.unwrap(), golden.block_length);
    ImageTransformer { image_size: golden.height, num_heads, block_length }.draft(tensors)
}

/// Where a parameter of ours (kind, channel, component) stands in OpenAI's order: channel, kind, component.
fn in_openai_order(components: usize) -> impl Fn(usize) -> usize {
    move |ours| match ours.checked_sub(components) {
        None => ours,
        Some(behind) => {
            let (kind, channel) = (behind / (3 * components), behind / components % 3);
            components + channel * 3 * components + kind * components + behind % components
        }
    }
}

#[test]
fn pixel_cnn_pp_gives_what_the_port_gives() {
    let folder = folder("pixel_cnn_pp");
    for (file, answers) in [("rgb.pth", "rgb.json"), ("rgb_stream.pth", "rgb.json"), ("grey.pth", "grey.json")] {
        let golden = golden(&folder.join(answers));
        let (_root, source) = law::write(pixel_cnn_pp(&golden, tensors(&folder.join(file))).unwrap());
        match answers {
            "rgb.json" => expect(&source, &golden, file, in_openai_order(golden.components.unwrap())),
            _ => expect(&source, &golden, file, |ours| ours),
        }
    }
}

#[test]
fn pixel_cnn_pp_gives_what_openai_s_code_gives() {
    let folder = folder("openai_pixel_cnn");
    for name in ["plain", "averaged_by_class"] {
        let golden = golden(&folder.join(format!("{name}.json")));
        let variables = tensors(&folder.join(format!("{name}.npz")));
        // Variables are called so, checkpoints leave it out.
        let numbered = variables.iter().map(|(name, tensor)| (format!("{name}:0"), tensor.clone())).collect();
        let draft = openai_pixel_cnn(&golden, variables).unwrap();
        assert_eq!(openai_pixel_cnn(&golden, numbered).unwrap().tensors, draft.tensors);
        let (_root, source) = law::write(draft);
        expect(&source, &golden, name, in_openai_order(golden.components.unwrap()));
    }
}

#[test]
fn the_image_transformer_gives_what_the_port_gives() {
    let folder = folder("image_transformer");
    for name in ["cat_local", "cat_global", "dmol_local", "dmol_one_block"] {
        let golden = golden(&folder.join(format!("{name}.json")));
        let tensors = tensors(&folder.join(format!("{name}.pth")));
        let (_root, source) = law::write(image_transformer(&golden, tensors).unwrap());
        expect(&source, &golden, name, |ours| ours);
    }
}

/// Weight norm is taken off by `torch.nn.utils.remove_weight_norm` before some checkpoints are saved.
#[test]
fn plain_weights_are_taken_where_weight_norm_was_removed() {
    let folder = folder("pixel_cnn_pp");
    let golden = golden(&folder.join("rgb.json"));
    let with = pixel_cnn_pp(&golden, tensors(&folder.join("rgb.pth"))).unwrap().tensors;
    let mut removed = tensors(&folder.join("rgb.pth"));
    let name = "down_layers.2.ul_stream.1.nin_skip.lin_a";
    let folded = with["down.2.1.ul.skip.weight"].clone().reshaped(&[6, 24]).unwrap();
    assert!(
        removed.remove(&format!("{name}.weight_g")).is_some() && removed.remove(&format!("{name}.weight_v")).is_some()
    );
    removed.insert(format!("{name}.weight"), folded);
    assert_eq!(pixel_cnn_pp(&golden, removed).unwrap().tensors, with);
}

type Format = fn(&Golden, Tensors) -> Result<Draft, Violations>;

/// Of every importer: whatever tensor is taken away, reshaped or added is named.
#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let formats: [(&str, &str, Format); 6] = [
        ("pixel_cnn_pp", "rgb.pth", pixel_cnn_pp),
        ("pixel_cnn_pp", "grey.pth", pixel_cnn_pp),
        ("openai_pixel_cnn", "plain.npz", openai_pixel_cnn),
        ("openai_pixel_cnn", "averaged_by_class.npz", openai_pixel_cnn),
        ("image_transformer", "cat_global.pth", image_transformer),
        ("image_transformer", "dmol_local.pth", image_transformer),
    ];
    for (format, file, draft) in formats {
        let path = folder(format).join(file);
        let golden = golden(&path.with_extension("json"));
        let mut whole = tensors(&path);
        // What that code keeps beside its model, and the variables that the averages stand for.
        whole.retain(|name, _| format != "openai_pixel_cnn" || name.starts_with("model/"));
        let averages = whole.keys().any(|name| name.ends_with("Average"));
        whole.retain(|name, _| !averages || name.ends_with("Average"));
        assert!(draft(&golden, whole.clone()).is_ok());
        let told = |tensors: Tensors| match draft(&golden, tensors) {
            Err(violations) => violations.to_string(),
            Ok(_) => panic!("{format} {file}: taken"),
        };
        for victim in whole.keys() {
            let layer = victim.trim_start_matches("model/").trim_end_matches("/ExponentialMovingAverage");
            let mut fewer = whole.clone();
            fewer.remove(victim);
            // Sizes are read off some tensors, of whose loss others then look wrong as well.
            assert!(told(fewer).contains("tensors."), "{victim} missing");
            let mut flat = whole.clone();
            flat.get_mut(victim).unwrap().shape.push(1);
            assert!(told(flat).contains(layer), "{victim} reshaped");
        }
        let mut more = whole.clone();
        let name = if format == "openai_pixel_cnn" { "model/bn/V/ExponentialMovingAverage" } else { "bn.running_mean" };
        more.insert(if averages { name } else { name.trim_end_matches("/ExponentialMovingAverage") }.to_owned(), one());
        assert!(told(more).contains("is not a tensor of this format"));
        assert!(draft(&golden, Tensors::new()).is_err());
    }
}

fn one() -> Tensor {
    Tensor { shape: vec![1], values: vec![1.0] }
}
