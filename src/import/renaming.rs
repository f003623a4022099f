//! The map from a foreign state dict to a family's tensors: nothing is missing, of another shape, or left over.

use super::pickle::shown;
use super::{Tensor, Tensors};
use crate::error::Violations;

/// A map in the making. What is wrong is collected and told by [`Renaming::finish`], under the names of the checkpoint.
#[derive(Debug)]
pub struct Renaming {
    source: Tensors,
    made: Tensors,
    violations: Violations,
}

impl Renaming {
    /// Begins with the tensors of a checkpoint.
    #[must_use]
    pub fn new(source: Tensors) -> Self {
        Self { source, made: Tensors::new(), violations: Violations::new() }
    }

    /// Takes the tensor `name`, which must have `shape`.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        match self.source.remove(name) {
            None => self.violations.add(path(name), format!("is missing; it must have shape {shape:?}")),
            Some(tensor) if tensor.shape != shape => {
                self.violations.add(path(name), format!("must have shape {shape:?}, got {:?}", tensor.shape));
            }
            tensor => return tensor,
        }
        None
    }

    /// Takes the weight of the layer `name` of `shape`, its weight norm folded: g v / |v|, the norm of each slice of the first
    /// dimension, as `torch.nn.utils.weight_norm` has it (the inputs of a transposed convolution, the outputs of all others).
    /// A plain `weight` is taken as it is.
    pub fn take_normed(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        let [plain, g, v] = ["weight", "weight_g", "weight_v"].map(|part| format!("{name}.{part}"));
        if self.source.contains_key(&plain) {
            return self.take(&plain, shape);
        }
        let slices: Vec<usize> = shape.iter().enumerate().map(|(index, &n)| if index == 0 { n } else { 1 }).collect();
        let (g, v) = (self.take(&g, &slices), self.take(&v, shape));
        v?.normed(&g?, 0.0)
    }

    /// Drops the tensor `name` if it is there, for buffers that hold nothing that was learned.
    pub fn drop(&mut self, name: &str) {
        self.source.remove(name);
    }

    /// Enters `tensor` as `name`. Nothing, where taking it failed, is entered as nothing.
    pub fn put(&mut self, name: impl Into<String>, tensor: Option<Tensor>) {
        if let Some(tensor) = tensor {
            self.made.insert(name.into(), tensor);
        }
    }

    /// The tensors that were entered.
    ///
    /// # Errors
    /// Every tensor that was missing or of another shape, and every one that nobody took.
    pub fn finish(self) -> Result<Tensors, Violations> {
        let mut violations = self.violations;
        for (name, tensor) in &self.source {
            violations.add(path(name), format!("is not a tensor of this format, its shape is {:?}", tensor.shape));
        }
        violations.into_result(self.made)
    }
}

impl Tensor {
    /// The same elements in a shape of as many.
    #[must_use]
    pub fn reshaped(self, shape: &[usize]) -> Option<Self> {
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
        (count(shape) == count(&self.shape)).then(|| Self { shape: shape.to_vec(), values: self.values })
    }

    /// With dimension `order[i]` as dimension i; `None` if `order` does not name each dimension once.
    #[must_use]
    pub fn permuted(self, order: &[usize]) -> Option<Self> {
        let mut named = order.to_vec();
        named.sort_unstable();
        if !named.into_iter().eq(0..self.shape.len()) {
            return None;
        }
        let mut strides = vec![1usize; self.shape.len()];
        let mut elements = 1usize;
        for (stride, &n) in strides.iter_mut().zip(&self.shape).rev() {
            *stride = elements;
            elements = elements.checked_mul(n)?;
        }
        let shape: Vec<usize> = order.iter().filter_map(|&from| self.shape.get(from).copied()).collect();
        let strides: Vec<usize> = order.iter().filter_map(|&from| strides.get(from).copied()).collect();
        let at = |mut index: usize| {
            let mut place = 0;
            for (&n, stride) in shape.iter().zip(&strides).rev() {
                place += index % n * stride;
                index /= n;
            }
            self.values.get(place).copied()
        };
        let values = (0..self.values.len()).map(at).collect::<Option<_>>()?;
        Some(Self { shape, values })
    }

    /// g v / |v|, where v is a slice of this along its first dimension and `g` has a number for each. A |v|^2 below `least_square`
    /// counts as that.
    #[must_use]
    pub fn normed(mut self, g: &Self, least_square: f64) -> Option<Self> {
        let length = self.values.len().checked_div(g.values.len()).filter(|&length| length > 0)?;
        for (slice, &g) in self.values.chunks_mut(length).zip(&g.values) {
            let square: f64 = slice.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let factor = f64::from(g) / square.max(least_square).sqrt();
            slice.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
        }
        Some(self)
    }

    /// With every element times `factor`.
    #[must_use]
    pub fn scaled(mut self, factor: f32) -> Self {
        self.values.iter_mut().for_each(|value| *value *= factor);
        self
    }
}

fn path(name: &str) -> String {
    format!("tensors.{}", shown(name))
}
