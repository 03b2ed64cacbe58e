# SPDX-License-Identifier: Apache-2.0
"""Races that no order of threads shows, by clang's thread sanitizer in a process of its own: it
must be loaded before anything else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .host.toolchain import thread_sanitizer

HERE = Path(__file__).resolve().parent


def races(*arguments: str) -> list[str]:
    """Runs tests under the sanitizer; the places of races in kernels that it finds.
    Python and the loader, which it does not know, are not asked."""
    environment = {
        **os.environ,
        "LD_PRELOAD": thread_sanitizer(),
        "TSAN_OPTIONS": "exitcode=0 report_bugs=1 history_size=4",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-s"]
    done = subprocess.run(
        [*command, "--thread-sanitizer", *arguments],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert re.search(r"\d+ passed", output), output[-4000:]
    # A line where a symbolizer is installed, otherwise an address of the compiled kernel.
    place = r"SUMMARY: ThreadSanitizer: data race .*?(kernel\.metal:\d+|kernel-\w+\.so\+\w+)"
    return re.findall(place, output)


def test_a_race_is_found_where_the_result_is_right() -> None:
    assert races(str(HERE / "races.py"), "-k", "right") == []
    assert races(str(HERE / "races.py"), "-k", "wrong") != []


@pytest.mark.sweep
@pytest.mark.parametrize(
    "file",
    [
        "test_norms.py",
        "test_paged_attention.py",
        "test_pointwise.py",
        "test_qk_norm_rope.py",
        "test_sample.py",
    ],
)
def test_no_kernel_has_a_race(file: str) -> None:
    chosen = "not wrong and not distribution and not seeds"
    assert races(str(HERE / file), "-k", chosen) == []
