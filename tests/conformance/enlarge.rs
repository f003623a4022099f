//! Super-resolution at the size of the paper: an encoder of 8x8 pixels, and a decoder of 32x32 that attends to all of them.

use pixeld::model::{Condition, FAMILIES, Slot};
use pixeld::spec::Backend;

use super::package::{Init, Size, Variant, image_transformer, package};
use super::{any_image, assert_close, bits, conditions, perturbed, record, score, step};

const SIZE: Size = [32, 32, 3, 256];
const LOW: [u32; 2] = [8, 8];
/// Values of a block of queries: 1-D attention over two of them.
const BLOCK: u32 = 256;

#[test]
fn from_8x8_to_32x32_a_step_is_the_pass_and_sees_every_small_pixel_and_nothing_later() {
    let family = FAMILIES.iter().find(|family| family.name == "image_transformer").unwrap();
    let variant = Variant::plain(image_transformer(BLOCK, "learned", "post")).encoder(LOW);
    for backend in [Backend::Native, Backend::Torch] {
        let package = package(family, SIZE, &variant, Init::Random(5)).on(backend);
        let mut model = package.load(1, 1);
        let (image, condition) = (any_image(&*model, 40), conditions(&*model)[1].clone());
        let low = condition.low.clone().unwrap();
        assert_eq!((image.values().len(), low.len()), (3072, 192));
        let pass = score(&mut *model, &[(image.clone(), condition.clone())], u32::MAX).remove(0);
        model.open(Slot(0), &condition).unwrap();
        let steps = step(&mut *model, Slot(0), &image, 0..3072);
        let largest = assert_close(&package.label, &*model, &image, 0, &steps, &pass, 1e-4);
        record(family.name, "step", largest);

        for changed in [0, 1535, 3070] {
            let after = score(&mut *model, &[(perturbed(&image, changed), condition.clone())], u32::MAX).remove(0);
            for rank in 0..=changed {
                assert_eq!(bits(&pass[rank]), bits(&after[rank]), "{}: {changed} -> {rank}", package.label);
            }
            assert_ne!(bits(&pass[changed + 1]), bits(&after[changed + 1]), "{}: {changed}", package.label);
            record(family.name, "causal", 1.0 + changed as f64);
        }
        for changed in [0, 95, 191] {
            let mut low = low.to_vec();
            low[changed] = (low[changed] + 128) % 256;
            let condition = Condition { low: Some(low.into()), ..condition.clone() };
            let after = score(&mut *model, &[(image.clone(), condition)], u32::MAX).remove(0);
            // Not all: what one small pixel of many adds may be less than a rounding.
            let differ = pass.iter().zip(&after).filter(|(before, after)| bits(before) != bits(after)).count();
            assert!(differ > 3000, "{}: small value {changed} changes {differ} steps", package.label);
        }
    }
}
