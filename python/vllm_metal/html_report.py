# SPDX-License-Identifier: Apache-2.0
"""The report of a lowering as one HTML file that needs no network: `lower --format html`."""

import json
from importlib import resources
from typing import Any

TEMPLATE = "html_report.html"

Json = dict[str, Any]


def render(report: Json, listings: list[Json]) -> str:
    """The page of a report and its plan's listings, as `dump("plan", "json")` gives them: unique
    regions first, then each graph's calls."""
    data = {
        "report": report,
        "regions": [_region(index, of) for index, of in enumerate(listings) if "calls" in of],
        "steps": [_call(line) for of in listings if "calls" not in of for line in of["lines"]],
    }
    # Names come from models: none may end the script element that holds them.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return template.replace("@DATA@", text)


def _region(index: int, listing: Json) -> Json:
    """A region before and after: captured nodes once each, and by which of them each instruction
    is explained."""
    before: dict[str, Json] = {}
    after = []
    for line in listing["lines"]:
        consumed = line.pop("consumed", [])
        before |= {node["node"]: node for node in consumed}
        after.append({**line, "consumed": [node["node"] for node in consumed]})
    return {
        "id": str(index),
        "title": listing["title"],
        "calls": listing["calls"],
        "before": list(before.values()),
        "after": after,
    }


def _call(line: Json) -> str:
    return f"{' '.join(line['results'])} = {line['op']} {' '.join(line['operands'])}"
