#!/usr/bin/env python3
"""Checks what deploys the daemon, without a cluster, an engine or the network.

    check.py            lints the chart, renders it with every file of values, holds each object against the schemas of
                        Kubernetes and of the operators, compares deploy/kubernetes with what the chart renders, holds
                        deploy/kserve against KServe's SDK, reads the Compose file, and holds the queries of board and
                        alerts against docs/METRICS.md
    check.py --write    renders deploy/kubernetes again

Helm is its own code, as a library (helm-python-sdk); the schemas are those that kubernetes-validate and cloudcoil have.
Needs the packages of requirements.txt on PYTHONPATH: `make deployment` sees to that.
"""

import argparse
import contextlib
import copy
import json
import os
import re
import sys
import tomllib
import warnings
from collections import Counter
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from compose_spec import PyCompose
from pydantic import ValidationError

import kserve_objects
import queries

DEPLOY = Path(__file__).resolve().parent
CHART = DEPLOY / "helm" / "pixeld"
# Manifests that are kept, and the values of the chart that they are made of.
RENDERED = {"pixeld": None, "autoscaled": "autoscaled-values.yaml", "gpu": "gpu-values.yaml"}
# From the oldest that the chart names to the newest whose schemas are at hand. An OCI artifact as a volume is newer.
KUBERNETES = ["1.30.0", "1.33.0", "1.35.0", "1.37.0"]
OF_OPERATORS = {"ScaledObject": ScaledObject, "PrometheusRule": PrometheusRule, "ServiceMonitor": ServiceMonitor}
# What only Helm makes of its labels.
OF_HELM = re.compile(r"^ +(app\.kubernetes\.io/managed-by|helm\.sh/chart):.*\n", re.MULTILINE)
# Values that the schema must refuse, and a word of why.
REFUSED = [
    ({"replica": 3}, "replica"),
    ({"config": {"server": {"listen": "0.0.0.0:1"}}}, "listen"),
    ({"models": {"source": "volume"}}, "volume"),
    ({"models": {"source": "none", "embedded": False}}, "embedded"),
    ({"models": {"source": "image"}}, "reference"),
    ({"autoscaling": {"kind": "keda"}, "metrics": {"enabled": False}}, "metrics"),
    ({"drain": {"timeoutSeconds": "30s"}}, "timeoutSeconds"),
    ({"image": {"digest": "sha256:12"}}, "digest"),
    ({"config": {"server": {"drain_delay": "60s"}}}, "drain_delay"),
    ({"networkPolicy": {"clients": []}}, "clients"),  # which Kubernetes takes for everybody
    ({"autoscaling": {"kind": "keda"}}, "serviceMonitor"),  # which would find nothing to ask for
    ({"metrics": {"enabled": False, "rules": {"enabled": True}}}, "rules"),
    ({"config": {"engines": {}}}, "engines"),
    ({"config": {"health": {"listen": ""}}}, "listen"),
    ({"extraEnv": [{"name": "PIXELD__SERVER__DRAIN_TIMEOUT", "value": "1h"}]}, "extraEnv"),
    ({"podLabels": {"app.kubernetes.io/name": "mine"}}, "app.kubernetes.io/name"),
    ({"resources": {"claims": []}}, "claims"),
    ({"resources": None}, "resources"),
]
# Values that only a template can refuse.
FAILING = [
    ({"autoscaling": {"kind": "hpa", "minReplicas": 5, "maxReplicas": 2}}, "pixeld", "minReplicas"),
    ({"rollout": {"maxSurge": 0}}, "pixeld", "rollout"),
    ({}, "1st", "1st"),
]

faults: list[str] = []


@contextlib.contextmanager
def quiet():
    """Helm tells standard error of every link in the chart that it follows; what is wrong it raises or reports."""
    told = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(told, 2)
        os.close(told)


def values_of(file: str | None) -> dict:
    return {} if file is None else yaml.safe_load((CHART / "ci" / file).read_text())


def render(chart: helm.Chart, file: str | None) -> str:
    """Everything that the chart makes of `file`, in the order of its templates, as one text."""
    manifests = chart.render(values_of(file), name="pixeld", namespace="pixeld", is_install=True)
    texts = [text.strip() for name, text in sorted(manifests.items()) if name.endswith(".yaml") and text.strip()]
    return "\n---\n".join(texts) + "\n"


def hold(name: str, document: dict) -> None:
    """Holds an object against its schema."""
    kind = document["kind"]
    what = f"{name}: {kind} {document['metadata']['name']}"
    if kind in OF_OPERATORS:
        hold_custom(what, OF_OPERATORS[kind], document)
        return
    for version in KUBERNETES:
        if uses_image_volume(document) and version < "1.31":
            continue
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults.append(f"{what}: Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}")


