//! Small packages of every family, with random or zero weights, made in memory.

use std::fmt::Write;

use bytes::Bytes;
use pixeld::model::manifest::Manifest;
use pixeld::model::{FAMILIES, Family, PixelModel, Placement, TensorSpec};
use pixeld::noise;
use pixeld::repository::{self, Limits, Source};
use pixeld::spec::{Backend, Precision};
use pixeld::torch;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

/// Height, width, channels, levels.
pub(crate) type Size = [u32; 4];

/// One package under test.
#[derive(Clone)]
pub(crate) struct Package {
    pub(crate) label: String,
    pub(crate) backend: Backend,
    pub(crate) precision: Precision,
    source: Source,
}

impl Package {
    pub(crate) fn load(&self, slots: u32, score_images: u32) -> Box<dyn PixelModel> {
        torch::limit_threads(1);
        let placement = Placement { slots, score_images, backend: self.backend, precision: self.precision };
        repository::load(&self.source, placement, Limits::default())
            .unwrap_or_else(|violations| panic!("{}: {violations}", self.label))
    }
}

impl Package {
    /// The same on `backend`.
    pub(crate) fn on(self, backend: Backend) -> Self {
        Self { label: format!("{} on {}", self.label, backend.name()), backend, ..self }
    }
}

/// What the weights are made of.
#[derive(Clone, Copy)]
pub(crate) enum Init {
    Random(u64),
    Zero,
}

/// Every family in every variant on every backend, for images of `size` and two classes.
pub(crate) fn packages(size: Size, init: Init) -> Vec<Package> {
    let on = |package: Package| [Backend::Native, Backend::Torch].map(|backend| package.clone().on(backend));
    variants(size, init).into_iter().flat_map(on).collect()
}

/// Every family in every variant, on the default backend.
pub(crate) fn variants(size: Size, init: Init) -> Vec<Package> {
    let variants = |family: &'static Family| {
        architectures(family.name, init).into_iter().map(move |architecture| package(family, size, &architecture, init))
    };
    FAMILIES.iter().flat_map(variants).collect()
}

/// One variant of one family.
pub(crate) fn package(family: &'static Family, size: Size, architecture: &str, init: Init) -> Package {
    let [height, width, channels, levels] = size;
    let mut text = format!(
        "format = 1\nname = \"tiny\"\nfamily = \"{}\"\n[image]\nheight = {height}\nwidth = {width}\nchannels = {channels}\n\
         levels = {levels}\norder = \"raster\"\n[head]\nkind = \"categorical\"\n[condition]\nclasses = 2\n\
         [architecture]\n{architecture}\n",
        family.name
    );
    let manifest = Manifest::parse(text.as_bytes()).expect("the test writes good manifests");
    let tensors = (family.tensors)(&manifest).expect("the test writes good manifests");
    let mut weights = Vec::new();
    if !tensors.is_empty() {
        weights = weights_file(&tensors, init);
        let sha256: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
        write!(text, "[weights]\nfile = \"weights.safetensors\"\nsha256 = \"{sha256}\"\n")
            .expect("a string takes text");
    }
    let source = Source::Embedded { manifest: Bytes::from(text), weights: Bytes::from(weights) };
    let label = format!("{} {size:?} {}", family.name, architecture.replace('\n', ", "));
    Package { label, backend: Backend::default(), precision: Precision::default(), source }
}

/// The `architecture` tables a family is tested with.
fn architectures(family: &str, init: Init) -> Vec<String> {
    match family {
        "toy" => vec![format!("sharpness = {}", if matches!(init, Init::Zero) { 0.0 } else { 0.7 })],
        "image_transformer" => vec![
            image_transformer(3, "sinusoidal", "post"),
            image_transformer(8, "learned", "pre"),
            image_transformer(1000, "learned", "post"),
            image_transformer(1, "sinusoidal", "pre"),
        ],
        "pixel_cnn" => vec![
            pixel_rnn("mod", true, false, "kernel_size = 3"),
            pixel_rnn("contiguous", false, true, "kernel_size = 5"),
        ],
        "row_lstm" => vec![
            pixel_rnn("contiguous", true, true, "kernel_width = 3\ninitial_state = \"learned\""),
            pixel_rnn("mod", false, false, "kernel_width = 1\ninitial_state = \"zero\""),
        ],
        "diagonal_bilstm" => ["zero", "learned", "evolve"]
            .map(|pad| pixel_rnn("mod", true, pad != "zero", &format!("pad_state = \"{pad}\"")))
            .to_vec(),
        "gated_pixel_cnn" => vec![gated(3, 5, "contiguous"), gated(1, 3, "mod")],
        other => panic!("family {other:?} has no small package here: add one"),
    }
}

/// An `architecture` table of different widths everywhere, so that no two can be mistaken for each other.
pub(crate) fn image_transformer(query_block: u32, positions: &str, norm: &str) -> String {
    format!(
        "layers = 2\nmodel_width = 12\nheads = 2\nkey_width = 8\nvalue_width = 10\nfeed_forward_width = 20\n\
         query_block = {query_block}\npositions = \"{positions}\"\nnorm = \"{norm}\""
    )
}

/// An `architecture` table of the PixelRNN family; 3 divides no width.
fn pixel_rnn(group_scheme: &str, residual: bool, skip: bool, cell: &str) -> String {
    format!(
        "layers = 2\nhidden_width = 5\ninput_kernel = 3\nhead_widths = [7]\ngroup_scheme = \"{group_scheme}\"\n\
         input_scaling = \"symmetric\"\nresidual = {residual}\nskip = {skip}\n{cell}"
    )
}

/// An `architecture` table of Gated PixelCNN; 3 does not divide its width.
fn gated(layers: u32, kernel_size: u32, group_scheme: &str) -> String {
    format!(
        "layers = {layers}\nstack_width = 5\ninput_kernel = 3\nkernel_size = {kernel_size}\nhead_widths = [7]\n\
         group_scheme = \"{group_scheme}\"\ninput_scaling = \"unit\""
    )
}

fn weights_file(tensors: &[TensorSpec], init: Init) -> Vec<u8> {
    let number = |tensor: usize, element: usize| match init {
        Init::Zero => 0.0,
        Init::Random(seed) => 1.6 * (noise::uniform(seed, tensor as u32, element as u32) as f32 - 0.5),
    };
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| {
            let length = tensor.shape.iter().product::<u64>() as usize;
            (0..length).flat_map(|element| number(index, element).to_le_bytes()).collect()
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|(tensor, data)| {
        let shape = tensor.shape.iter().map(|&n| n as usize).collect();
        (tensor.name.as_str(), TensorView::new(Dtype::F32, shape, data).expect("data has the shape's length"))
    });
    safetensors::serialize(views, None).expect("tensors can be written")
}
