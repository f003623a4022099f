//! State dicts of other code, on random weights, against the outputs of that code (tests/golden/import/README.md).

use std::path::Path;

use pixeld::error::Violations;
use pixeld::import::package::Draft;
use pixeld::import::{self, ImageTransformer, PixelCnnPp, Reading, Tensors};

use crate::law::{self, Golden, expect, folder, golden};

const READING: Reading<'_> = Reading { limit: 1 << 20, key: None };

fn tensors(path: &Path) -> Tensors {
    import::read(path, READING).unwrap_or_else(|violations| panic!("{}: {violations}", path.display()))
}

fn pixel_cnn_pp(golden: &Golden, tensors: Tensors) -> Result<Draft, Violations> {
    PixelCnnPp { height: golden.height, width: golden.width }.draft(tensors)
}

fn image_transformer(golden: &Golden, tensors: Tensors) -> Result<Draft, Violations> {
    let (num_heads, block_length) = (golden.num_heads.unwrap(), golden.block_length);
    ImageTransformer { image_size: golden.height, num_heads, block_length }.draft(tensors)
}

#[test]
fn pixel_cnn_pp_gives_what_the_port_gives() {
    let folder = folder("pixel_cnn_pp");
    for (file, answers) in [("rgb.pth", "rgb.json"), ("rgb_stream.pth", "rgb.json"), ("grey.pth", "grey.json")] {
        let golden = golden(&folder.join(answers));
        let (_root, source) = law::write(pixel_cnn_pp(&golden, tensors(&folder.join(file))).unwrap());
        let k = golden.components.unwrap();
        expect(&source, &golden, file, |ours| match ours.checked_sub(k) {
            // Ours: kind, channel, component. Theirs, with three channels: channel, kind, component.
            Some(behind) if answers == "rgb.json" => {
                let (kind, channel, component) = (behind / (3 * k), behind / k % 3, behind % k);
                k + channel * 3 * k + kind * k + component
            }
            _ => ours,
        });
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

/// Of every importer: whatever tensor is taken away, reshaped or added is named, and only that.
#[test]
fn every_tensor_that_does_not_fit_is_named() {
    type Format = fn(&Golden, Tensors) -> Result<Draft, Violations>;
    let formats: [(&str, &str, Format); 4] = [
        ("pixel_cnn_pp", "rgb", pixel_cnn_pp),
        ("pixel_cnn_pp", "grey", pixel_cnn_pp),
        ("image_transformer", "cat_global", image_transformer),
        ("image_transformer", "dmol_local", image_transformer),
    ];
    for (format, name, draft) in formats {
        let golden = golden(&folder(format).join(format!("{name}.json")));
        let whole = tensors(&folder(format).join(format!("{name}.pth")));
        assert!(draft(&golden, whole.clone()).is_ok());
        let fields = |tensors: Tensors| match draft(&golden, tensors) {
            Err(violations) => violations.iter().map(|violation| violation.field.clone()).collect::<Vec<_>>(),
            Ok(_) => panic!("{format} {name}: taken"),
        };
        for victim in whole.keys() {
            let mut fewer = whole.clone();
            fewer.remove(victim);
            let told = fields(fewer);
            // Sizes are read off some tensors, of whose loss others then look wrong as well.
            assert!(!told.is_empty(), "{victim} missing");
            let mut flat = whole.clone();
            let tensor = flat.get_mut(victim).unwrap();
            tensor.shape.push(1);
            assert!(fields(flat).contains(&format!("tensors.{victim}")), "{victim} reshaped");
        }
        let mut more = whole.clone();
        more.insert("bn.running_mean".to_owned(), whole.values().next().unwrap().clone());
        assert_eq!(fields(more), ["tensors.bn.running_mean"]);
        assert!(!fields(Tensors::new()).is_empty());
    }
}
