"""The drawing law: from the logits of one value and one uniform number to the value, all in float64."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Drawn(NamedTuple):
    """One drawn value."""

    value: int
    log_prob: float  # natural log-probability under the model itself: temperature 1, nothing truncated
    margin: float  # distance from u to the nearest inner boundary of the cumulative distribution; inf if there is none


def kept(logits: NDArray[np.float64], top_k: int | None, top_p: float | None) -> NDArray[np.bool_]:
    """Which of the (already tempered) logits [levels] stay: top_k first, then top_p on what is left; bool [levels].

    top_k keeps the k largest. top_p keeps the shortest run of largest probabilities whose mass reaches p. Of equal
    logits the one with the lower index counts as larger.
    """
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    if top_p is not None:
        mass = np.exp(logits[order] - logits[order[0]])
        order = order[: np.searchsorted(np.cumsum(mass), top_p * mass.sum(), side="left") + 1]
    keep = np.zeros(len(logits), bool)
    keep[order] = True
    return keep


def draw(logits: ArrayLike, u: float, temperature: float = 1.0, top_k: int | None = None,
         top_p: float | None = None) -> Drawn:
    """Draws by inversion of the cumulative distribution: the first v, in ascending order, with cdf(v) > u.

    logits: [levels]. temperature divides them before anything else; 0 means argmax (lowest index on ties, u unused).
    """
    model = np.asarray(logits, np.float64)
    relative = model - model.max()
    log_total = np.log(np.exp(relative).sum())
    if temperature == 0:
        value = int(relative.argmax())
        return Drawn(value, float(relative[value] - log_total), np.inf)
    tempered = model / temperature
    weights = np.where(kept(tempered, top_k, top_p), np.exp(tempered - tempered.max()), 0.0)
    cumulative = np.cumsum(weights)
    total = cumulative[-1]
    value = int(np.argmax(cumulative > u * total))
    inner = cumulative[(cumulative > 0) & (cumulative < total)] / total
    margin = float(np.abs(inner - u).min()) if len(inner) else np.inf
    return Drawn(value, float(relative[value] - log_total), margin)
