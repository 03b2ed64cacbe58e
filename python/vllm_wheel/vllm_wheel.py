# SPDX-License-Identifier: Apache-2.0
"""PEP 517 backend that packs vLLM's source distribution as a pure-Python wheel.

vLLM's own build compiles for CUDA on Linux and for the CPU on macOS; vllm-metal needs none of that,
only vLLM's Python files. This takes the source distribution from the package index (checked against
the hash below) and packs its package with its metadata and entry points, on every system alike. The
result has the files of vLLM's own `VLLM_TARGET_DEVICE=empty` build, which exists for Linux only.
"""

from __future__ import annotations

import base64
import csv
import email
import email.message
import email.policy
import hashlib
import io
import os
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

VERSION = "0.33.0"
SHA256 = "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112"

# The label of vLLM's own device-free build.
WHEEL_VERSION = f"{VERSION}+empty"
DIST_INFO = f"vllm-{WHEEL_VERSION}.dist-info"
WHEEL_NAME = f"vllm-{WHEEL_VERSION}-py3-none-any.whl"
SDIST_NAME = f"vllm-{VERSION}.tar.gz"
CACHE = Path(__file__).resolve().parents[2] / ".build" / "vllm"

# Requirements of vLLM that are replaced.
# certifi: vLLM asks for the newest certificate bundle of its release day (>=2026.10.19), which not
# every package index has. vLLM uses no feature of it, so any version that is installed will do.
REPLACED_REQUIREMENTS = {"certifi": "certifi"}

WHEEL_FILE = """\
Wheel-Version: 1.0
Generator: vllm-metal
Root-Is-Purelib: true
Tag: py3-none-any
"""


def download_sdist(folder: Path) -> Path:
    """Downloads vLLM's source distribution with pip's configuration; returns its path."""
    # A user of uv may have named an index to uv only.
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if url := os.environ.get(name):
            os.environ.setdefault("PIP_INDEX_URL", url)

    # `pip download` would build vLLM's metadata, which needs torch and a compiler: its parts are
    # used one by one instead.
    from pip._internal.commands.download import DownloadCommand
    from pip._internal.network.download import Downloader
    from pip._internal.utils.temp_dir import global_tempdir_manager, tempdir_registry

    command = DownloadCommand("download", "")
    with command.main_context():
        command.tempdir_registry = command.enter_context(tempdir_registry())
        command.enter_context(global_tempdir_manager())
        options, _ = command.parse_args(["--no-deps", "--no-binary", "vllm", "--quiet"])
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        for candidate in finder.find_all_candidates("vllm"):
            if str(candidate.version) == VERSION:
                path, _ = Downloader(session, "off")(candidate.link, str(folder))
                return Path(path)
    raise RuntimeError(f"the package index has no source distribution of vllm {VERSION}")


def check_hash(path: Path) -> None:
    """Raises RuntimeError unless the file is the source distribution that was pinned."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(
            f"{path.name} from the package index has the SHA-256 {found}, but {SHA256} is pinned "
            "in python/vllm_wheel/vllm_wheel.py: not installed"
        )


def fetch_sdist() -> Path:
    """The checked source distribution, downloaded once per checkout."""
    path = CACHE / SDIST_NAME
    if path.is_file():
        check_hash(path)
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        downloaded = download_sdist(Path(folder))
        check_hash(downloaded)
        downloaded.replace(path)
    return path


def read_sdist(path: Path) -> dict[str, bytes]:
    """The files of a source distribution by their path inside its top folder."""
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                files[name] = content.read()
    return files


def requirements(files: dict[str, bytes]) -> list[str]:
    """What vLLM needs on a platform without a device of its own: its common requirements and torch.

    `PKG-INFO` can't be asked: it has the requirements of the machine the sdist was made on (CUDA).
    """
    from packaging.requirements import Requirement

    common = files["requirements/common.txt"].decode().splitlines()
    lines = [line.partition(" #")[0].strip() for line in common if not line.startswith("#")]
    build = tomllib.loads(files["pyproject.toml"].decode())["build-system"]["requires"]
    parsed = [Requirement(line) for line in lines if line]
    parsed += [pin for pin in map(Requirement, build) if pin.name == "torch"]
    return [REPLACED_REQUIREMENTS.get(item.name, str(item)) for item in parsed]


def metadata(files: dict[str, bytes]) -> bytes:
    """The METADATA file: the sdist's own, with our version label and the requirements above."""
    # A folded line is not allowed in METADATA.
    unfolded = email.policy.compat32.clone(max_line_length=None)
    message = email.message_from_bytes(files["PKG-INFO"], policy=unfolded)
    message.replace_header("Version", WHEEL_VERSION)
    inherited = message.get_all("Requires-Dist", [])
    del message["Requires-Dist"]
    optional = [item for item in inherited if "extra ==" in item]
    for requirement in [*requirements(files), *optional]:
        message["Requires-Dist"] = requirement
    return bytes(message)


def entry_points(files: dict[str, bytes]) -> bytes:
    """The entry_points.txt file of vLLM's own metadata."""
    project = tomllib.loads(files["pyproject.toml"].decode())["project"]
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()), ""]
    return "\n".join(lines).encode()


def dist_info(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of the .dist-info folder, without RECORD."""
    return {
        "METADATA": metadata(files),
        "WHEEL": WHEEL_FILE.encode(),
        "entry_points.txt": entry_points(files),
        "top_level.txt": b"vllm\n",
        "licenses/LICENSE": files["LICENSE"],
    }


def write_wheel(path: Path, files: dict[str, bytes]) -> None:
    """Writes a wheel with a RECORD; the same files always give the same bytes."""
    record = f"{DIST_INFO}/RECORD"
    lines = io.StringIO()
    # Some of vLLM's file names have commas.
    rows = csv.writer(lines, lineterminator="\n")
    for name, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(content)])
    rows.writerow([record, "", ""])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in [*sorted(files.items()), (record, lines.getvalue().encode())]:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 517: nothing beyond the static build requirements."""
    return []


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: dict[str, Any] | None = None
) -> str:
    """PEP 517: writes the .dist-info folder."""
    for name, content in dist_info(read_sdist(fetch_sdist())).items():
        target = Path(metadata_directory) / DIST_INFO / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return DIST_INFO


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 517: writes the wheel."""
    files = read_sdist(fetch_sdist())
    packed = {name: content for name, content in files.items() if name.startswith("vllm/")}
    packed |= {f"{DIST_INFO}/{name}": content for name, content in dist_info(files).items()}
    write_wheel(Path(wheel_directory) / WHEEL_NAME, packed)
    return WHEEL_NAME


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """PEP 517: refused, there is nothing of ours to distribute."""
    raise NotImplementedError("vllm_wheel only builds wheels")
