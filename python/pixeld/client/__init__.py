"""A client of the daemon, in two forms: `Client` waits, `AsyncClient` is awaited. Images are numpy arrays.

    from pixeld.client import Client

    with Client("127.0.0.1:50051") as client:
        made = client.sample("digits", 10, classes=range(10), seed=7)   # made.images: uint8 [10, 8, 8, 1]
        for values in client.stream("digits", granularity="row"):       # rows, as they are drawn
            print(values.image, values.first_rank, values.values)
        scores = client.score(made.images, classes=range(10), model="digits")
        print(scores.bits_per_dim.mean())

Whatever can be asked of an image stands in `Controls`; what went wrong is an exception of `pixeld.client.errors`.

A connection that breaks costs time, never an image: a call that finds the daemon away or full is made again after a
while (`Retry`), and a stream that was cut is taken up where it broke, with the seed and the values received so far, so
that the images are those of a stream that was not. If that cannot be, since the daemon came back with another model,
the stream ends with `errors.ResumeError`.

Needs ``pip install pixeld[client]``.
"""

from pixeld.client.aio import AsyncClient, AsyncStream
from pixeld.client.errors import PixeldError
from pixeld.client.generation import Controls, Samples, Values
from pixeld.client.model import Model
from pixeld.client.retry import Retry
from pixeld.client.scoring import Score, Scores
from pixeld.client.sync import Client, Stream

__all__ = ["AsyncClient", "AsyncStream", "Client", "Controls", "Model", "PixeldError", "Retry", "Samples", "Score",
           "Scores", "Stream", "Values"]
