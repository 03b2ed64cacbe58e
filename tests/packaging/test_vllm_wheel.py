# SPDX-License-Identifier: Apache-2.0
"""python/vllm_wheel packs vLLM's sdist as a pure wheel, the same on Linux and on macOS."""

import csv
import email
import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import pytest

SDIST = {
    "PKG-INFO": b"""\
Metadata-Version: 2.4
Name: vllm
Version: 0.33.0
Requires-Python: <3.15,>=3.11
Requires-Dist: torch==2.14.0
Requires-Dist: a-cuda-library==1.0
Requires-Dist: pandas; extra == "bench"
Provides-Extra: bench

A description.
""",
    "pyproject.toml": b"""\
[build-system]
requires = ["setuptools>=77", "torch == 2.14.0"]
[project]
name = "vllm"
[project.scripts]
vllm = "vllm.main:main"
[project.entry-points."vllm.general_plugins"]
resolver = "vllm.plugins:register"
""",
    "requirements/common.txt": b"""\
# Common
numpy
certifi >= 2099.1.1
protobuf >= 5.29.6, !=6.30.*, !=6.32.*, !=6.33.0.*, !=6.33.1.*; platform_machine != "s390x"
six>=1.16.0; python_version > '3.11' # for pandas
""",
    "LICENSE": b"A licence.",
    "setup.py": b"raise SystemExit('vLLM must not build itself')",
    "csrc/kernel.cu": b"",
    "vllm/__init__.py": b"__version__ = '0.33.0'\n",
    "vllm/configs/E=8,N=64.json": b"{}",
}


@pytest.fixture
def backend(vllm_wheel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build backend with a small sdist in the place of the index's, and no way to compile."""
    sdist = tmp_path / vllm_wheel.SDIST_NAME
    with tarfile.open(sdist, "w:gz") as archive:
        for name, content in SDIST.items():
            entry = tarfile.TarInfo(f"vllm-{vllm_wheel.VERSION}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

    def download(folder: Path) -> Path:
        copy = folder / sdist.name
        copy.write_bytes(sdist.read_bytes())
        return copy

    def no_process(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(vllm_wheel, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(vllm_wheel, "SHA256", hashlib.sha256(sdist.read_bytes()).hexdigest())
    monkeypatch.setattr(vllm_wheel, "download_sdist", download)
    monkeypatch.setattr(subprocess, "Popen", no_process)
    return vllm_wheel


def build(
    backend: ModuleType, folder: Path, system: str, machine: str, patch: pytest.MonkeyPatch
) -> Path:
    """Builds the wheel as on another system."""
    folder.mkdir()
    with patch.context() as context:
        context.setattr(sys, "platform", system.lower())
        context.setattr(platform, "system", lambda: system)
        context.setattr(platform, "machine", lambda: machine)
        return folder / backend.build_wheel(str(folder))


@pytest.fixture
def wheel(backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel as a Mac builds it."""
    return build(backend, tmp_path / "mac", "Darwin", "arm64", monkeypatch)


def test_mac_and_linux_build_the_same_bytes(
    backend: ModuleType, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linux = build(backend, tmp_path / "linux", "Linux", "x86_64", monkeypatch)
    assert linux.name == wheel.name == "vllm-0.33.0+empty-py3-none-any.whl"
    assert linux.read_bytes() == wheel.read_bytes()


def test_wheel_holds_the_package_and_nothing_to_compile(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        package = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert package == {"vllm/__init__.py", "vllm/configs/E=8,N=64.json"}
        assert archive.read("vllm/__init__.py") == SDIST["vllm/__init__.py"]


def test_record_has_every_file_with_its_hash(backend: ModuleType, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        record = archive.read(f"{backend.DIST_INFO}/RECORD").decode().splitlines()
        rows = {name: (digest, size) for name, digest, size in csv.reader(record)}
        assert set(rows) == set(archive.namelist())
        assert rows["vllm/configs/E=8,N=64.json"] == (
            "sha256=RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o",
            "2",
        )


def test_metadata_asks_for_no_cuda_and_for_any_certifi(backend: ModuleType, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{backend.DIST_INFO}/METADATA"))
        entry_points = archive.read(f"{backend.DIST_INFO}/entry_points.txt").decode()
    assert metadata["Version"] == "0.33.0+empty"
    assert metadata["Requires-Python"] == "<3.15,>=3.11"
    assert metadata.get_all("Requires-Dist") == [
        "numpy",
        "certifi",
        'protobuf!=6.30.*,!=6.32.*,!=6.33.0.*,!=6.33.1.*,>=5.29.6; platform_machine != "s390x"',
        'six>=1.16.0; python_version > "3.11"',
        "torch==2.14.0",
        'pandas; extra == "bench"',
    ]
    assert not [value for value in metadata.values() if "\n" in value]
    assert "A description." in metadata.get_payload()
    assert entry_points.splitlines() == [
        "[console_scripts]",
        "vllm = vllm.main:main",
        "",
        "[vllm.general_plugins]",
        "resolver = vllm.plugins:register",
    ]


def test_prepared_metadata_is_the_wheels(backend: ModuleType, wheel: Path, tmp_path: Path) -> None:
    name = backend.prepare_metadata_for_build_wheel(str(tmp_path))
    assert name == backend.DIST_INFO
    with zipfile.ZipFile(wheel) as archive:
        for file in ("METADATA", "WHEEL", "entry_points.txt"):
            assert (tmp_path / name / file).read_bytes() == archive.read(f"{name}/{file}")


def test_another_file_than_the_pinned_one_is_refused(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match=r"vllm-0\.33\.0\.tar\.gz .* but 0{64} is pinned"):
        backend.build_wheel(str(tmp_path))
    assert not (backend.CACHE / backend.SDIST_NAME).exists()
    assert not list(tmp_path.glob("*.whl"))


def test_installed_vllm_is_pure_python() -> None:
    vllm = distribution("vllm")
    assert vllm.version == "0.33.0+empty"
    names = [str(path) for path in vllm.files or []]
    assert len(names) > 3000
    assert not [name for name in names if name.endswith((".so", ".dylib", ".pyd"))]
    requires = " ".join(vllm.requires or [])
    assert "flashinfer" not in requires and "nvidia-cutlass" not in requires
