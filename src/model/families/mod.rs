//! One folder or file for each architecture, in the order of its paper, and what several share.

use super::registry::Family;

mod raster;

/// Declares the modules of families and lists what they offer.
///
/// `cargo fmt` does not look for files behind a macro, so `make format` and `make fmt` name them.
macro_rules! families {
    ($($module:ident: $($family:ident),+;)*) => {
        $(pub mod $module;)*

        /// Every family; the CLI, the API listing and the conformance suite walk this slice.
        pub const FAMILIES: &[Family] = &[$($($module::$family),+),*];
    };
}

// Adding a family is one file or folder here and one line below.
families! {
    image_transformer: FAMILY;
    image_gpt: FAMILY;
    pixel_rnn: ROW_LSTM, DIAGONAL_BILSTM, PIXEL_CNN;
    gated_pixel_cnn: FAMILY;
    pixel_cnn_pp: FAMILY;
    torchscript: FAMILY;
    toy: FAMILY;
}
