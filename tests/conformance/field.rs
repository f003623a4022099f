//! Which earlier pixels a step sees: all of them where the paper says so, and exactly its field where it has a blind spot.

use super::{any_image, bits, conditions, perturbed, record, score};
use crate::package::{Init, Size, Variant, gated, image_gpt, image_transformer, package, pixel_cnn_pp, pixel_rnn};
use pixeld::model::FAMILIES;

/// Wide enough that a step near the left border cannot see far to the right.
const SIZE: Size = [4, 6, 3, 4];
/// Layers of the packages whose field is smaller than the image.
const LAYERS: i64 = 2;

/// Whether a value is seen by the step at a later rank, in the picture of some weights: a rectifier may hide it in others.
fn seen(family: &str, size: Size, variant: &Variant) -> Vec<Vec<bool>> {
    let family = FAMILIES.iter().find(|listed| listed.name == family).unwrap();
    let values = (size[0] * size[1] * size[2]) as usize;
    let mut seen = vec![vec![false; values]; values];
    for seed in 1..=6 {
        let mut model = package(family, size, variant, Init::Random(seed)).load(1, 1);
        let (image, condition) = (any_image(&*model, 100 + seed), conditions(&*model)[0].clone());
        let each = model.spec().values_per_step() as usize;
        let before = score(&mut *model, &[(image.clone(), condition.clone())], u32::MAX).remove(0);
        for (changed, by) in seen.iter_mut().enumerate() {
            let after = score(&mut *model, &[(perturbed(&image, changed), condition.clone())], u32::MAX).remove(0);
            for (rank, seen) in by.iter_mut().enumerate() {
                *seen |= bits(&before[rank / each]) != bits(&after[rank / each]);
            }
        }
    }
    seen
}

/// Where a value lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    row: i64,
    column: i64,
    channel: i64,
}

impl Place {
    fn of(rank: usize, size: Size) -> Self {
        let [_, width, channels, _] = size.map(i64::from);
        let (pixel, channel) = (rank as i64 / channels, rank as i64 % channels);
        Self { row: pixel / width, column: pixel % width, channel }
    }
}

/// Checks that the step for the second place sees the first, an earlier one of another pixel, exactly if `field` says so.
fn check(family: &str, size: Size, variant: &Variant, field: impl Fn(Place, Place) -> bool) {
    let seen = seen(family, size, variant);
    let mut checked = 0;
    for (changed, by) in seen.iter().enumerate() {
        for (rank, &seen) in by.iter().enumerate().skip(changed + 1) {
            let (from, to) = (Place::of(changed, size), Place::of(rank, size));
            if (from.row, from.column) == (to.row, to.column) {
                // One evaluation may give all channels of a pixel, which the head then tells apart.
                continue;
            }
            assert_eq!(seen, field(from, to), "{family}: {from:?} -> {to:?}");
            checked += 1;
        }
    }
    assert!(checked > 0);
    record(family, "field", f64::from(checked));
}

#[test]
fn the_diagonal_bilstm_sees_every_earlier_pixel_but_the_last_value_of_the_row_above() {
    // No feature of a pixel sees the last of its own values; the pixels beside and below it do, through the convolution of the
    // input. The last pixel of a row has none to its right, so what its last value is comes to the row below only there.
    let [_, width, channels, _] = SIZE.map(i64::from);
    let variant = Variant::plain(pixel_rnn("mod", true, true, "pad_state = \"learned\""));
    check("diagonal_bilstm", SIZE, &variant, |from, to| {
        let last = (from.column, from.channel) == (width - 1, channels - 1);
        !last || to.row > from.row + 1 || to.column >= width - 2
    });
}

#[test]
fn gated_pixel_cnn_has_no_blind_spot() {
    // So deep that its field is larger than the image; wide weights would saturate the gates.
    let variant = Variant { spread: 1.0, ..Variant::plain(gated(5, 5, "contiguous")) };
    check("gated_pixel_cnn", SIZE, &variant, |_, _| true);
}

#[test]
fn pixel_cnn_pp_sees_every_earlier_pixel() {
    // Its coarsest maps have one node for four rows and columns.
    check("pixel_cnn_pp", [4, 4, 3, 4], &pixel_cnn_pp(2), |_, _| true);
}

#[test]
fn the_image_transformer_sees_every_earlier_pixel_of_one_block() {
    let variant = Variant::plain(image_transformer(SIZE.iter().take(3).product(), "learned", "post"));
    check("image_transformer", SIZE, &variant, |_, _| true);
}

#[test]
fn image_gpt_sees_every_earlier_pixel() {
    let variant = image_gpt("gelu_sigmoid", "scale_by_layer = false");
    check("image_gpt", SIZE, &variant, |_, _| true);
}

#[test]
fn pixel_cnn_sees_its_field_and_nothing_in_the_blind_spot() {
    // A convolution of 3 x 3 for the input and one for each layer: each goes up a row with a column to either side, or to
    // the left in its own.
    let reach = 1 + LAYERS;
    check("pixel_cnn", SIZE, &Variant::plain(pixel_rnn("mod", true, false, "kernel_size = 3")), |from, to| {
        let (up, right) = (to.row - from.row, from.column - to.column);
        up <= reach && (-reach..=up).contains(&right)
    });
}

#[test]
fn the_row_lstm_sees_a_triangle_and_nothing_beside_it() {
    // The state comes from three columns of the row above, a column more to either side with each row. Within a row the input
    // and each layer reach a column to the left.
    let cell = "kernel_width = 3\ninitial_state = \"learned\"";
    check("row_lstm", SIZE, &Variant::plain(pixel_rnn("mod", true, true, cell)), |from, to| {
        let (up, right) = (to.row - from.row, from.column - to.column);
        (-(up + 1 + LAYERS)..=up).contains(&right)
    });
}
