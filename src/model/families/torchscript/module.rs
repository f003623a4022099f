//! A module of somebody else's, called as its manifest says.

use std::sync::Arc;

use tch::{CModule, Device, IValue, Kind, TchError, Tensor};

use super::config::{Argument, Config};
use super::pattern::{Axis, Lengths};
use crate::head::{Head, Layout};
use crate::image::{Canvas, Shape};
use crate::model::{Condition, ModelError};

/// Keys of a dictionary that are told, and characters of each.
const SHOWN: usize = 8;
const SHOWN_OF_A_KEY: usize = 40;

/// A loaded module. Calls do not change it: the checks of a package that is loaded refuse one that remembers.
pub(super) struct Module {
    module: Arc<CModule>,
    pub(super) config: Config,
    /// Where it is, and what it is given; what it gives is brought back, but for its state.
    device: Device,
    /// For each place of a row that the head reads, the place that the number has in the module's rows.
    places: Option<Vec<i64>>,
}

impl Module {
    pub(super) fn new(module: Arc<CModule>, config: Config, device: Device) -> Self {
        let width = config.head.width(config.shape);
        let places = match config.head {
            Head::LogisticMixture { components } if config.layout != Layout::Saha => {
                let places = config.layout.places(components, width);
                Some(places.into_iter().map(|place| place as i64).collect())
            }
            _ => None,
        };
        Self { module, config, device, places }
    }

