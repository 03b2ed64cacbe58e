# SPDX-License-Identifier: Apache-2.0
"""What docs/coverage.md says passes, passes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo import coverage
from zoo.case import Case
from zoo.pool import Pool
from zoo.registry import cases

TABLE = Path(__file__).parents[2] / "docs" / "coverage.md"
SAMPLE = 3
"""One architecture in so many runs by default; the whole zoo is the marker `sweep`."""


def sampled(case: Case) -> bool:
    """A fixed part, by hash: a new architecture does not change which others run."""
    return hashlib.sha256(case.architecture.encode()).digest()[0] % SAMPLE == 0


def assert_as_in_table(choose: Callable[[Case], bool]) -> None:
    expected = coverage.read(TABLE.read_text(encoding="utf-8"))
    with Pool() as pool:
        chosen = [case for case in pool.call(cases) if choose(case)]
        assert {case.architecture for case in chosen} <= expected.keys()
        works = [case for case in chosen if expected[case.architecture] in coverage.GOOD]
        assert works
        outcomes = list(pool.run(works))
    worse = [o for o in outcomes if o.result != expected[o.case.architecture]]
    assert not worse, "\n".join(f"{coverage.line(o)}\n{o.detail}" for o in worse)


def test_sample() -> None:
    assert_as_in_table(sampled)


@pytest.mark.sweep
def test_whole() -> None:
    assert_as_in_table(lambda case: True)
