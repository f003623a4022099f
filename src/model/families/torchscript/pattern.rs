//! How a tensor holds an image, in the notation of einops: `b c h w`, `b (h w c)`, `b h w (c v)`.

use tch::{TchError, Tensor};

/// What an axis of a tensor counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// `b`: images.
    Image,
    /// `h`: rows of pixels.
    Row,
    /// `w`: columns of pixels.
    Column,
    /// `c`: channels.
    Channel,
    /// `v`: levels of a value, or parameters of a mixture.
    Parameter,
}

const AXES: [(char, Axis); 5] =
    [('b', Axis::Image), ('h', Axis::Row), ('w', Axis::Column), ('c', Axis::Channel), ('v', Axis::Parameter)];

/// Lengths of the axes, in the order of [`AXES`].
pub(super) type Lengths = [i64; AXES.len()];

/// A tensor's dimensions: each is a product of axes, the last of them varying fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Vec<Axis>>);

impl Pattern {
    /// Reads `text`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (mut dimensions, mut open) = (Vec::<Vec<Axis>>::new(), None::<Vec<Axis>>);
        for letter in text.chars().filter(|letter| !letter.is_whitespace()) {
            match (letter, &mut open) {
                ('(', None) => open = Some(Vec::new()),
                (')', Some(_)) => dimensions.extend(open.take()),
                _ => {
                    let axis = AXES.iter().find(|(name, _)| *name == letter).map(|&(_, axis)| axis);
                    let axis = axis.ok_or_else(|| format!("may hold b, h, w, c, v and ( ), got {letter:?}"))?;
                    if dimensions.iter().chain(&open).flatten().any(|earlier| *earlier == axis) {
                        return Err(format!("must name {letter} once"));
                    }
                    match &mut open {
                        Some(group) => group.push(axis),
                        None => dimensions.push(vec![axis]),
                    }
                }
            }
        }
        if open.is_some() {
            return Err("has a bracket that is not closed".to_owned());
        }
        Ok(Self(dimensions))
    }

    /// Whether it names `axis`.
    pub(super) fn has(&self, axis: Axis) -> bool {
        self.axes().any(|own| own == axis)
    }

    /// The same without `axis`, which is of length 1, where it shares a dimension.
    pub(super) fn without(&self, axis: Axis) -> Self {
        let kept = |group: &Vec<Axis>| match group.as_slice() {
            [single] => vec![*single],
            several => several.iter().copied().filter(|&own| own != axis).collect(),
        };
        Self(self.0.iter().map(kept).collect())
    }

    /// Whether the values of an image are one dimension, in raster order.
    pub(super) fn is_sequence(&self) -> bool {
        self.0.iter().any(|group| group.ends_with(&[Axis::Row, Axis::Column, Axis::Channel]))
    }

    fn axes(&self) -> impl Iterator<Item = Axis> {
        self.0.iter().flatten().copied()
    }

    /// Shape of a tensor with axes of `lengths`.
    pub(super) fn shape(&self, lengths: &Lengths) -> Vec<i64> {
        self.0.iter().map(|group| group.iter().map(|&axis| length(lengths, axis)).product()).collect()
    }

    /// Places of its axes among all of [`AXES`], then those of the axes it does not have, which are of length 1.
    fn places(&self) -> Vec<i64> {
        let named = self.axes().map(place);
        let unnamed = AXES.iter().map(|&(_, axis)| axis).filter(|&axis| !self.has(axis)).map(place);
        named.chain(unnamed).collect()
    }

    /// `tensor`, which has all [`AXES`], in this form.
    pub(super) fn arrange(&self, tensor: &Tensor, lengths: &Lengths) -> Result<Tensor, TchError> {
        tensor.f_permute(self.places())?.f_reshape(self.shape(lengths))
    }

    /// A tensor in this form, with all [`AXES`], contiguous.
    ///
    /// # Errors
    /// It has another shape.
    pub(super) fn spread(&self, tensor: &Tensor, lengths: &Lengths) -> Result<Tensor, TchError> {
        let (wanted, given) = (self.shape(lengths), tensor.size());
        if wanted != given {
            return Err(TchError::Shape(format!("must be of shape {wanted:?}, got {given:?}")));
        }
        let places = self.places();
        let split: Vec<i64> = places.iter().filter_map(|&place| lengths.get(place as usize).copied()).collect();
        let mut back = vec![0; places.len()];
        for (from, &to) in (0..).zip(&places) {
            if let Some(place) = back.get_mut(to as usize) {
                *place = from;
            }
        }
        tensor.f_reshape(split)?.f_permute(back)?.f_contiguous()
    }
}

fn place(axis: Axis) -> i64 {
    axis as i64
}

fn length(lengths: &Lengths, axis: Axis) -> i64 {
    lengths.get(axis as usize).copied().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: Lengths = [2, 3, 4, 3, 5];

    fn numbers() -> Tensor {
        Tensor::arange(2 * 3 * 4 * 3 * 5, (tch::Kind::Int64, tch::Device::Cpu)).view([2, 3, 4, 3, 5])
    }

    #[test]
    fn a_tensor_comes_back_from_every_form() {
        for (text, shape) in [
            ("b h w c v", vec![2, 3, 4, 3, 5]),
            ("b (c v) h w", vec![2, 15, 3, 4]),
            ("b (v c) h w", vec![2, 15, 3, 4]),
            ("(h w c) b v", vec![36, 2, 5]),
            ("b v (h w c)", vec![2, 5, 36]),
        ] {
            let pattern = Pattern::parse(text).unwrap();
            let arranged = pattern.arrange(&numbers(), &LENGTHS).unwrap();
            assert_eq!(arranged.size(), shape, "{text}");
            assert!(pattern.spread(&arranged, &LENGTHS).unwrap().equal(&numbers()), "{text}");
        }
    }

    #[test]
    fn the_last_axis_of_a_dimension_varies_fastest() {
        let tensor = numbers();
        let at = |text: &str, index: [i64; 4]| {
            let arranged = Pattern::parse(text).unwrap().arrange(&tensor, &LENGTHS).unwrap();
            index.iter().fold(arranged, |tensor, &place| tensor.get(place)).int64_value(&[])
        };
        let of = |c: i64, v: i64| tensor.get(1).get(2).get(3).get(c).get(v).int64_value(&[]);
        assert_eq!(at("b (c v) h w", [1, 7, 2, 3]), of(1, 2));
        assert_eq!(at("b (v c) h w", [1, 7, 2, 3]), of(1, 2));
        assert_eq!(at("b (c v) h w", [1, 4, 2, 3]), of(0, 4));
        assert_eq!(at("b (v c) h w", [1, 4, 2, 3]), of(1, 1));
    }

    #[test]
    fn axes_of_length_one_need_no_name() {
        let lengths = [2, 3, 4, 1, 5];
        let pattern = Pattern::parse("b v h w").unwrap();
        let tensor = numbers().narrow(3, 0, 1);
        assert!(pattern.spread(&pattern.arrange(&tensor, &lengths).unwrap(), &lengths).unwrap().equal(&tensor));
    }

    #[test]
    fn what_is_no_form_of_an_image_is_refused() {
        for text in ["b c h h", "b (c h w", "b c) h w", "b ((c) h) w", "b x h w"] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
        let given = Pattern::parse("b c h w v").unwrap().spread(&numbers(), &LENGTHS).unwrap_err();
        assert!(given.to_string().contains("[2, 3, 3, 4, 5], got [2, 3, 4, 3, 5]"), "{given}");
    }
}
