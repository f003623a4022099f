"""Drives a daemon with the standard Python stack and stubs made from its protos: `stubs.py ADDRESS PROTOS`."""

import sys
import tempfile
from pathlib import Path

import grpc
from grpc_tools import protoc


def generate(protos: str, out: str) -> None:
    # The well-known types come with grpc_tools.
    include = str(Path(protoc.__file__).parent / "_proto")
    files = [str(path) for path in sorted(Path(protos).glob("pixeld/v1/*.proto"))]
    if protoc.main(["protoc", f"-I{protos}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}", *files]) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, out)


def main(address: str) -> None:
    from pixeld.v1 import generation_service_pb2 as generation
    from pixeld.v1 import generation_service_pb2_grpc as generation_grpc
    from pixeld.v1 import image_pb2 as image
    from pixeld.v1 import model_service_pb2 as models
    from pixeld.v1 import model_service_pb2_grpc as models_grpc
    from pixeld.v1 import scoring_service_pb2 as scoring
    from pixeld.v1 import scoring_service_pb2_grpc as scoring_grpc

    with grpc.insecure_channel(address) as channel:
        listed = models_grpc.ModelServiceStub(channel).ListModels(models.ListModelsRequest(), timeout=20)
        (model,) = listed.models
        assert model.state == models.MODEL_STATE_READY, model
        size = model.shape.height * model.shape.width * model.shape.channels

        sampler = generation_grpc.GenerationServiceStub(channel)
        spec = generation.GenerationSpec(model=model.name, image_count=3, sampling=image.SamplingParams(seed=7))
        values = {}
        completed = None
        for index, response in enumerate(sampler.StreamGenerateImages(generation.StreamGenerateImagesRequest(spec=spec), timeout=20)):
            event = response.WhichOneof("event")
            assert (event == "started") == (index == 0), event
            if event == "started":
                assert response.started.seed == 7 and response.started.image_count == 3
            for run in response.sampled.runs:
                so_far = values.setdefault(run.image_index, bytearray())
                assert run.first_rank == len(so_far)
                so_far += run.values
            if event == "completed":
                completed = response.completed
        assert completed is not None, "the stream was cut"
        assert [len(values[index]) for index in range(3)] == [size] * 3

        whole = sampler.GenerateImages(generation.GenerateImagesRequest(spec=spec), timeout=20)
        assert [bytes(values[index]) for index in range(3)] == [made.data for made in whole.images]
        assert list(whole.completed.crc32c) == list(completed.crc32c)

        scorer = scoring_grpc.ScoringServiceStub(channel)
        items = [scoring.ScoreItem(item_id=str(index), image=made) for index, made in enumerate(whole.images)]
        scores = scorer.ScoreImages(scoring.ScoreImagesRequest(items=items), timeout=20).scores
        for score, log_likelihood in zip(scores, completed.log_likelihoods, strict=True):
            assert abs(score.nll_nats + log_likelihood) < 1e-3, (score, log_likelihood)

        parts = [scoring.StreamScoreImagesRequest(spec=scoring.ScoringSpec())]
        parts += [scoring.StreamScoreImagesRequest(item=item) for item in items]
        answers = list(scorer.StreamScoreImages(iter(parts), timeout=20))
        assert [answer.score.item_id for answer in answers[:-1]] == ["0", "1", "2"]
        assert answers[-1].completed.item_count == 3

        # As many faults as a status may list must still fit what this stack accepts as trailers.
        bad = scoring.ScoreImagesRequest(items=[scoring.ScoreItem(item_id="x" * 300, conditioning=image.Conditioning(prefix=b"1", class_label=9)) for _ in range(8)])
        try:
            scorer.ScoreImages(bad, timeout=20)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            assert any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata())
        else:
            raise AssertionError("bad items were accepted")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        generate(sys.argv[2], scratch)
        main(sys.argv[1])
