# SPDX-License-Identifier: Apache-2.0
"""mlx-lm's launches, counted from its graph by the table of what primitives launch on Metal."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"
SOURCE = re.compile(r"mlx/backend/(metal|gpu)/\w+\.cpp:\d+")


@pytest.fixture(scope="module")
def counting():
    return runpy.run_path(str(BENCHES / "mlx_lm_launches.py"))


def test_every_row_names_its_source() -> None:
    rows = tomllib.loads((BENCHES / "metal_launches.toml").read_text())["primitive"]
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert SOURCE.fullmatch(row["source"]), row
        assert row["launches"] in (0, 1), row


# Seven products, norms, two adds, two ropes, attention, the gate, and a key and a value written.
@pytest.mark.parametrize(("name", "norms"), [("llama", 2), ("mistral", 2), ("qwen3", 4)])
def test_a_layer_launches_what_its_graph_has(counting, name: str, norms: int) -> None:
    found = counting["layer"](name)
    launched = {of: launches for of, (_, launches) in found.items() if launches}
    assert launched == {
        "Matmul": 7,
        "RMSNorm": norms,
        "Add": 2,
        "RoPE": 2,
        "ScaledDotProductAttention": 1,
        "Compiled": 1,
        "SliceUpdate": 2,
    }


def test_a_primitive_without_a_row_is_an_error(counting, monkeypatch) -> None:
    monkeypatch.setitem(counting["layer"].__globals__, "table", lambda: {"Matmul": 1})
    with pytest.raises(KeyError):
        counting["layer"]("llama")
