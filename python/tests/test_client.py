"""Tests of the client's own reckoning, without a daemon: `python python/tests/test_client.py`."""

import asyncio
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixeld.client import AsyncClient, Client, Retry, errors  # noqa: E402
from pixeld.client.generation import Generation  # noqa: E402
from pixeld.client.model import Model  # noqa: E402
from pixeld.client.retry import Backoff  # noqa: E402
from pixeld.client.scoring import Scoring, batches  # noqa: E402
from pixeld.v1 import generation_service_pb2 as wire  # noqa: E402
from pixeld.v1 import generation_service_pb2_grpc, image_pb2, model_service_pb2, model_service_pb2_grpc  # noqa: E402


def model(levels: int = 256, blocks: bool = False) -> Model:
    """Of images of 4 x 4 pixels of 3 channels."""
    told = model_service_pb2.Model(name="models/m", revision="r", state=model_service_pb2.MODEL_STATE_READY)
    told.shape.height, told.shape.width, told.shape.channels, told.shape.levels = 4, 4, 3, levels
    if blocks:
        told.blocks.height, told.blocks.width = 2, 6
    return Model.of(told)


def daemon(of: Model, images: np.ndarray, request: wire.StreamGenerateImagesRequest, step: int, revision: str = "r"
           ) -> list[Any]:
    """The messages of a daemon that draws `images`, `step` values of each at a time, and refuses what it must."""
    spec, width = request.spec, of.dtype.itemsize
    known = len(spec.conditioning.prefix) // width
    assert known % 3 == 0 and known <= of.values - 3, f"a model of whole pixels refuses {known} values"
    ordered = images.reshape(len(images), -1)[:, of.places]
    mine = ordered[spec.first_image_index:spec.first_image_index + spec.image_count]
    assert all(image[:known].tobytes() == spec.conditioning.prefix for image in mine), "not what was drawn"
    messages = [wire.StreamGenerateImagesResponse(started=wire.GenerationStarted(model_revision=revision))]
    for begin in range(known, of.values, step):
        runs = [wire.ValueRun(image_index=index, first_rank=begin, values=image[begin:begin + step].tobytes(),
                              log_probs=-image[begin:begin + step].astype(np.float64))
                for index, image in enumerate(mine)]
        messages.append(wire.StreamGenerateImagesResponse(sampled=wire.SampledValues(runs=runs)))
    end = wire.GenerationCompleted(crc32c=[google_crc32c.value(image.tobytes()) for image in mine],
                                   log_likelihoods=[-1.0] * len(mine))
    return [*messages, wire.StreamGenerateImagesResponse(completed=end)]


class PaletteTest(unittest.TestCase):
    """Levels that are colours."""

    def test_levels_become_their_colours(self) -> None:
        told = model_service_pb2.Model(name="models/m", palette=bytes(range(9)))
        told.shape.MergeFrom(image_pb2.ImageShape(height=1, width=2, channels=1, levels=3))
        coloured = Model.of(told).coloured(np.array([[[[2], [0]]]]))
        np.testing.assert_array_equal(coloured, [[[[6, 7, 8], [0, 1, 2]]]])
        with self.assertRaises(ValueError):
            Model.of(model_service_pb2.Model(name="models/m")).coloured(np.zeros((1, 1, 1, 1), int))


