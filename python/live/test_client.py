"""The Python client against a daemon: what it asks for comes, and comes the same whatever breaks on the way."""

import asyncio
import shutil
import tempfile
import threading
import unittest
import unittest.mock
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from harness import SHIPPED, Daemon, Proxy
from pixeld.client import AsyncClient, Client, Retry, Samples, Scores, errors
from pixeld.client.generation import Generation
from pixeld.client.model import Model

QUICK = Retry(attempts=20, first=0.01)
# Two stages, blocks, colours, and what a client can be told to do with them.
CASES: dict[str, dict[str, Any]] = {
    "digits": dict(classes=[3, 3, 3, 8, 8, 8, 8, 8, 8, 8]),
    "digits_transformer_2d": dict(count=12, classes=1, log_probs=True, temperature=0.8),
    "digits_multi_scale": dict(classes=[4] * 9 + [5, 6, 7], top_k=5),
    "letters": dict(count=2, classes=[0, 25]),
}


def spied() -> Any:
    """What streams are asked for: calls with a prefix as the fifth argument."""
    return unittest.mock.patch.object(Generation, "request", autospec=True, side_effect=Generation.request)


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.root = Path(scratch.name)
        for name in (*CASES, "digits_multi_scale_low", "digits_upscale"):
            (cls.root / name).symlink_to(SHIPPED / name)
        cls.daemon = Daemon(cls.root)
        cls.addClassCleanup(cls.daemon.stop)
        cls.client = Client(cls.daemon.address, retry=QUICK)
        cls.addClassCleanup(cls.client.close)
        images = np.load(SHIPPED / "digits" / "held_out_images.npy")[:40]
        cls.images, cls.classes = images, np.load(SHIPPED / "digits" / "held_out_classes.npy")[:40]

    def assert_same(self, found: Samples, expected: Samples) -> None:
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.log_likelihoods, expected.log_likelihoods)
        if expected.low_images is not None:
            np.testing.assert_array_equal(found.low_images, expected.low_images)

    def test_the_catalogue_says_what_the_packages_say(self) -> None:
        found = {model.name: model for model in self.client.models()}
        self.assertEqual(sorted(found), sorted((*CASES, "digits_multi_scale_low", "digits_upscale")))
        blocks = found["digits_transformer_2d"]
        self.assertEqual((blocks.shape, blocks.levels, blocks.classes), ((8, 8, 1), 17, 10))
        self.assertEqual(blocks.places[:6].tolist(), [0, 1, 2, 3, 8, 9])
        self.assertEqual(found["digits_multi_scale"].low_model, "digits_multi_scale_low")
        self.assertEqual(self.client.model("letters"), found["letters"])

    def test_values_come_as_they_are_drawn_and_make_up_the_images(self) -> None:
        for granularity, smallest in (("value", 1), ("pixel", 3), ("row", 48)):
            seen: list[tuple[int, int]] = []
            canvas = np.zeros((8, 16, 16, 3), np.uint8)
            with self.client.stream("letters", 8, classes=range(8), seed=3, granularity=granularity,
                                    progress=lambda done, total: seen.append((done, total))) as stream:
                for values in stream:
                    self.assertGreaterEqual(len(values.values), smallest)
                    canvas[values.image].flat[values.places] = values.values
                    np.testing.assert_array_equal(stream.images, canvas)
                made = stream.result()
            np.testing.assert_array_equal(made.images, canvas)
            self.assertEqual(seen, sorted(seen))
            self.assertEqual(seen[-1], (8 * 768, 8 * 768))
            self.assertGreater(len(seen), 8, "not all at once")
        self.assert_same(made, self.client.sample("letters", classes=range(8), seed=3))

    def test_a_class_of_each_image_has_the_noise_of_its_place(self) -> None:
        many = self.client.sample("digits", 4, classes=[1, 2, 2, 7], seed=11, first_image=5)
        for index, label in enumerate((1, 2, 2, 7)):
            alone = self.client.sample("digits", classes=label, seed=11, first_image=5 + index)
            np.testing.assert_array_equal(many.images[index], alone.images[0])

    def test_log_probs_add_up_to_the_likelihood_and_to_the_score(self) -> None:
        total = np.zeros(3)
        with self.client.stream("digits_transformer_2d", 3, classes=2, log_probs=True) as stream:
            for values in stream:
                total[values.image] += values.log_probs.sum()
            made = stream.result()
        np.testing.assert_allclose(total, made.log_likelihoods, atol=1e-3)
        scores = self.client.score(made.images, 2, model="digits_transformer_2d", per_value=True)
        np.testing.assert_allclose(-scores.nll_nats, made.log_likelihoods, atol=1e-3)
        np.testing.assert_allclose(scores.value_nll_nats.sum((1, 2, 3)), scores.nll_nats, atol=1e-3)
        np.testing.assert_allclose(scores.bits_per_dim, made.bits_per_dim, atol=1e-4)

    def test_completions_keep_what_is_known_and_enlargements_follow_the_small_image(self) -> None:
        for name in ("digits", "digits_transformer_2d"):
            made = self.client.sample(name, known=self.images[:6], known_rows=4, classes=self.classes[:6], seed=1)
            np.testing.assert_array_equal(made.images[:, :4], self.images[:6, :4])
            self.assertTrue((made.images[:, 4:] != self.images[:6, 4:]).any())
        few = self.client.sample("digits_transformer_2d", 2, known=self.images[0], known_values=16, classes=3)
        np.testing.assert_array_equal(few.images[:, :4, :4], self.images[[0, 0], :4, :4])
        two = self.client.sample("digits_multi_scale", 3, classes=[0, 1, 2], seed=4)
        again = self.client.sample("digits_multi_scale", low=two.low_images, classes=[0, 1, 2], seed=4)
        np.testing.assert_array_equal(again.images, two.images)
        self.assertIsNone(again.low_images)

    def test_arrays_and_loaders_score_alike(self) -> None:
        whole = self.client.score(self.images, self.classes, model="digits")
        data = TensorDataset(torch.from_numpy(self.images), torch.from_numpy(self.classes))
        counts: list[int] = []
        loaded = self.client.score(DataLoader(data, batch_size=7), model="digits", progress=counts.append)
        np.testing.assert_allclose(loaded.nll_nats, whole.nll_nats, rtol=1e-6)
        self.assertEqual(counts, list(range(1, 41)))
        one = self.client.score(self.images[3], int(self.classes[3]), model="digits")
        self.assertEqual(one.nll_nats, whole.nll_nats[3])
        small = self.client.sample("digits_multi_scale_low", 2, classes=5).images
        large = self.client.sample("digits_upscale", low=small, classes=5)
        scores = self.client.score(large.images, 5, small, model="digits_upscale")
        np.testing.assert_allclose(-scores.nll_nats, large.log_likelihoods, atol=1e-3)

    def test_what_is_wrong_with_a_request_is_named(self) -> None:
        with self.assertRaises(errors.InvalidRequest) as caught:
            self.client.sample("digits", classes=99, top_p=3.0)
        fields = [violation.field for violation in caught.exception.violations]
        self.assertEqual(fields, ["spec.sampling.top_p", "spec.conditioning.class_label"])
        self.assertIn("got 99", str(caught.exception))
        with self.assertRaisesRegex(errors.ModelNotFound, "known models"):
            self.client.sample("nothing")
        with self.assertRaises(errors.DeadlineExceeded):
            self.client.sample("letters", 64, timeout=0.05)
        for wrong, words in ((dict(known=self.images[0]), "known_rows or known_values"),
                             (dict(known=self.images[0], known_rows=8), "known_rows must be below 8"),
                             (dict(known=self.images[:, :4], known_rows=2), r"known must be \[8, 8, 1\]"),
                             (dict(known=self.images[0] + 10, known_rows=2), "must lie in 0..16"),
                             (dict(known=self.images[0] / 16, known_rows=2), "must be integers"),
                             (dict(classes=[1, 2, 3], count=2), "one for each of 2 images, got 3"),
                             (dict(low=self.images[0]), "takes no low-resolution image")):
            with self.assertRaisesRegex(ValueError, words):
                self.client.sample("digits", **wrong)
        with self.assertRaisesRegex(ValueError, "images must be"):
            self.client.score([(self.images[:, :4], self.classes)].__iter__(), model="digits")
        with self.assertRaises(errors.InvalidRequest):
            self.client.score(self.images, 99, model="digits")

    def test_a_stream_that_is_cut_goes_on_to_the_same_bytes(self) -> None:
        resumed = 0
        for name, case in CASES.items():
            with Proxy(self.daemon.address) as proxy, Client(proxy.address) as client:
                whole = client.sample(name, seed=7, granularity="value", **case)
                third = proxy.passed // 3
            for each in ((third,), (3 * third // 2,), (2 * third,), (5 * third // 2,), (2 * third, 0, third, third)):
                with self.subTest(name, cuts=each), Proxy(self.daemon.address, *each) as proxy, spied() as asked, \
                        Client(proxy.address, retry=QUICK) as client, \
                        client.stream(name, seed=7, granularity="value", **case) as stream:
                    got: dict[int, int] = {}
                    for values in stream:
                        self.assertEqual(values.first_rank, got.get(values.image, 0), "nothing twice, nothing missing")
                        got[values.image] = values.first_rank + len(values.values)
                        if case.get("log_probs"):
                            self.assertEqual(len(values.log_probs), len(values.values))
                    self.assert_same(stream.result(), whole)
                    resumed += any(call.args[4] for call in asked.call_args_list)
        self.assertGreater(resumed, 3, "where values had come, the rest is asked for with them")

    def test_asynchronous_streams_and_scores_survive_cuts_too(self) -> None:
        async def streamed(address: str) -> Samples:
            async with AsyncClient(address, retry=QUICK) as client, \
                    client.stream("letters", seed=7, **CASES["letters"]) as stream:
                async for values in stream:
                    self.assertGreater(len(values.values), 0)
                return await stream.result()

        async def scored(address: str) -> Scores:
            async def loaded() -> AsyncIterator[Any]:
                for begin in range(0, 40, 2):
                    await asyncio.sleep(0.02)  # so that a cut comes while one is waited for
                    yield self.images[begin:begin + 2], self.classes[begin:begin + 2]

            async with AsyncClient(address, retry=QUICK) as client:
                return await client.score(loaded(), model="digits")

        async def listed(address: str) -> list[str]:
            async with AsyncClient(address) as client:
                return [model.name for model in await client.models()]

        with Proxy(self.daemon.address, 900, 1200, 1000) as proxy:
            made = asyncio.run(streamed(proxy.address))
            self.assertGreater(proxy.made, 1)
        self.assert_same(made, self.client.sample("letters", seed=7, **CASES["letters"]))
        whole = self.client.score(self.images, self.classes, model="digits")
        with Proxy(self.daemon.address, 900, 300, 400) as proxy:
            score = asyncio.run(scored(proxy.address))
            self.assertGreater(proxy.made, 1)
        np.testing.assert_allclose(score.nll_nats, whole.nll_nats, rtol=1e-6)
        self.assertEqual(asyncio.run(listed(self.daemon.address)), [model.name for model in self.client.models()])

    def test_a_score_that_is_cut_goes_on_with_the_next_item(self) -> None:
        whole = self.client.score(self.images, self.classes, model="digits")
        with Proxy(self.daemon.address, 700, 500, 600) as proxy, Client(proxy.address, retry=QUICK) as client:
            data = TensorDataset(torch.from_numpy(self.images), torch.from_numpy(self.classes))
            cut = client.score(DataLoader(data, batch_size=3), model="digits")
            # How many connections that takes depends on how answers fall into packets.
            self.assertGreater(proxy.made, 1)
        # Likelihoods, unlike samples, may differ in their last bits with what is scored together.
        np.testing.assert_allclose(cut.nll_nats, whole.nll_nats, rtol=1e-6)

    def test_a_daemon_that_is_killed_and_comes_back_goes_on_to_the_same_bytes(self) -> None:
        whole = self.client.sample("letters", classes=range(26), seed=7)
        daemon = Daemon(self.root)
        back: list[Daemon] = []
        with Client(daemon.address) as client, spied() as asked, \
                client.stream("letters", classes=range(26), seed=7) as stream:
            next(stream)
            daemon.kill()
            restart = threading.Thread(target=lambda: back.append(Daemon(self.root, listen=daemon.address)))
            restart.start()
            made = stream.result()
        restart.join()
        back[0].stop()
        self.assert_same(made, whole)
        self.assertTrue(any(call.args[4] for call in asked.call_args_list))

    def test_a_daemon_that_comes_back_with_another_model_is_found_out(self) -> None:
        other = self.root / "other"
        shutil.copytree(SHIPPED / "letters", other / "letters")
        self.addCleanup(shutil.rmtree, other)
        manifest = other / "letters" / "model.toml"
        manifest.write_text(manifest.read_text().replace('description = "', 'description = "Other '))
        daemon = Daemon(self.root)
        with Client(daemon.address) as client, client.stream("letters", classes=range(26)) as stream:
            next(stream)
            daemon.kill()
            with Daemon(other, listen=daemon.address), self.assertRaisesRegex(errors.ResumeError, "letters was .* now"):
                stream.result()

    def test_a_full_daemon_is_asked_again(self) -> None:
        whole = self.client.sample("letters", classes=range(12), seed=2)
        full = ("engine.shards=1", "engine.slots=1", "engine.queue_images=2", "limits.images_per_request=2",
                "limits.items_per_request=2")
        with Daemon(self.root, *full) as daemon:
            with Client(daemon.address, retry=Retry(attempts=1)) as client, \
                    self.assertRaises(errors.PixeldError) as caught:
                client.sample("letters", classes=range(12))
            with Client(daemon.address, retry=QUICK) as client:
                self.assert_same(client.sample("letters", classes=range(12), seed=2), whole)
        self.assertEqual((caught.exception.reason, caught.exception.metadata["limit"]), ("QUEUE_FULL", "3"))
        self.assertGreater(caught.exception.retry_after, 0)

    def test_a_daemon_that_is_not_there_is_reported(self) -> None:
        with Client("127.0.0.1:9", retry=Retry(attempts=3, first=0.01)) as client, \
                self.assertRaises(errors.PixeldError) as caught:
            client.models()
        self.assertEqual((caught.exception.code.name, caught.exception.reason), ("UNAVAILABLE", ""))


if __name__ == "__main__":
    unittest.main()
