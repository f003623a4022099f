"""Drives a daemon that wants TLS, a certificate of its clients and a token, with the Python client.

    secured.py ADDRESS CA CERTIFICATE KEY TOKEN
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from pixeld.client import AsyncClient, Client, errors
from pixeld.client.retry import Retry

REFUSALS = [{}, {"token": "another-token-of-somebody"}]


def waits(address: str, everything: dict[str, Any], token: str) -> np.ndarray:
    """The client that waits."""
    with Client(address, token=token, **everything) as client:
        made = client.sample(count=3, seed=7)
        np.testing.assert_allclose(client.score(made.images).nll_nats, -made.log_likelihoods, atol=1e-3)
    for wrong in REFUSALS:
        with Client(address, **wrong, **everything) as client:
            try:
                client.sample(count=3, seed=7)
            except errors.Unauthenticated as error:
                assert error.reason == "UNAUTHENTICATED" and not error.passes, error
                assert token not in repr(error) and token not in repr(vars(error)), error
            else:
                raise AssertionError(f"let in with {wrong}")
    return made.images


async def awaits(address: str, everything: dict[str, Any], token: str, expected: np.ndarray) -> None:
    """The client that is awaited."""
    async with AsyncClient(address, token=token, **everything) as client:
        np.testing.assert_array_equal((await client.sample(count=3, seed=7)).images, expected)
        await client.score(expected)
    for wrong in REFUSALS:
        async with AsyncClient(address, **wrong, **everything) as client:
            try:
                await client.score(expected)
            except errors.Unauthenticated as error:
                assert error.reason == "UNAUTHENTICATED", error
            else:
                raise AssertionError(f"let in with {wrong}")


def kept_out(address: str, credentials: grpc.ChannelCredentials | None, token: str) -> None:
    """Who brings no certificate, or speaks plain text, reaches nobody."""
    with Client(address, credentials=credentials, token=token, timeout=5, retry=Retry(attempts=1)) as client:
        try:
            client.models()
        except errors.PixeldError as error:
            assert error.code == grpc.StatusCode.UNAVAILABLE and not error.reason, error
        else:
            raise AssertionError("let in without a certificate")


if __name__ == "__main__":
    _, target, authority, certificate, key, secret = sys.argv
    ca, shown, private = (Path(file).read_bytes() for file in (authority, certificate, key))
    secured = {"credentials": grpc.ssl_channel_credentials(ca, private, shown), "timeout": 20}
    asyncio.run(awaits(target, secured, secret, waits(target, secured, secret)))
    kept_out(target, grpc.ssl_channel_credentials(ca), secret)
    kept_out(target, None, secret)