class GenerationTest(unittest.TestCase):
    """A request as a value."""

    def test_a_cut_anywhere_leaves_the_same_images(self) -> None:
        for of in (model(), model(1000), model(blocks=True)):
            images = np.random.default_rng(0).integers(0, of.levels, (3, 4, 4, 3)).astype(of.dtype)
            for step in (1, 3, 5, 48):
                for survived in range(48 // step + 3):
                    generation = Generation(of, 3, classes=[1, 1, 2], seed=0, log_probs=True)
                    canvas = np.zeros_like(images)
                    for messages in (survived, 2, 7, 1 << 20):  # that come through before each cut
                        generation.fault = None
                        for group in generation.groups():
                            sent = daemon(of, images, group.request, step)
                            for message in [*sent[:messages], None]:
                                for values in generation.take(group, message):
                                    canvas[values.image].flat[values.places] = values.values
                                    np.testing.assert_array_equal(values.log_probs, -values.values.astype(float))
                            self.assertEqual(generation.fault is None, messages >= len(sent))
                    np.testing.assert_array_equal(canvas, images)
                    np.testing.assert_array_equal(generation.result().images, images)
                    self.assertTrue(generation.finished)
                    self.assertEqual(generation.done, generation.total)

    def test_pixels_and_rows_come_one_by_one_however_they_were_sent(self) -> None:
        for of in (model(), model(1000), model(blocks=True)):
            images = np.random.default_rng(0).integers(0, of.levels, (2, 4, 4, 3)).astype(of.dtype)
            for granularity, unit in (("pixel", 3), ("row", 12)):
                for known in (0, 3, 15):
                    for step in (1, 5, 24, 48):
                        # The first call is cut after two messages, in the middle of a row perhaps.
                        generation = Generation(of, 2, known=images, known_values=known, log_probs=True,
                                                granularity=granularity)
                        found: list[list[tuple[int, int]]] = [[], []]
                        for messages in (3, 1 << 20):
                            for group in generation.groups():
                                for message in [*daemon(of, images, group.request, step)[:messages], None]:
                                    for values in generation.take(group, message):
                                        found[values.image].append((values.first_rank, len(values.values)))
                                        whole = images[values.image].flat[values.places]
                                        np.testing.assert_array_equal(values.values, whole)
                                        np.testing.assert_array_equal(values.log_probs, -whole.astype(float))
                                        end = values.first_rank + len(values.values)
                                        canvas = np.zeros(48, of.dtype)
                                        canvas[of.places[:end]] = images[values.image].flat[of.places[:end]]
                                        np.testing.assert_array_equal(generation.canvases()[values.image].flat, canvas)
                        borders = [known, *range(known // unit * unit + unit, 48, unit)]
                        expected = [(begin, end - begin) for begin, end in zip(borders, [*borders[1:], 48])]
                        self.assertEqual(found, [expected, expected], f"{granularity} {known} {step}")
                        self.assertTrue(generation.finished)

    def test_more_images_than_a_call_may_ask_for_take_several(self) -> None:
        def asked(generation: Generation) -> list[tuple[int, int]]:
            return [(group.request.spec.first_image_index, group.request.spec.image_count)
                    for group in generation.groups()]

        generation = Generation(model(), 600, first_image=10)
        self.assertEqual(asked(generation), [(10, 256), (266, 256), (522, 88)])
        # A daemon may be set to take fewer, and says so; what else it refuses, and of one image, is refused.
        few = errors.Violation("spec.image_count", "must be 1..=100, got 256")
        code = grpc.StatusCode.INVALID_ARGUMENT
        for group in generation.groups()[:2]:
            list(generation.take(group, errors.InvalidRequest(code, "no", violations=(few,))))
        self.assertIsNone(generation.fault)
        self.assertEqual(asked(generation), [(10 + 128 * i, 128) for i in range(4)] + [(522, 88)])
        one, = Generation(model(), 1).groups()
        other = errors.Violation("spec.sampling.top_p", "must be above 0, got 0")
        for group, violations in ((one, (few,)), (generation.groups()[0], (few, other))):
            with self.assertRaises(errors.InvalidRequest):
                list(generation.take(group, errors.InvalidRequest(code, "no", violations=violations)))

    def test_numbers_that_cannot_travel_are_refused_by_name(self) -> None:
        told = model_service_pb2.Model(name="models/m", class_count=10)
        told.shape.MergeFrom(image_pb2.ImageShape(height=2, width=2, channels=1, levels=4))
        of = Model.of(told)
        for wrong, words in ((dict(classes=[1.7]), r"classes must be integers in 0\.\.9, got 1\.7"),
                             (dict(classes=np.array([2, -1])), r"classes must be integers in 0\.\.9, got -1"),
                             (dict(classes=True), r"classes must be integers in 0\.\.9, got True"),
                             (dict(classes=1 << 70), "classes must be integers in 0..9, got 1180591620717411303424"),
                             (dict(seed=-1), "seed must be an integer in 0..18446744073709551615, got -1"),
                             (dict(seed=0.5), "seed must be an integer in 0..18446744073709551615, got 0.5"),
                             (dict(top_k=-1), "top_k must be an integer in 0..4294967295, got -1"),
                             (dict(first_image=-1), "first_image must be an integer in 0..4294967294, got -1"),
                             (dict(count=0), "count must be an integer in 1..4294967295, got 0"),
                             (dict(count=2.5), "count must be an integer in .*, got 2.5")):
            with self.assertRaisesRegex(ValueError, words):
                Generation(of, **{"count": 2, **wrong})
        with self.assertRaisesRegex(ValueError, "classes must be left out: model m has none, got -1"):
            Generation(model(), None, classes=-1)
        taken = Generation(of, 2, classes=np.array([9, 0], np.uint8), seed=(1 << 64) - 1, top_k=np.int64(3))
        self.assertEqual([group.request.spec.conditioning.class_label for group in taken.groups()], [9, 0])

    def test_images_alike_are_asked_for_together(self) -> None:
        generation = Generation(model(), 5, classes=[1, 1, 2, 1, 1], first_image=10)
        asked = [(group.request.spec.first_image_index, group.request.spec.image_count,
                  group.request.spec.conditioning.class_label) for group in generation.groups()]
        self.assertEqual(asked, [(10, 2, 1), (12, 1, 2), (13, 2, 1)])

    def test_what_goes_on_otherwise_is_refused(self) -> None:
        of = model()
        images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.uint8)
        other = images.copy()
        other[0, 0, 1, 0] ^= 1
        for second, words in (((images, "s"), "revision s, and was of r"), ((other, "r"), "otherwise than it began")):
            generation = Generation(of, 1)
            (group,) = generation.groups()
            for message in daemon(of, images, group.request, 5)[:2]:
                list(generation.take(group, message))
            with self.assertRaisesRegex(errors.ResumeError, words):
                for message in daemon(of, second[0], wire.StreamGenerateImagesRequest(
                        spec=wire.GenerationSpec(image_count=1)), 5, second[1]):
                    list(generation.take(group, message))
        generation = Generation(of, 1)
        (group,) = generation.groups()
        messages = daemon(of, images, group.request, 48)
        messages[-1].completed.crc32c[0] ^= 1
        with self.assertRaisesRegex(errors.ResumeError, "not the one that was sent"):
            for message in messages:
                list(generation.take(group, message))


class ScoringTest(unittest.TestCase):
    """Batches as messages."""

    def test_what_goes_with_an_image_goes_with_it_in_every_slice(self) -> None:
        told = model_service_pb2.Model(name="models/m", class_count=300)
        for shape, sides in ((told.shape, (2, 2, 1)), (told.low_resolution_shape, (1, 1, 1))):
            shape.height, shape.width, shape.channels = sides
            shape.levels = 256
        images = np.arange(130, dtype=np.uint8).repeat(4).reshape(130, 2, 2, 1)
        lows = images[:, :1, :1]
        for classes, low in ((np.arange(130), lows), (7, lows[9]), ([7], lows[9:10]), (None, None)):
            scoring = Scoring(Model.of(told), per_value=False, batch=False)
            for batch in batches(scoring.model, images, classes, low):
                scoring.extend(batch)
            self.assertIsNone(scoring.message(130))
            for number in range(130):
                item = scoring.message(number).item
                self.assertEqual(item.image.data, bytes([number] * 4))
                own = classes is not None and np.size(classes) > 1
                label = item.conditioning.class_label if item.conditioning.HasField("class_label") else None
                self.assertEqual(label, number if own else None if classes is None else 7)
                self.assertEqual(item.conditioning.low_resolution.data,
                                 b"" if low is None else bytes([number if own else 9]))
        scoring = Scoring(Model.of(told), per_value=False, batch=False)
        for classes, low, words in ((np.zeros(64, int), None, "classes must be .* 130 images, got 64"),
                                    (None, lows[:3], "low must be .* 130 images, got 3")):
            with self.assertRaisesRegex(ValueError, words):
                batches(scoring.model, images, classes, low)
            with self.assertRaisesRegex(ValueError, words):
                scoring.extend((images, classes, low))
        for classes, words in (([1.7], "got 1.7"), ([-1], "got -1")):
            with self.assertRaisesRegex(ValueError, f"classes must be integers in 0..299, {words}"):
                scoring.extend((images, classes))
        # The shape that is told is the one that was given, not that of a slice.
        for given in (images[..., 0], images.repeat(2, 3), images[0, :1], images[None]):
            with self.assertRaises(ValueError) as caught:
                batches(scoring.model, given, np.zeros(130, int), None)
            self.assertEqual(str(caught.exception), "images must be [2, 2, 1] or a stack of those, [n, 2, 2, 1], "
                             f"got {list(given.shape)}")


class Refused(grpc.RpcError):
    """A failed call with details as the daemon sends them."""

    def __init__(self, code: grpc.StatusCode, *details: Any) -> None:
        packed = [any_pb2.Any() for _ in details]
        for each, detail in zip(packed, details):
            each.Pack(detail)
        self.parts = code, (("grpc-status-details-bin", status_pb2.Status(details=packed).SerializeToString()),)

    def code(self) -> grpc.StatusCode:
        return self.parts[0]

    def details(self) -> str:
        return "no"

    def trailing_metadata(self) -> Any:
        return self.parts[1]


class RetryTest(unittest.TestCase):
    """What passes, and when."""

    def test_waits_grow_and_are_no_shorter_than_the_daemon_asks(self) -> None:
        info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", metadata={"limit": "2"})
        hint = error_details_pb2.RetryInfo()
        hint.retry_delay.FromMilliseconds(1500)
        told = errors.of(Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, info, hint))
        self.assertEqual((told.reason, told.metadata, told.retry_after), ("QUEUE_FULL", {"limit": "2"}, 1.5))
        self.assertEqual(Backoff(Retry(first=0.1), None).after(told), 1.5)
        untold = errors.of(Refused(grpc.StatusCode.UNAVAILABLE))
        backoff = Backoff(Retry(attempts=6, first=0.1, longest=0.5), None)
        waits = [backoff.after(untold) for _ in range(5)]
        for wait, most in zip(waits, (0.1, 0.2, 0.4, 0.5, 0.5)):
            self.assertTrue(most / 2 <= wait <= most, waits)
        with self.assertRaises(errors.PixeldError):
            backoff.after(untold)
        backoff.progress()
        backoff.after(untold)

    def test_nothing_is_waited_for_that_comes_too_late(self) -> None:
        untold = errors.of(Refused(grpc.StatusCode.UNAVAILABLE))
        with self.assertRaises(errors.PixeldError):
            Backoff(Retry(first=10.0, longest=10.0), 1.0).after(untold)
        with self.assertRaises(errors.DeadlineExceeded):
            Backoff(Retry(), 0.0).left()

    def test_only_what_passes_is_tried_again(self) -> None:
        def passes(code: grpc.StatusCode, reason: str = "") -> bool:
            details = [error_details_pb2.ErrorInfo(reason=reason)] if reason else []
            return errors.of(Refused(code, *details)).passes

        code = grpc.StatusCode
        for each in ((code.UNAVAILABLE, "SERVER_DRAINING"), (code.ABORTED, "CLIENT_TOO_SLOW"), (code.INTERNAL,),
                     (code.CANCELLED,), (code.UNKNOWN,)):
            self.assertTrue(passes(*each), each)
        for each in ((code.INTERNAL, "ENGINE_FAULT"), (code.INVALID_ARGUMENT, "INVALID_REQUEST"), (code.UNIMPLEMENTED,),
                     (code.DEADLINE_EXCEEDED, "QUEUE_TIMEOUT"), (code.UNAUTHENTICATED,)):
            self.assertFalse(passes(*each), each)


class Catalogue(model_service_pb2_grpc.ModelServiceServicer):
    """Two pages of models, for those who know the word."""

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
        if dict(context.invocation_metadata()).get("authorization") != "Bearer sesame":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        name, following = ("models/b", "") if request.page_token == "b" else ("models/a", "b")
        return model_service_pb2.ListModelsResponse(models=[model_service_pb2.Model(name=name)],
                                                    next_page_token=following)


class Painter(model_service_pb2_grpc.ModelServiceServicer, generation_service_pb2_grpc.GenerationServiceServicer):
    """A daemon that sends two rows at once, and breaks the first stream behind those."""

    def __init__(self) -> None:
        self.images = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
        self.calls = 0

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        told = model_service_pb2.Model(name=request.name, revision="r", state=model_service_pb2.MODEL_STATE_READY)
        told.shape.MergeFrom(image_pb2.ImageShape(height=4, width=4, channels=3, levels=256))
        return model_service_pb2.GetModelResponse(model=told)

    def StreamGenerateImages(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls += 1
        messages = daemon(model(), self.images, request, 24)
        if self.calls > 1:
            yield from messages
        else:
            yield from messages[:2]
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")


class ConnectionTest(unittest.TestCase):
    """What goes with a call."""

    def painter(self) -> str:
        """The address of one."""
        server = grpc.server(ThreadPoolExecutor(1))
        painter = Painter()
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(painter, server)
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(painter, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(server.stop, None)
        return f"127.0.0.1:{port}"

    def test_rows_come_one_by_one_through_a_cut_and_awaited_too(self) -> None:
        quick, controls = Retry(first=0.01), dict(granularity="row")
        with Client(self.painter(), retry=quick) as client:
            rows = [(row.image, row.first_rank, len(row.values)) for row in client.stream("m", 2, **controls)]

        async def work(address: str) -> list[tuple[int, int, int]]:
            async with AsyncClient(address, retry=quick) as client, client.stream("m", 2, **controls) as stream:
                return [(row.image, row.first_rank, len(row.values)) async for row in stream]

        expected = [(image, rank, 12) for image in (0, 1) for rank in (0, 12, 24, 36)]
        self.assertEqual(sorted(rows), expected)
        self.assertEqual(sorted(asyncio.run(work(self.painter()))), expected)

    def test_what_cannot_be_asked_for_is_refused_before_anybody_is_asked(self) -> None:
        nobody = "127.0.0.1:9"
        for wrong, kind, words in ((dict(topk=3), TypeError, "unexpected keyword argument 'topk'.* top_k"),
                                   (dict(granularity="rows"), ValueError,
                                    "granularity must be one of value, pixel, row, got 'rows'"),
                                   (dict(granularity=None), ValueError, "granularity must be .*, got None")):
            with Client(nobody, retry=Retry(attempts=1)) as client:
                for method in (client.sample, client.stream):
                    with self.assertRaisesRegex(kind, words):
                        method("digits", **wrong)

            async def work() -> None:
                async with AsyncClient(nobody, retry=Retry(attempts=1)) as client:
                    with self.assertRaisesRegex(kind, words):
                        client.stream("digits", **wrong)
                    with self.assertRaisesRegex(kind, words):
                        await client.sample("digits", **wrong)

            asyncio.run(work())

    def test_a_token_goes_with_every_call_and_every_page_is_read(self) -> None:
        server = grpc.server(ThreadPoolExecutor(1))
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(Catalogue(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(server.stop, None)
        with Client(f"127.0.0.1:{port}", token="sesame") as client:
            self.assertEqual([found.name for found in client.models()], ["a", "b"])
            with self.assertRaisesRegex(ValueError, "model: must name one of a, b, got nothing"):
                client.sample()

        async def work() -> list[str]:
            async with AsyncClient(f"127.0.0.1:{port}", token="sesame") as client:
                return [found.name for found in await client.models()]

        self.assertEqual(asyncio.run(work()), ["a", "b"])
        with Client(f"127.0.0.1:{port}") as client, self.assertRaisesRegex(errors.PixeldError, "who are you"):
            client.models()


if __name__ == "__main__":
    unittest.main()
