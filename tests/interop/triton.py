"""Lists, samples, streams and scores with NVIDIA's Triton client, against the daemon at argv[1] (host:port)."""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def parameters(response) -> dict:
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in response.parameters.items()}


def refused(call, words: str) -> None:
    try:
        call()
    except InferenceServerException as error:
        assert words in error.message(), error
    else:
        raise AssertionError(f"not refused: {words}")


client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready()
metadata = client.get_server_metadata()
assert metadata.name == "pixeld" and "model_repository" in metadata.extensions
print("server", metadata.name, metadata.version)

index = {model.name: model for model in client.get_model_repository_index().models}
assert index["steady"].state == "READY", index
assert client.is_model_ready("steady") and not client.is_model_ready("steady", "another")
refused(lambda: client.is_model_ready("nobody"), "nobody")
model = client.get_model_metadata("steady")
(revision,) = model.versions
assert revision == index["steady"].version
tensors = {each.name: (each.datatype, list(each.shape)) for each in [*model.inputs, *model.outputs]}
kind, (_, *shape) = tensors["images"]
assert kind == "UINT8" and tensors["log_probs"] == ("FP32", [-1, *shape]), tensors
print("model", model.name, model.platform, tensors)

# Samples, whole.
sampled = client.infer("steady", [], request_id="first", parameters={"image_count": 3, "seed": 7})
images, likelihoods = sampled.as_numpy("images"), sampled.as_numpy("log_likelihood")
assert images.shape == (3, *shape) and images.dtype == np.uint8 and likelihoods.shape == (3,)
answer = sampled.get_response()
assert answer.id == "first" and answer.model_version == revision and parameters(answer)["seed"] == 7
again = client.infer("steady", [], parameters={"image_count": 3, "seed": 7}, outputs=[triton.InferRequestedOutput("images")])
assert (again.as_numpy("images") == images).all() and again.as_numpy("log_likelihood") is None
print("sampled", images.shape, "log-likelihoods", likelihoods.round(3).tolist())

# A prefix is kept, and the rest of the same seed is the same.
prefix = images[0].ravel()[: images[0].size // 2]
resumed = client.infer("steady", [tensor("prefix", prefix, "UINT8")], parameters={"seed": 7})
assert (resumed.as_numpy("images")[0] == images[0]).all()

# Scores: what sampling said.
wanted = [triton.InferRequestedOutput(name) for name in ("log_probs", "log_likelihood", "bits_per_dim")]
scored = client.infer("steady", [tensor("images", images, "UINT8")], outputs=wanted)
np.testing.assert_allclose(scored.as_numpy("log_likelihood"), likelihoods, rtol=1e-6)
np.testing.assert_allclose(scored.as_numpy("log_probs").reshape(3, -1).sum(1), likelihoods, rtol=1e-5)
bits = -likelihoods / images[0].size / np.log(2)
np.testing.assert_allclose(scored.as_numpy("bits_per_dim"), bits, rtol=1e-6)
print("scored", scored.as_numpy("bits_per_dim").round(4).tolist(), "bits/dim")

# Values as they are sampled, of two requests of one stream, and one that is refused between them.
events: queue.Queue = queue.Queue()
client.start_stream(lambda result, error: events.put((result, error)))
order = {"seed": 7, "image_count": 3}
client.async_stream_infer("steady", [], request_id="a", parameters=order, outputs=[triton.InferRequestedOutput("log_probs")])
client.async_stream_infer("steady", [], request_id="wrong", parameters={"sede": 7})
client.async_stream_infer("steady", [], request_id="b", parameters={**order, "first_image_index": 1, "image_count": 1})
values = {"a": np.zeros((3, images[0].size), np.uint8), "b": np.zeros((1, images[0].size), np.uint8)}
filled, sums, ended, complaints, parts = {"a": 0, "b": 0}, np.zeros(3), {}, [], 0
while len(ended) < 2 or not complaints:
    result, error = events.get(timeout=60)
    if error is not None:
        complaints.append(error.message())
        continue
    response = result.get_response()
    facts = parameters(response)
    if facts.get("triton_final_response"):
        ended[response.id] = result.as_numpy("log_likelihood")
        continue
    run = result.as_numpy("values")
    image, rank = facts["image_index"], facts["first_rank"]
    values[response.id][image, rank : rank + run.size] = run
    filled[response.id] += run.size
    parts += 1
    if response.id == "a":
        sums[image] += result.as_numpy("log_probs").sum()
client.stop_stream()
assert len(complaints) == 1 and "sede" in complaints[0], complaints
assert filled == {"a": images.size, "b": images[0].size}
assert (values["a"].reshape(images.shape) == images).all()
assert (values["b"].reshape(images[1].shape) == images[1]).all()
np.testing.assert_allclose(ended["a"], likelihoods, rtol=1e-6)
np.testing.assert_allclose(sums, likelihoods, rtol=1e-5)
print("streamed", filled, "values in", parts, "parts")

# What cannot be is refused, by name.
refused(lambda: client.infer("nobody", []), "nobody")
refused(lambda: client.infer("steady", [], model_version="1"), "model_version")
refused(lambda: client.infer("steady", [], request_id="x" * 257), "at most 256 bytes")
refused(lambda: client.infer("steady", [], parameters={"seed": -1}), "parameters.seed")
refused(lambda: client.infer("steady", [tensor("images", images.astype(np.float32), "FP32")]), "images.datatype")
refused(lambda: client.infer("steady", [tensor("images", images[:, :1], "UINT8")]), "images.shape")
refused(lambda: client.infer("steady", [tensor("image", images, "UINT8")]), "inputs[0].name")
refused(lambda: client.infer("steady", [], outputs=[triton.InferRequestedOutput("logits")]), "outputs")
refused(lambda: client.infer("steady", [], outputs=[triton.InferRequestedOutput("images")] * 2), "each once")
refused(lambda: client.infer("steady", [], outputs=[triton.InferRequestedOutput("bits_per_dim")]), "images, log_likelihood")
scores = [tensor("images", images, "UINT8")]
refused(lambda: client.infer("steady", scores, outputs=[triton.InferRequestedOutput("images")]), "bits_per_dim")
