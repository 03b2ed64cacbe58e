# SPDX-License-Identifier: Apache-2.0
"""What is committed: pinned versions that agree, no package index, no machine's paths, licences."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

# Written in two halves so that this file passes its own test.
INDEX_HOSTS = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "debian" + ".org"]
MACHINE_PATHS = ["/wo" + "rk/main", "/ro" + "ot/", "/tm" + "p/boot"]
SOURCES = {".py", ".rs", ".sh", ".metal", ".h"}


@pytest.fixture(scope="module")
def committed() -> list[Path]:
    """The files that git tracks."""
    root = Path(__file__).resolve().parents[2]
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    return [root / name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def test_no_package_index_is_named(committed: list[Path]) -> None:
    # Cargo itself writes where a crate comes from.
    files = [path for path in committed if path.name != "Cargo.lock"]
    found = [(path, host) for path in files for host in INDEX_HOSTS if host in text_of(path)]
    assert len(files) > 20
    assert found == []


def test_no_path_of_one_machine_is_named(committed: list[Path]) -> None:
    found = [(path, name) for path in committed for name in MACHINE_PATHS if name in text_of(path)]
    assert found == []


def test_every_source_file_names_its_licence(committed: list[Path]) -> None:
    sources = [path for path in committed if path.suffix in SOURCES]
    missing = [
        path for path in sources if "SPDX-License-Identifier: Apache-2.0" not in text_of(path)[:200]
    ]
    assert len(sources) > 20
    assert missing == []


def test_no_lock_file_with_an_index_is_committed(committed: list[Path]) -> None:
    assert [path.name for path in committed if path.name == "uv.lock"] == []


@pytest.mark.parametrize("name", ["runtime.txt", "dev.txt", "uv.txt"])
def test_every_requirement_has_one_version_and_a_hash(root: Path, name: str) -> None:
    text = (root / "requirements" / name).read_text()
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9.-]+==[^ ;]+ ", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line


def test_the_versions_agree(root: Path) -> None:
    pyproject = tomllib.loads((root / "pyproject.toml").read_text())
    cargo = tomllib.loads((root / "Cargo.toml").read_text())
    dependencies = pyproject["project"]["dependencies"]
    mlx = next(item for item in dependencies if item.startswith("mlx"))
    vllm = next(item for item in dependencies if item.startswith("vllm"))
    shim = (root / "python" / "vllm_wheel" / "vllm_wheel.py").read_text()

    assert pyproject["project"]["version"] == cargo["workspace"]["package"]["version"]
    assert mlx in pyproject["build-system"]["requires"]
    assert f'VERSION = "{vllm.removeprefix("vllm==")}"' in shim
    for name in ("runtime.txt", "dev.txt"):
        pinned = (root / "requirements" / name).read_text()
        assert f"\nmlx=={mlx.removeprefix('mlx[cpu]==')} ;" in pinned
