"""The client that is awaited: what ``pixeld.client.sync`` does, in one thread."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Unpack

import grpc
import grpc.aio
from numpy.typing import ArrayLike

from pixeld.client import errors
from pixeld.client.channel import CALLS_AT_ONCE, Connection
from pixeld.client.errors import PixeldError
from pixeld.client.generation import Answer, Controls, Generation, Group, Samples, Values, expect_controls
from pixeld.client.model import Array, Model, only
from pixeld.client.retry import Backoff
from pixeld.client.scoring import Score, Scores, Scoring, batches
from pixeld.v1 import model_service_pb2, scoring_service_pb2

END = object()


class AsyncStream(AsyncIterator[Values]):
    """Images in the making, like `pixeld.client.Stream`; begins with the first value that is asked for."""

    def __init__(self, begin: Callable[[], Any], values: Callable[[Generation], AsyncIterator[Values]]) -> None:
        self._begin = begin
        self._values = values
        self._generation: Generation | None = None
        self._events: Any = None

    async def begin(self) -> Generation:
        """Finds out about the model, if that is still to be done."""
        if self._generation is None:
            self._generation = await self._begin()
            self._events = self._values(self._generation)
        return self._generation

    async def __anext__(self) -> Values:
        await self.begin()
        value: Values = await anext(self._events)
        return value

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream where it is, on the daemon too."""
        if self._events is not None:
            await self._events.aclose()

    async def images(self) -> Array:
        """The images so far [n, H, W, C]; zeros where nothing has come."""
        return (await self.begin()).canvases()

    async def result(self) -> Samples:
        """The finished images, once they are; goes through whatever has not been iterated."""
        async for _ in self:
            pass
        return (await self.begin()).result()


