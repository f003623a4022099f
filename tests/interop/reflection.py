"""Drives a daemon knowing nothing but its address, from what reflection tells, as grpcurl does: `reflection.py ADDRESS`."""

import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def message(name: str, *fields: tuple) -> descriptor_pb2.DescriptorProto:
    """A message from (name, number, type, repeated, message type) fields; those of a `oneof` are its first ones."""
    made = descriptor_pb2.DescriptorProto(name=name)
    for field, number, kind, repeated, type_name in fields:
        label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED if repeated else descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
        made.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)
    return made


def reflection_messages(package: str):
    """The part of the reflection protocol that is needed here, put together by hand: there is nothing to ask for it yet."""
    text, raw, nested = (getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{kind}") for kind in ("STRING", "BYTES", "MESSAGE"))
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    file.message_type.extend(
        [
            message("ServerReflectionRequest", ("file_by_filename", 3, text, False, None), ("file_containing_symbol", 4, text, False, None), ("list_services", 7, text, False, None)),
            message("FileDescriptorResponse", ("file_descriptor_proto", 1, raw, True, None)),
            message("ServiceResponse", ("name", 1, text, False, None)),
            message("ListServiceResponse", ("service", 1, nested, True, f".{package}.ServiceResponse")),
            message(
                "ServerReflectionResponse",
                ("file_descriptor_response", 4, nested, False, f".{package}.FileDescriptorResponse"),
                ("list_services_response", 6, nested, False, f".{package}.ListServiceResponse"),
            ),
        ]
    )
    # Which question is asked is a oneof: an empty `list_services` must still be sent.
    question = file.message_type[0]
    question.oneof_decl.add(name="message_request")
    for field in question.field:
        field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClassesForFiles([file.name], pool)
    return made[f"{package}.ServerReflectionRequest"], made[f"{package}.ServerReflectionResponse"]


class Reflected:
    """Services and messages, learnt from the server."""

    def __init__(self, channel: grpc.Channel, package: str):
        self.channel = channel
        self.request, response = reflection_messages(package)
        self.call = channel.stream_stream(f"/{package}.ServerReflection/ServerReflectionInfo", request_serializer=self.request.SerializeToString, response_deserializer=response.FromString)
        self.pool = descriptor_pool.DescriptorPool()
        self.known = set()

    def ask(self, **question):
        (answer,) = self.call(iter([self.request(**question)]), timeout=20)
        return answer

    def services(self) -> list:
        return [service.name for service in self.ask(list_services="").list_services_response.service]

    def learn(self, **question) -> None:
        for raw in self.ask(**question).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            if file.name not in self.known:
                self.known.add(file.name)
                for dependency in file.dependency:
                    self.learn(file_by_filename=dependency)
                self.pool.Add(file)

    def method(self, service: str, name: str):
        """A callable for a method, and the class of its request."""
        self.learn(file_containing_symbol=service)
        method = self.pool.FindServiceByName(service).methods_by_name[name]
        request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        sides = ("stream" if streaming else "unary" for streaming in (method.client_streaming, method.server_streaming))
        make = getattr(self.channel, "_".join(sides))
        return make(f"/{service}/{name}", request_serializer=request.SerializeToString, response_deserializer=response.FromString), request


def drive(server: Reflected) -> None:
    services = server.services()
    for service in ("GenerationService", "ScoringService", "ModelService"):
        assert f"pixeld.v1.{service}" in services, services

    call, request = server.method("pixeld.v1.ModelService", "ListModels")
    (model,) = call(request(), timeout=20).models

    call, request = server.method("pixeld.v1.GenerationService", "StreamGenerateImages")
    asked = request()
    asked.spec.model, asked.spec.image_count, asked.spec.sampling.seed = model.name, 2, 5
    events = list(call(asked, timeout=20))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-1] == "completed" and set(kinds[1:-1]) == {"sampled"}, kinds
    values = {0: b"", 1: b""}
    for event in events:
        for run in event.sampled.runs:
            values[run.image_index] += run.values

    call, request = server.method("pixeld.v1.GenerationService", "GenerateImages")
    whole = request()
    whole.spec.CopyFrom(asked.spec)
    assert [made.data for made in call(whole, timeout=20).images] == [values[0], values[1]]

    call, request = server.method("pixeld.v1.ScoringService", "ScoreImages")
    asked = request()
    for index in values:
        asked.items.add(item_id=str(index)).image.data = values[index]
    for score, log_likelihood in zip(call(asked, timeout=20).scores, events[-1].completed.log_likelihoods, strict=True):
        assert abs(score.nll_nats + log_likelihood) < 1e-3

    call, request = server.method("grpc.health.v1.Health", "Check")
    assert call(request(service="pixeld.v1.GenerationService"), timeout=20).status == 1


if __name__ == "__main__":
    with grpc.insecure_channel(sys.argv[1]) as connection:
        for version in ("grpc.reflection.v1", "grpc.reflection.v1alpha"):
            drive(Reflected(connection, version))
