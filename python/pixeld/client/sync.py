"""The client that waits."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Unpack

import grpc
from numpy.typing import ArrayLike

from pixeld.client import errors
from pixeld.client.channel import CALLS_AT_ONCE, Connection
from pixeld.client.errors import PixeldError
from pixeld.client.generation import Answer, Controls, Generation, Group, Samples, Values, expect_controls
from pixeld.client.model import Array, Model, only
from pixeld.client.retry import Backoff
from pixeld.client.scoring import Score, Scores, Scoring, batches
from pixeld.v1 import model_service_pb2, scoring_service_pb2


class Stream(Iterator[Values]):
    """Images in the making: iterating gives values as they come, of all images in turn. See `Client.stream`.

    Leaving a `with` block, or `close`, stops what is left of it on the daemon too.
    """

    def __init__(self, generation: Generation, events: Iterator[Values]) -> None:
        self._generation = generation
        self._events = events

    def __next__(self) -> Values:
        return next(self._events)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream where it is."""
        self._events.close()  # type: ignore[attr-defined]  # it is a generator

    @property
    def seed(self) -> int:
        """Seed of the noise."""
        return self._generation.seed

    @property
    def images(self) -> Array:
        """The images so far [n, H, W, C]; zeros where nothing has come."""
        return self._generation.canvases()

    def result(self) -> Samples:
        """The finished images, once they are; goes through whatever has not been iterated."""
        for _ in self:
            pass
        return self._generation.result()


