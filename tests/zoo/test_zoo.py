# SPDX-License-Identifier: Apache-2.0
"""What docs/coverage.md says passes, passes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo import coverage
from zoo.case import Case, Part
from zoo.pool import Pool
from zoo.registry import cases

TABLE = Path(__file__).parents[2] / "docs" / "coverage.md"
SAMPLE = 3
"""One architecture in so many runs by default; the whole zoo is the marker `sweep`."""
SAMPLE_POOLED = 9
"""Of those that pool, most of which have the body of another row."""


def hashed(case: Case) -> int:
    """What a fixed part is taken by: a new architecture does not change which others run."""
    return hashlib.sha256(case.architecture.encode()).digest()[0]


def sampled(case: Case) -> bool:
    return hashed(case) % (SAMPLE_POOLED if case.part == Part.POOLED else SAMPLE) == 0


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


def assert_no_drawn_one_differs(choose: Callable[[Case], bool], seed: str, flags: bool) -> None:
    """A configuration that nobody chose gives Hugging Face's answers, or those of vLLM's PyTorch
    model where it is that one that differs or refuses."""
    good = (*coverage.GOOD, "refused by vLLM", "refused by Hugging Face")
    usual = coverage.read(TABLE.read_text(encoding="utf-8"))
    with Pool(seed=seed, flags=flags) as pool:
        both = [case for case in pool.call(cases) if case.part == Part.BOTH and choose(case)]
        works = [case for case in both if usual[case.architecture] in coverage.GOOD]
        outcomes = list(pool.run(works))
    assert outcomes
    wrong = [outcome for outcome in outcomes if outcome.result not in good]
    assert not wrong, "\n".join(f"{coverage.line(o)}\n{o.detail}" for o in wrong)


def test_drawn_sample() -> None:
    assert_no_drawn_one_differs(lambda case: hashed(case) % 25 == 0, "1", flags=True)


@pytest.mark.sweep
@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("seed", ["1", "2"])
def test_drawn(seed: str, flags: bool) -> None:
    assert_no_drawn_one_differs(lambda case: True, seed, flags)
