//! Small packages of every family, with random or zero weights, made in memory.

use std::fmt::Write;
use std::path::Path;

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

use super::traced::{self, Form};

/// Height, width, channels, levels.
pub(crate) type Size = [u32; 4];

/// One package under test.
#[derive(Clone)]
pub(crate) struct Package {
    pub(crate) label: String,
    pub(crate) family: &'static str,
    pub(crate) backend: Backend,
    pub(crate) precision: Precision,
    source: Source,
}

impl Package {
    pub(crate) fn load(&self, slots: u32, score_images: u32) -> Box<dyn PixelModel> {
        torch::limit_threads(1);
        let (backend, precision) = (self.backend, self.precision);
        let placement = Placement { backend, precision, ..Placement::new(slots, score_images) };
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
        let size = fitting(family.name, size);
        let made = of_family(family.name, size, init).into_iter();
        made.map(move |variant| package(family, size, &variant, init))
    };
    FAMILIES.iter().flat_map(variants).collect()
}

/// The first variant of a family that takes no low-resolution image.
pub(crate) fn drawing_alone(family: &str, size: Size, init: Init) -> Package {
    let family = FAMILIES.iter().find(|listed| listed.name == family).expect("a family that is listed");
    let variants = of_family(family.name, size, init);
    let variant = variants.iter().find(|variant| !variant.condition.contains("low_")).expect("such a variant");
    package(family, size, variant, init)
}

/// Modules of other forms, with what a traced one cannot have: a state to go on from.
pub(crate) fn modules() -> Vec<Package> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torchscript");
    let found = repository::scan(&root).expect("the goldens can be listed").into_iter();
    let package = |(label, source)| {
        let (backend, precision) = Default::default();
        Package { label, family: "torchscript", backend, precision, source }
    };
    found.map(package).collect()
}

/// The least size from `size` on that a family takes.
fn fitting(family: &str, [height, width, channels, levels]: Size) -> Size {
    // Its coarsest maps have one node for four rows and columns.
    let unit = if family == "pixel_cnn_pp" { 4 } else { 1 };
    [height.next_multiple_of(unit), width.next_multiple_of(unit), channels, levels]
}

/// What a manifest says beside the size: lines of its tables.
#[derive(Clone)]
pub(crate) struct Variant {
    pub(crate) order: String,
    pub(crate) head: String,
    /// With its heading.
    pub(crate) condition: String,
    pub(crate) architecture: String,
    /// How far apart random weights lie.
    pub(crate) spread: f32,
    /// For modules of somebody else's.
    pub(crate) form: Option<Form>,
}

const MIXTURE: &str = "kind = \"logistic_mixture\"\ncomponents = 3\nlayout = \"saha\"";

impl Variant {
    /// Raster order, a categorical head, two classes.
    pub(crate) fn plain(architecture: String) -> Self {
        let [order, head] = ["order = \"raster\"", "kind = \"categorical\""].map(str::to_owned);
        Self { order, head, condition: "[condition]\nclasses = 2".to_owned(), architecture, spread: 1.6, form: None }
    }

    fn in_blocks([height, width]: [u32; 2], unit: &str, memory: [u32; 2], shift: &str, architecture: &str) -> Self {
        let order = format!(
            "order = \"block_raster\"\nblock_height = {height}\nblock_width = {width}\nblock_unit = \"{unit}\""
        );
        let [above, beside] = memory;
        let architecture = format!(
            "{architecture}\nattention = \"local_2d\"\nmemory_height = {above}\nmemory_width = {beside}\n\
             shift = \"{shift}\""
        );
        Self { order, ..Self::plain(architecture) }
    }

    fn unconditional(self) -> Self {
        Self { condition: String::new(), ..self }
    }

    fn mixture(self, input: &str) -> Self {
        Self { head: MIXTURE.to_owned(), architecture: format!("{}\ninput = \"{input}\"", self.architecture), ..self }
    }

    pub(crate) fn encoder(self, low: [u32; 2]) -> Self {
        self.low(low, "encoder_layers = 2")
    }

    fn low(self, [height, width]: [u32; 2], architecture: &str) -> Self {
        let condition = format!("{}\nlow_height = {height}\nlow_width = {width}", self.condition);
        Self { condition, architecture: format!("{}\n{architecture}", self.architecture), ..self }
    }

    /// With maps of an image of half the height, if it has halves.
    fn maps(self, [height, width, ..]: Size) -> Self {
        self.low([if height.is_multiple_of(2) { height / 2 } else { height }, width], "condition_maps = 4")
    }
}

