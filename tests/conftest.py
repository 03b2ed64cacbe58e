# SPDX-License-Identifier: Apache-2.0
"""For all tests: a plan cache of their own, and a watch over the operators that they lower."""

import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

_cache = tempfile.TemporaryDirectory(prefix="vllm-metal-tests-")
os.environ["VLLM_METAL_CACHE_DIR"] = _cache.name


@pytest.fixture(scope="session")
def lowered_targets() -> Iterator[set[str]]:
    """The operators of all documents that the process has lowered since a test looked."""
    from vllm_metal._native import core

    targets: set[str] = set()
    lower = core.lower

    def recorded(document: bytes, *options: Any) -> Any:
        plan = lower(document, *options)  # first: what is no document is refused here
        for graph in json.loads(document)["graphs"]:
            targets.update(node["target"] for node in graph["nodes"] if node["op"] == "call")
        return plan

    core.lower = recorded
    yield targets
    core.lower = lower


@pytest.fixture(autouse=True)
def every_lowered_operator_is_claimed(
    request: pytest.FixtureRequest, lowered_targets: set[str]
) -> Iterator[None]:
    """No graph of any test has an ATen operator without a lowering, but those that a test names.

    A test that is about such operators has the marker ``unclaimed`` with their names.
    """
    yield
    from vllm_metal._native import core

    marker = request.node.get_closest_marker("unclaimed")
    unclaimed = {target for target in lowered_targets if target.startswith("aten.")}
    unclaimed -= {*core.claimed_targets(), *(marker.args if marker else ())}
    lowered_targets.clear()
    assert not unclaimed, f"operators without a lowering: {sorted(unclaimed)}"
