//! Keys and values, and attention over them.

use tch::{Kind, TchError, Tensor};

use super::on;
use crate::decode::Row;
use crate::decode::op::{Attention, Sight};
use crate::spec::Precision;

/// Keys and values of every slot; one place more than the ring has, which nobody sees.
pub(super) struct Ring {
    /// [slots, heads, places + 1, head_key]
    pub(super) keys: Tensor,
    /// [slots, heads, places + 1, head_value]
    pub(super) values: Tensor,
    pub(super) places: u32,
    pub(super) attention: Attention,
}

/// Which images and ranks of rings an evaluation covers.
pub(super) struct Window {
    pub(super) first: i64,
    /// Images B, consecutive from `first` on.
    pub(super) images: i64,
    /// How many of them, from the first on, look at what they see; the others are there to be multiplied along.
    pub(super) looking: i64,
    /// Ranks T of each.
    pub(super) ranks: i64,
    pub(super) write: Write,
    /// Added to the attention scores: 0 or minus infinity, [looking, T, places + 1], or [1, ..] where all see the same.
    pub(super) mask: Tensor,
}

/// Where new keys and values go.
pub(super) enum Write {
    /// Row by row: the place of each of B images. T is 1.
    Each(Vec<i64>),
    /// Rank by rank, the same in every image.
    Span(Tensor),
}

/// Sets `mask` to 0 for every place that `row` sees.
pub(super) fn show(row: &Row<'_>, mask: &mut [f32]) {
    for range in row.seen {
        let seen = mask.get_mut(range.start as usize..range.end as usize).unwrap_or_default();
        seen.fill(0.0);
    }
}

/// Writes `from` [B * T, keys and values of all heads] to the ring.
pub(super) fn store(from: &Tensor, ring: &Ring, window: &Window, precision: Precision) -> Result<(), TchError> {
    let [heads, head_key, head_value] =
        [ring.attention.heads, ring.attention.head_key, ring.attention.head_value].map(i64::from);
    let keys = from.f_narrow(1, 0, heads * head_key)?;
    let values = from.f_narrow(1, heads * head_key, heads * head_value)?;
    for (new, to, width) in [(keys, &ring.keys, head_key), (values, &ring.values, head_value)] {
        let new = match precision {
            Precision::F32 => new,
            Precision::Bf16 => new.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?,
        };
        write(&new.f_reshape([window.images, window.ranks, heads, width])?.f_transpose(1, 2)?, to, window)?;
    }
    Ok(())
}

/// Attention of `from` [B * T, queries of all heads]: [B * T, values], zeros for images that do not look.
pub(super) fn look(from: &Tensor, ring: &Ring, sight: Sight, window: &Window) -> Result<Tensor, TchError> {
    let [heads, head_key, head_value] =
        [ring.attention.heads, ring.attention.head_key, ring.attention.head_value].map(i64::from);
    let &Window { first, images, looking, ranks, .. } = window;
    let (batch, places) = (looking * heads, i64::from(ring.places));
    let query = from
        .f_narrow(0, 0, looking * ranks)?
        .f_view([looking, ranks, heads, head_key])?
        .f_transpose(1, 2)?
        .f_reshape([batch, ranks, head_key])?;
    // [looking * heads, places + 1, head_key] and [.., head_value]: views of the state.
    let keys = ring.keys.f_narrow(0, first, looking)?.f_flatten(0, 1)?;
    let values = ring.values.f_narrow(0, first, looking)?.f_flatten(0, 1)?;
    let (scores, values) = match sight {
        Sight::All => (query.f_bmm(&keys.f_narrow(1, 0, places)?.f_transpose(1, 2)?)?, values.f_narrow(1, 0, places)?),
        Sight::Seen => {
            // One mask for all heads of an image; for all images too where they see the same.
            let mask = match window.write {
                Write::Span(_) => window.mask.shallow_clone(),
                Write::Each(_) => window.mask.f_repeat_interleave_self_int(heads, 0, batch)?,
            };
            (mask.f_baddbmm(&query, &keys.f_transpose(1, 2)?, 1.0, 1.0)?, values)
        }
    };
    let seen = scores
        .f_softmax(-1, None)?
        .f_bmm(&values)?
        .f_view([looking, heads, ranks, head_value])?
        .f_transpose(1, 2)?
        .f_reshape([looking * ranks, heads * head_value])?;
    if looking == images {
        return Ok(seen);
    }
    seen.f_constant_pad_nd([0, 0, 0, (images - looking) * ranks])
}

/// Writes `rows` [B, heads, T, width] into `state` [slots, heads, places + 1, width].
pub(super) fn write(rows: &Tensor, state: &Tensor, window: &Window) -> Result<(), TchError> {
    let to = state.f_narrow(0, window.first, window.images)?;
    match &window.write {
        Write::Each(places) => {
            let size = to.size();
            let (heads, ring, width) = match *size.as_slice() {
                [_, heads, ring, width] => (heads, ring, width),
                _ => return Err(TchError::Shape(format!("state of shape {size:?}"))),
            };
            let rows_of =
                |(image, &place): (i64, &i64)| (0..heads).map(move |head| (image * heads + head) * ring + place);
            let at: Vec<i64> = (0..).zip(places).flat_map(rows_of).collect();
            let (rows, at) = (rows.f_reshape([window.images * heads, width])?, on(state.device(), &at)?);
            let _ = to.f_view([-1, width])?.f_index_copy_(0, &at, &rows)?;
        }
        Write::Span(places) => _ = to.shallow_clone().f_index_copy_(2, places, rows)?,
    }
    Ok(())
}
