"""Holds the objects of deploy/kserve against what KServe's own SDK says of their fields.

The classes of the SDK are generated from KServe's Go types and declare each field with its name in JSON and its type. They are
read as text, not imported: the package would bring all of a model server with it.
"""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

KINDS = {
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"): "V1alpha1ClusterServingRuntime",
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}
SCALARS = {"str": str, "int": int, "bool": bool, "float": float}


class Declared(NamedTuple):
    """Fields of an object, by their names in JSON."""

    types: dict[str, str]
    required: set[str]


@cache
def declared(name: str) -> Declared | None:
    """None for a class that is Kubernetes' own."""
    package = importlib.util.find_spec("kserve")
    models = Path(package.submodule_search_locations[0]) / "models"
    # V1beta1InferenceService lies in v1beta1_inference_service.py, and some acronyms are cut otherwise.
    path = models / (re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() + ".py")
    if not path.is_file():
        return None
    (made,) = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef))
    tables = {node.targets[0].id: ast.literal_eval(node.value) for node in made.body if isinstance(node, ast.Assign)
              and node.targets[0].id in ("openapi_types", "attribute_map")}
    (init,) = (node for node in made.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    # What may be missing is set only `if` it is there.
    always = {node.targets[0].attr for node in init.body if isinstance(node, ast.Assign)}
    names = tables["attribute_map"]
    return Declared({names[field]: of for field, of in tables["openapi_types"].items()},
                    {names[field] for field in always & names.keys()})


def wrong(document: dict, name: str) -> tuple[list[str], list[tuple[str, str, object]]]:
    """Faults of a document, and what in it is of Kubernetes' own types: path, type and value."""
    faults: list[str] = []
    foreign: list[tuple[str, str, object]] = []

    def hold(path: str, value: object, of: str) -> None:
        inner = re.fullmatch(r"list\[(.*)]|dict\(str, (.*)\)", of)
        if inner and inner[1]:
            if not isinstance(value, list):
                faults.append(f"{name}: {path}: must be a list")
                return
            for i, one in enumerate(value):
                hold(f"{path}[{i}]", one, inner[1])
        elif inner:
            if not isinstance(value, dict):
                faults.append(f"{name}: {path}: must be an object")
                return
            for key, one in value.items():
                hold(f"{path}.{key}", one, inner[2])
        elif of in SCALARS:
            if type(value) is not SCALARS[of]:
                faults.append(f"{name}: {path}: must be a {of}, got {value!r}")
        elif (known := declared(of)) is None:
            foreign.append((path, of, value))
        elif not isinstance(value, dict):
            faults.append(f"{name}: {path}: must be an object")
        else:
            faults.extend(f"{name}: {path}: unknown field {key}" for key in value if key not in known.types)
            faults.extend(f"{name}: {path}: {key} is missing" for key in known.required if key not in value)
            for key, one in value.items():
                if key in known.types:
                    hold(f"{path}.{key}".lstrip("."), one, known.types[key])

    of = KINDS.get((document.get("apiVersion"), document.get("kind")))
    if of is None:
        return [f"{name}: not of KServe: {document.get('apiVersion')} {document.get('kind')}"], []
    hold("", document, of)
    return faults, foreign
