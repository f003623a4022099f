"""Drives a daemon with the Python client, and so with the standard stack and stubs made from its protos.

    client.py ADDRESS

The daemon has one model that takes no class.
"""

import asyncio
import sys

import numpy as np
from pixeld.client import AsyncClient, Client, errors


def waits(address: str) -> np.ndarray:
    """The client that waits."""
    with Client(address, timeout=20) as client:
        (model,) = client.models()
        assert model.state == "ready" and client.model(model.name) == model, model

        canvas = np.zeros((3, *model.shape), model.dtype)
        with client.stream(count=3, seed=7) as stream:
            for values in stream:
                canvas[values.image].flat[values.places] = values.values
            made = stream.result()
        assert made.seed == 7
        np.testing.assert_array_equal(canvas, made.images)
        np.testing.assert_array_equal(client.sample(model.name, 3, seed=7).images, canvas)

        scores = client.score(canvas)
        np.testing.assert_allclose(scores.nll_nats, -made.log_likelihoods, atol=1e-3)
        assert client.score(iter([canvas[:2], canvas[2]])).nll_nats.tolist() == scores.nll_nats.tolist()

        # As many faults as a status may list must still fit what this stack accepts as trailers.
        try:
            client.sample(classes=9, top_p=2, top_k=0, temperature=1e3, queue_timeout=1e9)
        except errors.InvalidRequest as error:
            assert len(error.violations) == 5 and error.reason == "INVALID_REQUEST", error
        else:
            raise AssertionError("a bad request was accepted")
        return canvas


async def awaits(address: str, expected: np.ndarray) -> None:
    """The client that is awaited."""
    async with AsyncClient(address, timeout=20) as client:
        made = await client.sample(count=3, seed=7)
        np.testing.assert_array_equal(made.images, expected)
        scores = await client.score(expected)
        np.testing.assert_allclose(scores.nll_nats, -made.log_likelihoods, atol=1e-3)


if __name__ == "__main__":
    asyncio.run(awaits(sys.argv[1], waits(sys.argv[1])))