    /// Whether it has the method `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        // Called without what it takes, one that is there says that, or that it did something.
        let absent = |error: TchError| error.to_string().contains(&format!("Method '{name}' is not defined"));
        !self.module.method_is(name, &[] as &[IValue]).is_err_and(absent)
    }

    /// Bytes of its parameters. What tracing made a constant is not counted.
    pub(super) fn bytes(&self) -> Result<u64, TchError> {
        Ok(self.module.named_parameters()?.iter().map(|(_, tensor)| bytes(tensor)).sum())
    }

    /// One forward pass over the first `rows` rows of images, as many as the module takes together: the parameters of every
    /// step in raster order, [images, steps, width]. What is not known of an image is 0.
    pub(super) fn pass(&self, images: &[(&Canvas, &Condition)], rows: u32) -> Result<Tensor, ModelError> {
        let Config { shape, head, output_item, .. } = self.config;
        let Results { mut tensors, other } = self.forward(images, rows)?;
        if output_item >= tensors.len() {
            let given = other.map_or(String::new(), |other| format!(", but {other}"));
            return Err(ModelError::Step(format!("forward gives no tensor as result {output_item}{given}")));
        }
        let parameters = self.parameters(&tensors.swap_remove(output_item), images.len(), rows)?;
        let steps = i64::from(rows * shape.width() * shape.channels() / head.values_per_step(shape).max(1));
        Ok(parameters.f_view([images.len() as i64, steps, -1])?)
    }

    /// The results of one forward pass.
    pub(super) fn forward(&self, images: &[(&Canvas, &Condition)], rows: u32) -> Result<Results, ModelError> {
        let Config { shape, order, .. } = self.config;
        let raster: Vec<u16> = images.iter().flat_map(|(canvas, _)| canvas.to_raster(order)).collect();
        let conditions: Vec<_> = images.iter().map(|&(_, condition)| condition).collect();
        let image = self.image(&raster, shape, images.len(), rows, self.config.start)?;
        let arguments: Vec<IValue> = self
            .config
            .arguments
            .iter()
            .map(|&argument| match argument {
                Argument::Image => Ok(IValue::Tensor(image.shallow_clone())),
                other => self.extra(other, &conditions).map(IValue::Tensor),
            })
            .collect::<Result<_, TchError>>()?;
        let given = self.module.forward_is(&arguments).map_err(|error| failed("forward", &error))?;
        Ok(results(given))
    }

    /// Values of images in the module's form: `raster` holds `images` of them, of `shape`.
    fn image(
        &self,
        raster: &[u16],
        shape: Shape,
        images: usize,
        rows: u32,
        start: Option<f64>,
    ) -> Result<Tensor, TchError> {
        let channels = shape.channels() as usize;
        let each = (rows * shape.width()) as usize * channels;
        let first_rows =
            raster.chunks_exact(shape.values() as usize).map(|image| image.get(..each).unwrap_or_default());
        let mut numbers = Vec::with_capacity(images * each);
        for image in first_rows {
            let begins = numbers.len();
            numbers.extend(start.map(|start| start as f32));
            for (place, &value) in image.iter().enumerate() {
                let (factor, offset) = self.config.scale.get(place % channels).copied().unwrap_or((1.0, 0.0));
                numbers.push((f64::from(value) * factor + offset) as f32);
            }
            numbers.truncate(begins + each);
        }
        let lengths = lengths(images, rows, shape, 1);
        let tensor = Tensor::f_from_slice(&numbers)?.f_view(lengths)?;
        let tensor = if self.config.integers { tensor.f_to_kind(Kind::Int64)? } else { tensor };
        self.config.input.arrange(&tensor, &lengths)?.f_contiguous()?.f_to_device(self.device)
    }

    /// What a module takes beside the image.
    fn extra(&self, argument: Argument, conditions: &[&Condition]) -> Result<Tensor, TchError> {
        let null = self.config.null_class.unwrap_or(0);
        match argument {
            Argument::Class => {
                let label = |condition: &&Condition| condition.class.map_or(null, i64::from);
                Tensor::f_from_slice(&conditions.iter().map(label).collect::<Vec<_>>())?.f_to_device(self.device)
            }
            Argument::ClassOneHot => {
                let classes = self.config.condition.classes as usize;
                let mut rows = vec![0f32; classes * conditions.len()];
                for (row, condition) in rows.chunks_exact_mut(classes.max(1)).zip(conditions) {
                    if let Some(one) = condition.class.and_then(|class| row.get_mut(class as usize)) {
                        *one = 1.0;
                    }
                }
                let lengths = [conditions.len() as i64, classes as i64];
                Tensor::f_from_slice(&rows)?.f_view(lengths)?.f_to_device(self.device)
            }
            Argument::Low | Argument::Image => {
                let shape = self.config.condition.low.unwrap_or(self.config.shape);
                let values =
                    |condition: &&Condition| condition.low.iter().flat_map(|low| low.to_vec()).collect::<Vec<_>>();
                let raster: Vec<u16> = conditions.iter().flat_map(values).collect();
                self.image(&raster, shape, conditions.len(), shape.height(), None)
            }
        }
    }

    fn extras(&self, conditions: &[&Condition]) -> Result<Vec<IValue>, TchError> {
        let others = self.config.arguments.iter().filter(|&&argument| argument != Argument::Image);
        others.map(|&argument| self.extra(argument, conditions).map(IValue::Tensor)).collect()
    }

    /// What the module gave, with its axes in order: image, row, column, channel, parameter.
    fn parameters(&self, output: &Tensor, images: usize, rows: u32) -> Result<Tensor, ModelError> {
        let Config { shape, head, output: pattern, .. } = &self.config;
        let single = !pattern.has(Axis::Parameter);
        let mut lengths = lengths(images, rows, *shape, if single { 1 } else { shape.levels() });
        if matches!(head, Head::LogisticMixture { .. }) {
            let [.., channels, parameters] = &mut lengths;
            (*channels, *parameters) = (1, head.width(*shape) as i64);
        }
        let output = output.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let spread = pattern.spread(&output, &lengths).map_err(|error| failed("output", &error))?;
        let spread = if single { Tensor::f_cat(&[spread.f_zeros_like()?, spread], 4)? } else { spread };
        Ok(match &self.places {
            Some(places) => spread.f_index_select(4, &Tensor::f_from_slice(places)?)?,
            None => spread,
        })
    }

    /// The state of an image of which nothing is known.
    pub(super) fn init_state(&self, condition: &Condition) -> Result<Vec<Tensor>, ModelError> {
        let mut arguments = vec![IValue::Int(1)];
        arguments.extend(self.extras(&[condition])?);
        let given = self.module.method_is("init_state", &arguments).map_err(|error| failed("init_state", &error))?;
        tensors(given)
    }

    /// The parameters of the next step of each image, [images, width], and its state after. `states` are of one image each,
    /// `previous` the values that the step before decided (0 at the first), `steps` how many there were.
    pub(super) fn step(
        &self,
        states: &[&[Tensor]],
        previous: &[i64],
        steps: &[i64],
    ) -> Result<(Tensor, Vec<Vec<Tensor>>), ModelError> {
        let images = states.len() as i64;
        let parts = states.first().map_or(0, |state| state.len());
        let joined: Vec<Tensor> = (0..parts)
            .map(|part| Tensor::f_cat(&states.iter().filter_map(|state| state.get(part)).collect::<Vec<_>>(), 0))
            .collect::<Result<_, TchError>>()?;
        let arguments = [
            IValue::TensorList(joined),
            IValue::Tensor(Tensor::f_from_slice(previous)?.f_view([images, -1])?.f_to_device(self.device)?),
            IValue::Tensor(Tensor::f_from_slice(steps)?.f_to_device(self.device)?),
        ];
        let given = self.module.method_is("step", &arguments).map_err(|error| failed("step", &error))?;
        let (IValue::Tuple(given) | IValue::GenericList(given)) = given else {
            return Err(ModelError::Step("step must give its parameters and the state".to_owned()));
        };
        let mut given = given.into_iter();
        let (Some(IValue::Tensor(rows)), Some(state), None) = (given.next(), given.next(), given.next()) else {
            return Err(ModelError::Step("step must give its parameters and the state".to_owned()));
        };
        let width = self.config.head.width(self.config.shape) as i64;
        if rows.size() != [images, width] {
            return Err(ModelError::Step(format!("step must give [{images}, {width}], got {:?}", rows.size())));
        }
        let rows = rows.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let rows = match &self.places {
            Some(places) => rows.f_index_select(1, &Tensor::f_from_slice(places)?)?,
            None => rows,
        };
        let state = tensors(state)?;
        let of_image = |image: i64| state.iter().map(|part| part.f_narrow_copy(0, image, 1)).collect();
        let states = (0..images).map(of_image).collect::<Result<_, TchError>>()?;
        Ok((rows.f_contiguous()?, states))
    }
}