/// One variant of one family.
pub(crate) fn package(family: &'static Family, size: Size, variant: &Variant, init: Init) -> Package {
    let [height, width, channels, levels] = size;
    let Variant { order, head, condition, architecture, spread, form } = variant;
    let mut text = format!(
        "format = 1\nname = \"tiny\"\nfamily = \"{}\"\n[image]\nheight = {height}\nwidth = {width}\nchannels = {channels}\n\
         levels = {levels}\n{order}\n[head]\n{head}\n{condition}\n[architecture]\n{architecture}\n",
        family.name
    );
    let manifest = Manifest::parse(text.as_bytes()).expect("the test writes good manifests");
    let tensors = (family.tensors)(&manifest).expect("the test writes good manifests");
    let (weights, ending) = match form {
        Some(form) => (traced::archive(*form, size, manifest.head.width(manifest.shape) as i64, init), "pt"),
        None if tensors.is_empty() => (Vec::new(), ""),
        None => (weights_file(&tensors, init, *spread), "safetensors"),
    };
    if !weights.is_empty() {
        let sha256: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
        write!(text, "[weights]\nfile = \"weights.{ending}\"\nsha256 = \"{sha256}\"\n").expect("a string takes text");
    }
    let source = Source::Embedded { manifest: Bytes::from(text), weights: Bytes::from(weights) };
    let label = format!("{} {size:?} {order} {head} {condition} {architecture}", family.name).replace('\n', ", ");
    Package { label, family: family.name, backend: Backend::default(), precision: Precision::default(), source }
}

/// The variants a family is tested with.
fn of_family(family: &str, size: Size, init: Init) -> Vec<Variant> {
    match family {
        "toy" => {
            vec![Variant::plain(format!("sharpness = {}", if matches!(init, Init::Zero) { 0.0 } else { 0.7 }))]
        }
        "image_transformer" => image_transformers(size),
        "image_gpt" => vec![
            image_gpt("gelu_sigmoid", "scale_by_layer = false"),
            image_gpt("gelu", "scale_by_layer = true"),
            image_gpt("gelu_tanh", "score_divisor = 1.5\nscale_by_layer = true"),
            image_gpt("relu", "score_divisor = 1.5\nscale_by_layer = false"),
        ],
        "pixel_cnn" => vec![
            Variant::plain(pixel_rnn("mod", true, false, "kernel_size = 3")),
            Variant::plain(pixel_rnn("contiguous", false, true, "kernel_size = 5")).maps(size),
        ],
        "row_lstm" => vec![
            Variant::plain(pixel_rnn("contiguous", true, true, "kernel_width = 3\ninitial_state = \"learned\""))
                .maps(size),
            Variant::plain(pixel_rnn("mod", false, false, "kernel_width = 1\ninitial_state = \"zero\"")),
        ],
        "diagonal_bilstm" => vec![
            Variant::plain(pixel_rnn("mod", true, false, "pad_state = \"zero\"")),
            Variant::plain(pixel_rnn("mod", true, true, "pad_state = \"learned\"")),
            Variant::plain(pixel_rnn("contiguous", true, true, "pad_state = \"evolve\"")).maps(size),
        ],
        "gated_pixel_cnn" => {
            vec![Variant::plain(gated(3, 5, "contiguous")).maps(size), Variant::plain(gated(1, 3, "mod"))]
        }
        "pixel_cnn_pp" => vec![pixel_cnn_pp(1), pixel_cnn_pp(2)],
        "torchscript" => vec![torchscript(Form::Sequence), torchscript(Form::Planes), torchscript(Form::Mixtures)],
        other => panic!("family {other:?} has no small package here: add one"),
    }
}

