"""Holds what Grafana's board and the alert rules ask of Prometheus against what docs/METRICS.md lists: each query is one,
names series that there are, and selects, groups and labels by what they are divided by. tests/metrics.rs holds that list
against a daemon that runs."""

import json
import re
from pathlib import Path

import promql_parser as promql
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = {"job", "instance"}  # labels that Prometheus adds
# Of the process, and of Prometheus itself; only their names are looked up elsewhere.
OTHERS = ["up", "process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes",
          "process_start_time_seconds", "process_threads"]
ROW = re.compile(r"^\| `(\w+)` \| (\w+)[^|]*\| ([^|]*) \|", re.MULTILINE)


def listed(page: str) -> dict[str, set[str]]:
    """Labels by series."""
    series = {name: set(TARGET) for name in OTHERS}
    for name, kind, labels in ROW.findall(page):
        own = TARGET | {label.strip() for label in labels.split(",")}
        if kind == "histogram":
            series |= {f"{name}_sum": own, f"{name}_count": own, f"{name}_bucket": own | {"le"}}
        else:
            series[name] = own
    return series


def faults_of(query: str, legend: str, series: dict[str, set[str]]) -> list[str]:
    faults: list[str] = []
    seen: set[str] = set()  # labels of what is asked for

    def select(selector: promql.VectorSelector) -> None:
        if selector.name not in series:
            faults.append(f"there is no series {selector.name}")
            return
        seen.update(series[selector.name])
        for matcher in selector.matchers.matchers:
            if matcher.name not in series[selector.name]:
                faults.append(f"{selector.name} has no label {matcher.name}")

    def walk(expr: object) -> None:
        for name in ("lhs", "rhs", "expr"):
            if hasattr(expr, name):
                walk(getattr(expr, name))
        for argument in getattr(expr, "args", []):
            walk(argument)
        if isinstance(expr, promql.VectorSelector):
            select(expr)
        elif isinstance(expr, promql.MatrixSelector):
            select(expr.vector_selector)
        elif isinstance(expr, promql.AggregateExpr) and expr.modifier is not None:
            faults.extend(f"nothing is divided by {label}" for label in expr.modifier.labels if label not in seen)

    try:
        walk(promql.parse(query.replace("$__rate_interval", "1m")))
    except ValueError as error:
        return [f"{query}: {error}"]
    labels = re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)", legend)
    faults += [f"there is no {label} to tell" for label in labels if label not in seen]
    return [f"{query}: {fault}" for fault in faults]


def asked_by(board: object) -> list[tuple[str, str]]:
    """Every query of a board, with its legend."""
    if isinstance(board, dict):
        own = [(board["expr"], board.get("legendFormat") or board.get("textFormat") or "")] if "expr" in board else []
        return own + [pair for value in board.values() for pair in asked_by(value)]
    return [pair for value in board for pair in asked_by(value)] if isinstance(board, list) else []


def check() -> tuple[int, list[str]]:
    """How many queries there are, and what is wrong with them."""
    series = listed((REPOSITORY / "docs" / "METRICS.md").read_text())
    board = json.loads((REPOSITORY / "deploy" / "grafana" / "pixeld.json").read_text())
    rules = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "rules.yml").read_text())
    queries = [*asked_by(board), *asked_by(rules)]
    faults = [fault for query, legend in queries for fault in faults_of(query, legend, series)]
    for wrong, legend in [("nothing_total", ""), ("sum by (code) (pixeld_slots)", ""), ("sum(pixeld_slots", ""),
                          ('pixeld_slots{mode="m"}', ""), ("pixeld_slots", "{{code}}"), ("pixeld_step_seconds", "")]:
        if len(faults_of(wrong, legend, series)) != 1:
            faults.append(f"nothing is found wrong with {wrong}")
    places = [(panel["gridPos"], panel["title"]) for panel in board["panels"]]
    for i, (one, title) in enumerate(places):
        if one["x"] + one["w"] > 24:
            faults.append(f"board: {title} is wider than the board")
        faults += [f"board: {title} lies over {other}" for two, other in places[:i]
                   if one["x"] < two["x"] + two["w"] and two["x"] < one["x"] + one["w"]
                   and one["y"] < two["y"] + two["h"] and two["y"] < one["y"] + one["h"]]
    if len({panel["id"] for panel in board["panels"]}) != len(board["panels"]):
        faults.append("board: two panels have one id")
    return len(queries), faults