class AsyncClient(Connection):
    """A connection to a daemon, for one event loop. Arguments as for `pixeld.client.Client`."""

    _grpc = grpc.aio

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection, and every call with it."""
        await self._channel.close()

    async def models(self, timeout: float | None = None) -> list[Model]:
        """All models, by name."""
        return await self._list(self._backoff(timeout))

    async def model(self, name: str, timeout: float | None = None) -> Model:
        """One model."""
        return await self._model(name, self._backoff(timeout))

    async def sample(self, model: str = "", count: int | None = None, **controls: Unpack[Controls]) -> Samples:
        """Draws images, or completes or enlarges some; see `pixeld.client.Client.sample`."""
        controls.setdefault("granularity", "row")  # nobody watches
        return await self.stream(model, count, **controls).result()

    def stream(self, model: str = "", count: int | None = None, **controls: Unpack[Controls]) -> AsyncStream:
        """Draws images and gives their values as they come; arguments as for `sample`.

            async with client.stream("digits", 4, granularity="row") as stream:
                async for values in stream:
                    canvas[values.image].flat[values.places] = values.values
                made = await stream.result()
        """
        expect_controls(controls)
        backoff = self._backoff(controls.get("timeout"))

        async def begin() -> Generation:
            return Generation(await self._ready(model, backoff), count, **controls)

        return AsyncStream(begin, lambda generation: self._values(generation, backoff, controls.get("progress")))

    async def scores(self, data: Any, classes: ArrayLike | None = None, low: ArrayLike | None = None, *,
                     model: str = "", per_value: bool = False, batch: bool = False, timeout: float | None = None
                     ) -> AsyncIterator[Score]:
        """The likelihoods of images one by one; see `pixeld.client.Client.scores`.

        Batches may come from an asynchronous iterable too. A plain one may take its time: it is read in other threads.
        """
        backoff = self._backoff(timeout)
        scoring = Scoring(await self._ready(model, backoff), per_value, batch)
        source = batches(scoring.model, data, classes, low)
        pull = aiter(source).__anext__ if hasattr(source, "__aiter__") else threaded(iter(source))
        pulling: asyncio.Task[bool] | None = None

        async def extend() -> bool:
            """Whether there was another batch."""
            try:
                scoring.extend(await pull())
            except StopAsyncIteration:
                return False
            except Exception as fault:  # it belongs to the caller, not to gRPC
                scoring.fault = fault
                return False
            return True

        async def messages(number: int) -> AsyncIterator[scoring_service_pb2.StreamScoreImagesRequest]:
            nonlocal pulling
            yield scoring.begin
            while True:
                while (message := scoring.message(number)) is None:
                    # A call that breaks must not take the batch along that it waits for.
                    pulling = pulling or asyncio.ensure_future(extend())
                    more = await asyncio.shield(pulling)
                    if not more:
                        return
                    pulling = None
                number += 1
                yield message

        try:
            while not scoring.done:
                call = self._scoring.StreamScoreImages(messages(scoring.scored), timeout=backoff.left(),
                                                       metadata=self._metadata)
                try:
                    async for response in call:
                        backoff.progress()
                        if (score := scoring.take(response)) is not None:
                            yield score
                    fault = errors.cut()
                except grpc.RpcError as error:
                    fault = errors.of(error)
                finally:
                    call.cancel()
                if not scoring.done:
                    await asyncio.sleep(backoff.after(fault))
        finally:
            if pulling is not None:
                pulling.cancel()

    async def score(self, data: Any, classes: ArrayLike | None = None, low: ArrayLike | None = None, *, model: str = "",
                    per_value: bool = False, batch: bool = False, timeout: float | None = None,
                    progress: Callable[[int], object] | None = None) -> Scores:
        """The likelihoods of images, all together; arguments as for `scores`. progress: called with those there are."""
        found: list[Score] = []
        async for score in self.scores(data, classes, low, model=model, per_value=per_value, batch=batch,
                                       timeout=timeout):
            found.append(score)
            if progress is not None:
                progress(len(found))
        return Scores.of(found)

    async def _call(self, method: Any, request: Any, backoff: Backoff) -> Any:
        """One answer."""
        while True:
            try:
                return await method(request, timeout=backoff.left(), metadata=self._metadata)
            except grpc.RpcError as error:
                await asyncio.sleep(backoff.after(errors.of(error)))

    async def _list(self, backoff: Backoff) -> list[Model]:
        found: list[Model] = []
        token = ""
        while True:
            request = model_service_pb2.ListModelsRequest(page_token=token)
            answer = await self._call(self._models.ListModels, request, backoff)
            found += map(Model.of, answer.models)
            token = answer.next_page_token
            if not token:
                return found

    async def _model(self, name: str, backoff: Backoff) -> Model:
        if not name:
            return only(await self._list(backoff))
        request = model_service_pb2.GetModelRequest(name=f"models/{name.removeprefix('models/')}")
        return Model.of((await self._call(self._models.GetModel, request, backoff)).model)

    async def _ready(self, name: str, backoff: Backoff) -> Model:
        """The model once it serves."""
        while True:
            try:
                return (await self._model(name, backoff)).expect_ready()
            except PixeldError as error:
                await asyncio.sleep(backoff.after(error))

    async def _values(self, generation: Generation, backoff: Backoff, progress: Callable[[int, int], object] | None
                      ) -> AsyncIterator[Values]:
        """The values of a request as they come, by as many calls as it takes."""
        while not generation.finished:
            generation.fault = None
            async for values in self._round(generation, backoff):
                backoff.progress()
                yield values
                if progress is not None:
                    progress(generation.done, generation.total)
            if generation.fault is not None:
                await asyncio.sleep(backoff.after(generation.fault))
                generation.check_model(await self._ready(generation.model.name, backoff))

    async def _round(self, generation: Generation, backoff: Backoff) -> AsyncIterator[Values]:
        """What one call for each group of images brings."""
        answers: asyncio.Queue[tuple[Group, Answer]] = asyncio.Queue()

        async def pump(group: Group, call: Any) -> None:
            """Reads on whatever the reader of our stream does, so that the daemon never waits for it."""
            try:
                async for response in call:
                    answers.put_nowait((group, response))
                answers.put_nowait((group, None))
            except grpc.RpcError as error:
                answers.put_nowait((group, errors.of(error)))

        groups = generation.groups()[:CALLS_AT_ONCE]
        calls = [self._generation.StreamGenerateImages(group.request, timeout=backoff.left(), metadata=self._metadata)
                 for group in groups]
        pumps = [asyncio.ensure_future(pump(group, call)) for group, call in zip(groups, calls)]
        try:
            running = len(groups)
            while running:
                group, answer = await answers.get()
                running -= answer is None or isinstance(answer, PixeldError)
                for values in generation.take(group, answer):
                    yield values
        finally:
            for each in (*calls, *pumps):
                each.cancel()


def threaded(source: Iterator[Any]) -> Callable[[], Any]:
    """The next of a plain iterator, awaited."""
    async def pull() -> Any:
        batch = await asyncio.to_thread(next, source, END)
        if batch is END:
            raise StopAsyncIteration
        return batch

    return pull