fn image_transformers([height, width, channels, _]: Size) -> Vec<Variant> {
    let one_d = |query_block, positions, norm| Variant::plain(image_transformer(query_block, positions, norm));
    let two_d = |positions, norm| widths(positions, norm);
    // The largest proper part, so that there are several blocks; values are counted so that blocks cut pixels if they can.
    let part = |whole: u32| (1..whole).rev().find(|part| whole.is_multiple_of(*part)).unwrap_or(1);
    let columns = width * channels;
    let cut = (1..columns).rev().find(|cut| columns.is_multiple_of(*cut) && !cut.is_multiple_of(channels)).unwrap_or(1);
    let pixels = [part(height), part(width)];
    let low = [height, part(width)];
    let mut variants = vec![
        one_d(3, "sinusoidal", "post"),
        one_d(8, "learned", "pre"),
        one_d(1000, "learned", "post"),
        one_d(1, "sinusoidal", "pre"),
        one_d(2, "learned", "post").mixture("ordinal_relu"),
        one_d(5, "sinusoidal", "pre").encoder(low),
        Variant::in_blocks([part(height), cut], "values", [1, 2], "block_raster", &two_d("sinusoidal", "pre")),
        Variant::in_blocks(pixels, "pixels", [1, 1], "per_block", &two_d("learned", "post")),
        Variant::in_blocks(pixels, "pixels", [2, 1], "block_raster", &two_d("learned", "post"))
            .mixture("ordinal")
            .encoder(low),
    ];
    if channels == 1 {
        let mut ordinal = one_d(2, "learned", "pre");
        ordinal.architecture.push_str("\ninput = \"ordinal\"");
        variants.push(ordinal);
    }
    variants
}

/// An `architecture` table with 1-D attention.
pub(crate) fn image_transformer(query_block: u32, positions: &str, norm: &str) -> String {
    format!("{}\nquery_block = {query_block}", widths(positions, norm))
}

/// Different widths everywhere, so that no two can be mistaken for each other.
fn widths(positions: &str, norm: &str) -> String {
    format!(
        "layers = 2\nmodel_width = 12\nheads = 2\nkey_width = 8\nvalue_width = 10\nfeed_forward_width = 20\n\
         positions = \"{positions}\"\nnorm = \"{norm}\""
    )
}

/// A sequence model that knows no classes.
pub(crate) fn image_gpt(activation: &str, scales: &str) -> Variant {
    Variant::plain(format!(
        "layers = 2\nmodel_width = 12\nheads = 2\nfeed_forward_width = 20\nactivation = \"{activation}\"\n\
         epsilon = 1e-5\n{scales}"
    ))
    .unconditional()
}

/// An `architecture` table of the PixelRNN family; 3 divides no width.
pub(crate) fn pixel_rnn(group_scheme: &str, residual: bool, skip: bool, cell: &str) -> String {
    format!(
        "layers = 2\nhidden_width = 5\ninput_kernel = 3\nhead_widths = [7]\ngroup_scheme = \"{group_scheme}\"\n\
         input_scaling = \"symmetric\"\nresidual = {residual}\nskip = {skip}\n{cell}"
    )
}

/// An `architecture` table of Gated PixelCNN; 3 does not divide its width.
pub(crate) fn gated(layers: u32, kernel_size: u32, group_scheme: &str) -> String {
    format!(
        "layers = {layers}\nstack_width = 5\ninput_kernel = 3\nkernel_size = {kernel_size}\nhead_widths = [7]\n\
         group_scheme = \"{group_scheme}\"\ninput_scaling = \"unit\""
    )
}

/// A net so deep that wider weights would drive its parameters out of what single precision can tell apart.
pub(crate) fn pixel_cnn_pp(blocks: u32) -> Variant {
    let plain = Variant::plain(format!("stream_width = 3\nblocks = {blocks}"));
    Variant { head: MIXTURE.to_owned(), spread: 0.5, ..plain }
}

fn torchscript(form: Form) -> Variant {
    let (head, architecture) = match form {
        Form::Sequence => (
            "kind = \"categorical\"",
            "input = \"b (h w c)\"\ninput_type = \"float32\"\ninput_scale = \"unit\"\noutput = \"b (h w c) v\"\n\
             arguments = [\"image\", \"class\"]\nnull_class = 2",
        ),
        Form::Planes => (
            "kind = \"factorised_categorical\"",
            "input = \"b c h w\"\ninput_type = \"float32\"\ninput_scale = \"signed\"\noutput = \"b (c v) h w\"\n\
             arguments = [\"image\", \"class\"]\nnull_class = 2",
        ),
        Form::Mixtures => (
            MIXTURE,
            "input = \"b h w c\"\ninput_type = \"int64\"\ninput_scale = \"levels\"\noutput = \"b h w v\"\n\
             arguments = [\"image\", \"class_one_hot\"]",
        ),
    };
    Variant { head: head.to_owned(), form: Some(form), ..Variant::plain(architecture.to_owned()) }
}

fn weights_file(tensors: &[TensorSpec], init: Init, spread: f32) -> Vec<u8> {
    let number = |tensor: usize, element: usize| match init {
        Init::Zero => 0.0,
        Init::Random(seed) => spread * (noise::uniform(seed, tensor as u32, element as u32) as f32 - 0.5),
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