class Client(Connection):
    """A connection to a daemon; may be used by several threads.

    target: "host:port". credentials: of the transport, for a daemon that speaks TLS, for example
    ``grpc.ssl_channel_credentials(authority)``, with a key and a certificate after that for one that wants them of its
    clients; plain text without. token: sent as a bearer token with every call; in the clear, if there are no
    credentials. timeout: seconds that a call may take in all, unless it is given one of its own.
    options: of the gRPC channel, above the client's own.
    """

    _grpc = grpc

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
                 ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and every call with it."""
        self._channel.close()

    def models(self, timeout: float | None = None) -> list[Model]:
        """All models, by name."""
        return self._list(self._backoff(timeout))

    def model(self, name: str, timeout: float | None = None) -> Model:
        """One model."""
        return self._model(name, self._backoff(timeout))

    def sample(self, model: str = "", count: int | None = None, **controls: Unpack[Controls]) -> Samples:
        """Draws images, or completes or enlarges some, and waits for them.

        model: a name, or nothing if there is only one. count: how many, in as many calls as they take; without it as many
        as there are classes, known or low-resolution images, or 1. Everything else: `Controls`.

            client.sample("digits", 10, classes=range(10), seed=7).images           # uint8 [10, 8, 8, 1]
            client.sample("digits", known=images, known_rows=4, classes=labels)     # completed
            client.sample("digits_upscale", low=small)                              # enlarged
        """
        controls.setdefault("granularity", "row")  # nobody watches
        return self.stream(model, count, **controls).result()

    def stream(self, model: str = "", count: int | None = None, **controls: Unpack[Controls]) -> Stream:
        """Draws images and gives their values as they come; arguments as for `sample`.

            with client.stream("digits", 4, granularity="row") as stream:
                for values in stream:
                    canvas[values.image].flat[values.places] = values.values
                made = stream.result()
        """
        expect_controls(controls)
        backoff = self._backoff(controls.get("timeout"))
        generation = Generation(self._ready(model, backoff), count, **controls)
        return Stream(generation, self._values(generation, backoff, controls.get("progress")))

    def scores(self, data: Any, classes: ArrayLike | None = None, low: ArrayLike | None = None, *, model: str = "",
               per_value: bool = False, batch: bool = False, timeout: float | None = None) -> Iterator[Score]:
        """The likelihoods of images, one by one as they are computed, in order.

        data: images [n, H, W, C] with classes [n] (or one for all) and low-resolution images [n, h, w, C], if the model
        takes those; or an iterable of such batches of any number, each images or a tuple (images, classes, low), for
        example a PyTorch DataLoader. Integers 0..levels-1. per_value: also a number for each value. batch: let
        requests that somebody waits for go first.
        """
        backoff = self._backoff(timeout)
        scoring = Scoring(self._ready(model, backoff), per_value, batch)
        source, pulling = iter(batches(scoring.model, data, classes, low)), threading.Lock()

        def messages(number: int) -> Iterator[scoring_service_pb2.StreamScoreImagesRequest]:
            yield scoring.begin
            while True:
                with pulling:  # the calls before this one may still be at it
                    while (message := scoring.message(number)) is None:
                        try:
                            scoring.extend(next(source))
                        except StopIteration:
                            return
                        except Exception as fault:  # it belongs to the caller, not to the thread of gRPC
                            scoring.fault = fault
                            return
                number += 1
                yield message

        while not scoring.done:
            call = self._scoring.StreamScoreImages(messages(scoring.scored), timeout=backoff.left(),
                                                   metadata=self._metadata)
            try:
                for response in call:
                    backoff.progress()
                    if (score := scoring.take(response)) is not None:
                        yield score
                fault = errors.cut()
            except grpc.RpcError as error:
                fault = errors.of(error)
            finally:
                call.cancel()
            if not scoring.done:
                time.sleep(backoff.after(fault))

    def score(self, data: Any, classes: ArrayLike | None = None, low: ArrayLike | None = None, *, model: str = "",
              per_value: bool = False, batch: bool = False, timeout: float | None = None,
              progress: Callable[[int], object] | None = None) -> Scores:
        """The likelihoods of images, all together; arguments as for `scores`. progress: called with those there are."""
        found: list[Score] = []
        for score in self.scores(data, classes, low, model=model, per_value=per_value, batch=batch, timeout=timeout):
            found.append(score)
            if progress is not None:
                progress(len(found))
        return Scores.of(found)

    def _call(self, method: Any, request: Any, backoff: Backoff) -> Any:
        """One answer."""
        while True:
            try:
                return method(request, timeout=backoff.left(), metadata=self._metadata)
            except grpc.RpcError as error:
                time.sleep(backoff.after(errors.of(error)))

    def _list(self, backoff: Backoff) -> list[Model]:
        found: list[Model] = []
        token = ""
        while True:
            answer = self._call(self._models.ListModels, model_service_pb2.ListModelsRequest(page_token=token), backoff)
            found += map(Model.of, answer.models)
            token = answer.next_page_token
            if not token:
                return found

    def _model(self, name: str, backoff: Backoff) -> Model:
        if not name:
            return only(self._list(backoff))
        request = model_service_pb2.GetModelRequest(name=f"models/{name.removeprefix('models/')}")
        return Model.of(self._call(self._models.GetModel, request, backoff).model)

    def _ready(self, name: str, backoff: Backoff) -> Model:
        """The model once it serves."""
        while True:
            try:
                return self._model(name, backoff).expect_ready()
            except PixeldError as error:
                time.sleep(backoff.after(error))

    def _values(self, generation: Generation, backoff: Backoff, progress: Callable[[int, int], object] | None
                ) -> Iterator[Values]:
        """The values of a request as they come, by as many calls as it takes."""
        while not generation.finished:
            generation.fault = None
            for values in self._round(generation, backoff):
                backoff.progress()
                yield values
                if progress is not None:
                    progress(generation.done, generation.total)
            if generation.fault is not None:
                time.sleep(backoff.after(generation.fault))
                generation.check_model(self._ready(generation.model.name, backoff))

    def _round(self, generation: Generation, backoff: Backoff) -> Iterator[Values]:
        """What one call for each group of images brings."""
        answers: SimpleQueue[tuple[Group, Answer]] = SimpleQueue()

        def pump(group: Group, call: Any) -> None:
            """Reads on whatever the reader of our stream does, so that the daemon never waits for it."""
            try:
                for response in call:
                    answers.put((group, response))
                answers.put((group, None))
            except grpc.RpcError as error:
                answers.put((group, errors.of(error)))

        groups = generation.groups()[:CALLS_AT_ONCE]
        calls = [self._generation.StreamGenerateImages(group.request, timeout=backoff.left(), metadata=self._metadata)
                 for group in groups]
        try:
            for group, call in zip(groups, calls):
                threading.Thread(target=pump, args=(group, call), daemon=True).start()
            running = len(groups)
            while running:
                group, answer = answers.get()
                running -= answer is None or isinstance(answer, PixeldError)
                yield from generation.take(group, answer)
        finally:
            for call in calls:
                call.cancel()