/// What `forward` gave.
pub(super) struct Results {
    /// Up to the first that is no tensor.
    pub(super) tensors: Vec<Tensor>,
    /// What that is, for people.
    pub(super) other: Option<String>,
}

fn results(given: IValue) -> Results {
    let several = match given {
        IValue::Tensor(tensor) => return Results { tensors: vec![tensor], other: None },
        IValue::TensorList(tensors) => return Results { tensors, other: None },
        IValue::Tuple(results) | IValue::GenericList(results) if !results.is_empty() => results,
        other => return Results { tensors: Vec::new(), other: Some(described(&other)) },
    };
    let (mut tensors, mut other) = (Vec::new(), None);
    for result in several {
        match result {
            IValue::Tensor(tensor) => tensors.push(tensor),
            strange => {
                other = Some(format!("{} in a tuple or list", described(&strange)));
                break;
            }
        }
    }
    Results { tensors, other }
}

/// What is no tensor, for people.
fn described(value: &IValue) -> String {
    let what = match value {
        IValue::GenericDict(entries) => {
            let keys = entries.iter().take(SHOWN).filter_map(|(key, _)| match key {
                IValue::String(key) => Some(format!("{:?}", key.chars().take(SHOWN_OF_A_KEY).collect::<String>())),
                _ => None,
            });
            let keys = keys.collect::<Vec<_>>().join(", ");
            return if keys.is_empty() { "a dictionary".to_owned() } else { format!("a dictionary with {keys}") };
        }
        IValue::None => "nothing",
        IValue::Tensor(_) => "a tensor",
        IValue::Bool(_) => "a truth value",
        IValue::Int(_) | IValue::Double(_) => "a number",
        IValue::String(_) => "a string",
        IValue::StringList(_) => "a list of strings",
        IValue::IntList(_) | IValue::DoubleList(_) | IValue::BoolList(_) => "a list of numbers",
        IValue::Tuple(_) => "a tuple",
        IValue::GenericList(_) | IValue::TensorList(_) => "a list",
        _ => "an object",
    };
    what.to_owned()
}

/// Lengths of the axes of `images` whose first `rows` rows are meant.
fn lengths(images: usize, rows: u32, shape: Shape, parameters: u32) -> Lengths {
    [images as i64, rows.into(), shape.width().into(), shape.channels().into(), parameters.into()]
}

pub(super) fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

fn tensors(given: IValue) -> Result<Vec<Tensor>, ModelError> {
    let tensor = |value| match value {
        IValue::Tensor(tensor) => Ok(tensor),
        _ => Err(ModelError::Step("a state must be a list of tensors".to_owned())),
    };
    match given {
        IValue::TensorList(tensors) => Ok(tensors),
        IValue::Tuple(values) | IValue::GenericList(values) => values.into_iter().map(tensor).collect(),
        _ => Err(ModelError::Step("a state must be a list of tensors".to_owned())),
    }
}

/// What a module says of itself comes last, after where in its code that was.
fn failed(method: &str, error: &TchError) -> ModelError {
    let text = error.to_string();
    let said = |line: &&str| line.contains("Error: ") || line.starts_with("must ");
    let line = text.lines().rev().find(said).or_else(|| text.lines().find(|line| !line.trim().is_empty()));
    crate::torch::model_error(format!("{method}: {}", line.unwrap_or_default().trim()))
}