def uses_image_volume(document: dict) -> bool:
    volumes = document.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", [])
    return any("image" in volume for volume in volumes)


def hold_custom(what: str, model: type, document: dict) -> None:
    """The models take fields they do not know and forget them: what does not come back is unknown."""
    try:
        read = model.model_validate(copy.deepcopy(document))
        known = json.loads(read.model_dump_json(by_alias=True, exclude_none=True))
    except ValidationError as error:
        faults.extend(f"{what}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return
    faults.extend(f"{what}: unknown field {path}" for path in lost(document, known))


def lost(given: object, known: object, path: str = "") -> list[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        gone = [f"{path}.{key}" for key in given if key not in known]
        return gone + [one for key in given if key in known for one in lost(given[key], known[key], f"{path}.{key}")]
    if isinstance(given, list) and isinstance(known, list):
        return [one for i, (a, b) in enumerate(zip(given, known)) for one in lost(a, b, f"{path}[{i}]")]
    return []


def agree(name: str, documents: list[dict]) -> None:
    """What no schema says: that the objects fit each other, and the pod is as confined as it is meant to be."""
    def fault(text: str) -> None:
        faults.append(f"{name}: {text}")

    twice = [key for key, n in Counter((d["kind"], d["metadata"]["name"]) for d in documents).items() if n > 1]
    for kind, called in twice:
        fault(f"{kind} {called} is there twice")
    (deployment,) = (d for d in documents if d["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    labels, pod = template["metadata"]["labels"], template["spec"]
    for d in documents:
        spec = d.get("spec", {})
        selector = {
            "Service": lambda: spec["selector"],
            "PodDisruptionBudget": lambda: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
            "Deployment": lambda: spec["selector"]["matchLabels"],
        }.get(d["kind"], dict)()
        if not selector.items() <= labels.items():
            fault(f"{d['kind']} selects {selector}, pods have {labels}")
        if d["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            if "replicas" in deployment["spec"]:
                fault("replicas are given beside an autoscaler")
            if spec["scaleTargetRef"]["name"] != deployment["metadata"]["name"]:
                fault(f"{d['kind']} scales {spec['scaleTargetRef']['name']}")
    volumes = {volume["name"] for volume in pod["volumes"]}
    (daemon,) = pod["containers"]
    for container in pod.get("initContainers", []) + [daemon]:
        context = container["securityContext"]
        confined = (context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
                    and context["capabilities"] == {"drop": ["ALL"]} and pod["securityContext"]["runAsNonRoot"]
                    and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"})
        if not confined:
            fault(f"container {container['name']} is not confined")
        for mount in container["volumeMounts"]:
            if mount["name"] not in volumes:
                fault(f"{container['name']} mounts {mount['name']}, which is no volume")
    (config,) = (d for d in documents if d["kind"] == "ConfigMap" and "pixeld.toml" in d["data"])
    settings = tomllib.loads(config["data"]["pixeld.toml"])
    ports = {daemon[probe]["grpc"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    if settings["health"]["listen"] != f"0.0.0.0:{ports.pop()}" or ports:
        fault("probes ask where nothing answers them")
    if any(isinstance(value, float) and value.is_integer() for value in settings.get("engine", {}).values()):
        fault("a whole number is written as a fraction")
    services = [daemon[probe]["grpc"]["service"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    if len(set(services)) != 3:
        fault(f"probes share a name: {services}")
    drain = settings["server"]["drain_timeout"].removesuffix("s")
    before = daemon["lifecycle"]["preStop"]["sleep"]["seconds"]
    if pod["terminationGracePeriodSeconds"] < before + int(drain) + 10:
        fault(f"a pod is killed after {pod['terminationGracePeriodSeconds']} s, in the drain of {before} + {drain} s")


def chart(write: bool) -> int:
    """Returns how many objects were held against schemas."""
    with quiet():
        report, loaded = helm.lint(CHART, strict=True), helm.Chart.load(CHART)
    faults.extend(f"lint: {one['path']}: {one['error']}" for one in report["messages"] if one["severity"] > 1)
    count = 0
    with loaded:
        for values, word in REFUSED:
            try:
                loaded.validate_schema(values)
                faults.append(f"values.schema.json takes {values}")
            except helm.HelmError as error:
                if word not in str(error):
                    faults.append(f"values.schema.json refuses {values} with other words: {error}")
        for values, release, word in FAILING:
            try:
                loaded.render(values, name=release, namespace="pixeld", is_install=True)
                faults.append(f"the chart renders {values} for {release}")
            except helm.HelmError as error:
                if word not in str(error):
                    faults.append(f"the chart refuses {values} for {release} with other words: {error}")
        known = set(tomllib.loads((DEPLOY / "config.example.toml").read_text()))
        taken = set(json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"])
        if known != taken:
            faults.append(f"values.schema.json has other sections than the configuration: {sorted(known ^ taken)}")
        for file in [None, *sorted(path.name for path in (CHART / "ci").glob("*.yaml"))]:
            name = (file or "defaults").removesuffix("-values.yaml")
            loaded.validate_schema(values_of(file))
            documents = [document for document in yaml.safe_load_all(render(loaded, file)) if document]
            for document in documents:
                hold(name, document)
            agree(name, documents)
            count += len(documents)
        for name, file in RENDERED.items():
            path = DEPLOY / "kubernetes" / f"{name}.yaml"
            origin = f"deploy/helm/pixeld/ci/{file}" if file else "its default values"
            text = f"# Rendered from deploy/helm/pixeld with {origin}\n# by deploy/check.py --write: change the chart instead.\n"
            text += OF_HELM.sub("", render(loaded, file))
            if write:
                path.write_text(text)
            elif not path.is_file() or path.read_text() != text:
                faults.append(f"deploy/kubernetes/{name}.yaml is not what the chart renders: deploy/check.py --write")
    return count


def kserve() -> int:
    """Returns how many objects were held against KServe's SDK, and what of them is a pod against Kubernetes' schemas."""
    documents = {path.name: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "kserve").glob("*.yaml"))}
    for name, document in documents.items():
        wrong, foreign = kserve_objects.wrong(document, f"kserve: {name}")
        faults.extend(wrong)
        containers = [value for _, of, value in foreign if of == "V1Container"]
        faults.extend(f"kserve: {name}: nothing checks {path}, a {of}" for path, of, _ in foreign
                      if of not in ("V1Container", "V1ObjectMeta"))
        hold(f"kserve: {name}", {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"],
                                 "spec": {"containers": containers or [{"name": "none", "image": "none"}]}})
    if any(fault.startswith("kserve: ") for fault in faults):
        return len(documents)  # what is not well formed cannot be compared
    runtime, service = documents["runtime.yaml"], documents["inferenceservice.yaml"]
    model, (container,) = service["spec"]["predictor"]["model"], runtime["spec"]["containers"]
    formats = {one["name"] for one in runtime["spec"]["supportedModelFormats"]}
    if (model["runtime"] != runtime["metadata"]["name"] or model["modelFormat"]["name"] not in formats
            or model["protocolVersion"] not in runtime["spec"]["protocolVersions"]):
        faults.append("kserve: the example asks for what the runtime is not")
    (port,) = container["ports"]
    listens = f"--set=server.listen=0.0.0.0:{port['containerPort']}" in container["args"]
    probed = {container[probe]["grpc"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    if not listens or probed != {port["containerPort"]}:
        faults.append("kserve: the runtime listens, is asked for its health, or is exposed at another port")
    drain = sum(map(int, re.findall(r"--set=server\.drain_(?:delay|timeout)=(\d+)s", " ".join(container["args"]))))
    if service["spec"]["predictor"]["terminationGracePeriodSeconds"] < drain + 10:
        faults.append("kserve: a pod is killed in its drain")
    return len(documents)


def compose() -> None:
    path = DEPLOY / "compose" / "compose.yaml"
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", path.read_text())
    resolved = yaml.safe_load(text)  # with what its anchors stand for
    parsed = yaml.safe_load(PyCompose.from_yaml(yaml.safe_dump(resolved)).to_yaml())
    for name, service in resolved["services"].items():
        known = parsed["services"][name]
        faults.extend(f"compose: {name}: unknown field {key}" for key in service if key not in known)
        if not (service.get("read_only") and service.get("cap_drop") == ["ALL"] and "healthcheck" in service):
            faults.append(f"compose: {name} is not confined, or has no health check")
        if not re.fullmatch(r"[\w./-]+:[\w.-]+", service["image"]):
            faults.append(f"compose: {name}: {service['image']} names no version")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith(".") and not (path.parent / source).exists():
                faults.append(f"compose: {name} mounts {source}, which is not there")
    for file in sorted((DEPLOY / "compose").rglob("*.yml")):
        yaml.safe_load(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="render deploy/kubernetes again")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    count = chart(arguments.write)
    count += kserve()
    compose()
    asked, wrong = queries.check()
    faults.extend(wrong)
    if faults:
        sys.exit("\n".join(["deployment:", *faults]))
    print(f"deployment: {count} objects hold against Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]} and the operators, "
          f"rendered by Helm {helm.helm_sdk_version()}; deploy/kubernetes is what the chart renders; Compose file read; "
          f"{asked} queries ask for what is exported")


if __name__ == "__main__":
    main()
