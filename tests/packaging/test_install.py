# SPDX-License-Identifier: Apache-2.0
"""install.sh says in one sentence what is missing, before it changes anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASICS = ("sh", "dirname", "uname", "printf", "cat")
COMPILERS = ("c++", "g++", "clang++")


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A folder with nothing but install.sh."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy2(root / "install.sh", folder)
    return folder


def install(checkout: Path, tools: Path, present: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs install.sh on a machine that has the basic commands and what is `present`."""
    tools.mkdir()
    for name in BASICS:
        if path := shutil.which(name):
            (tools / name).symlink_to(path)
    for name, script in present.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    return subprocess.run(
        [str(checkout / "install.sh")],
        env={"PATH": str(tools), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )


NOTHING = "#!/bin/sh\nexit 0\n"
PYTHON = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
OLD_PYTHON = "#!/bin/sh\nexit 1\n"


@pytest.mark.parametrize(
    ("present", "sentence"),
    [
        ({"c++": NOTHING, "python3": PYTHON}, "error: Rust is missing: install it with rustup"),
        ({"cargo": NOTHING, "python3": PYTHON}, "error: a C++ compiler is missing: "),
        ({"cargo": NOTHING, "c++": NOTHING}, "error: Python 3.11 to 3.14 is missing: install it"),
        (
            {"cargo": NOTHING, "c++": NOTHING, "python3": OLD_PYTHON},
            "error: Python 3.11 to 3.14 is missing: install it",
        ),
    ],
    ids=["rust", "compiler", "python", "old-python"],
)
def test_a_missing_tool_is_named(
    checkout: Path, tmp_path: Path, present: dict[str, str], sentence: str
) -> None:
    result = install(checkout, tmp_path / "tools", present)
    assert result.returncode == 1
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert [path.name for path in checkout.iterdir()] == ["install.sh"]


@pytest.mark.parametrize("name", COMPILERS)
def test_any_usual_compiler_will_do(checkout: Path, tmp_path: Path, name: str) -> None:
    present = {"cargo": NOTHING, name: NOTHING, "python3": OLD_PYTHON}
    result = install(checkout, tmp_path / "tools", present)
    assert "C++ compiler" not in result.stderr


def test_a_mac_is_told_about_xcode(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    mac = {"cargo": NOTHING, "python3": PYTHON, "mac-uname": "#!/bin/sh\necho Darwin\n"}
    script = (checkout / "install.sh").read_text().replace("$(uname -s)", "$(mac-uname)")
    (checkout / "install.sh").write_text(script)
    result = install(checkout, tools, mac)
    assert "run xcode-select --install" in result.stderr
