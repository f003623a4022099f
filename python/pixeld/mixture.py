"""The mixture-of-logistics head (PixelCNN++, arXiv 1701.05517, 2.1 and 2.2): exact, and channel by channel.

One row of P = K * (1 + 2C + C(C-1)/2) numbers describes a pixel of C channels with V levels by K components. They stand
in the layout "saha": kind by kind, in each kind channel by channel, in each channel component by component.

    K                 logits of the component weights, shared by the channels
    C * K             means
    C * K             logarithms of the scales, never below -7
    C(C-1)/2 * K      coefficients, through tanh; number c(c-1)/2 + p couples channel c to an earlier channel p

Other code bases, named by ``layout`` in a manifest, order the three blocks of 3 * K of an RGB pixel otherwise: "oai"
channel by channel, and in each kind by kind; "t2t" kind by kind, in each component by component, then by channel.

Values enter as u(v) = 2v / (V - 1) - 1. Given its component, channel c has the mean m_c + sum over p < c of
coefficient * u(x_p), and a level owns the mass of a logistic within half a level's distance; the lowest and the highest
level own everything beyond. Temperature and truncation act on the V conditional probabilities, as they do for logits.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

SMALLEST_LOG_SCALE = -7.0


def parameters_per_pixel(channels: int, components: int) -> int:
    """P, the length of a row."""
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def places(layout: str, channels: int, components: int) -> Tensor:
    """Where a row in `layout` holds what stands at each place of a row in "saha": int64 [P]."""
    place = torch.arange(parameters_per_pixel(channels, components))
    if layout == "saha" or channels == 1:
        return place
    if channels != 3 or layout not in ("oai", "t2t"):
        raise ValueError(f"no layout {layout!r} for {channels} channels")
    block = place[components:].view(3, 3, components)  # of a foreign row; its axes become kind, channel, component
    if layout == "t2t":
        block = block.flatten(1).unflatten(1, (components, 3))
    block = block.transpose(0, 1) if layout == "oai" else block.transpose(1, 2)
    return torch.cat([place[:components], block.flatten()])


def symmetric(values: Tensor, levels: int, like: Tensor) -> Tensor:
    """u(v) = 2v / (levels - 1) - 1, in the type of `like`."""
    return values.to(like.dtype) * (2.0 / (levels - 1)) - 1.0


def component_log_probs(parameters: Tensor, values: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Log-weights of the components [..., K], and each value's log-probability under each of them [..., C, K].

    parameters: [..., P]; values: integers [..., C], of which channel c reads those before it, as they are, quantised.
    """
    channels = values.shape[-1]
    components = parameters.shape[-1] // parameters_per_pixel(channels, 1)
    logits, means, log_scales, coefficients = parameters.unflatten(-1, (-1, components)).split(
        [1, channels, channels, channels * (channels - 1) // 2], dim=-2)
    unit = symmetric(values, levels, parameters)
    coefficients = coefficients.tanh()
    centres = []
    for channel in range(channels):
        first = channel * (channel - 1) // 2
        pull = coefficients[..., first:first + channel, :] * unit[..., :channel, None]
        centres.append(means[..., channel, :] + pull.sum(dim=-2))
    inverse = torch.exp(-log_scales.clamp(min=SMALLEST_LOG_SCALE))
    distance, half = unit[..., None] - torch.stack(centres, dim=-2), 1.0 / (levels - 1)
    above, below = (distance + half) * inverse, (distance - half) * inverse
    # With F the logistic function, ln(F(a) - F(b)) = ln F(a) + ln F(-b) + ln(1 - exp(b - a)): exact, nothing cancels.
    log_below_upper_edge, log_above_lower_edge = -softplus(-above), -softplus(below)
    width = 2.0 * half * inverse
    narrow = torch.log(-torch.expm1(-width))
    wide = torch.log1p(-torch.exp(-width.clamp(min=0.5)))
    inside = log_below_upper_edge + log_above_lower_edge + torch.where(width < math.log(2.0), narrow, wide)
    value = values[..., None]
    log_probs = torch.where(value == 0, log_below_upper_edge,
                            torch.where(value == levels - 1, log_above_lower_edge, inside))
    return logits[..., 0, :].log_softmax(dim=-1), log_probs


def conditional_log_probs(parameters: Tensor, values: Tensor, levels: int) -> Tensor:
    """ln p(x_c | x_0 .. x_{c-1}) for every channel [..., C]; their sum is the pixel's log-probability.

    The component is one for the whole pixel, so channel c weighs the components by what the channels before it say of
    them: S_0 = log-weights, S_{c+1} = S_c + ln P_c, and ln p = LSE(S_{c+1}) - LSE(S_c).
    """
    weights, log_probs = component_log_probs(parameters, values, levels)
    scores = torch.cat([weights[..., None, :], weights[..., None, :] + log_probs.cumsum(dim=-2)], dim=-2)
    return scores.logsumexp(dim=-1).diff(dim=-1)


def table(parameters: Tensor, earlier: Tensor, channels: int, levels: int) -> Tensor:
    """ln p(v | earlier) of every level v of the next channel, for one row [P] and its first channels: [levels]."""
    channel = len(earlier)
    candidates = torch.zeros(levels, channels, dtype=torch.int64)
    candidates[:, :channel] = earlier
    candidates[:, channel] = torch.arange(levels)
    return conditional_log_probs(parameters.expand(levels, -1), candidates, levels)[:, channel]
