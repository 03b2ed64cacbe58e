# SPDX-License-Identifier: Apache-2.0
"""The native module loads with the MLX it was built against, and with no other."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from vllm_metal import _native


def test_the_process_has_one_mlx_of_the_right_version() -> None:
    assert _native.core.MLX_VERSION == _native.core.mlx_version() == version("mlx")
    maps = Path("/proc/self/maps")
    if sys.platform == "linux":
        loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "libmlx." in line}
        assert len(loaded) == 1


def test_the_same_version_is_accepted() -> None:
    assert _native.refuse_other_mlx("0.32.2", "0.32.2") is None


def test_another_version_is_refused_in_one_sentence() -> None:
    with pytest.raises(_native.NativeModuleError) as error:
        _native.refuse_other_mlx("0.99.0", "0.32.2")
    assert str(error.value) == (
        "vllm-metal was built against mlx 0.32.2, but mlx 0.99.0 is installed: "
        "run `pip install mlx==0.32.2`, or build vllm-metal again"
    )


def test_import_beside_another_mlx_is_refused(tmp_path: Path) -> None:
    wanted = _native.core.MLX_VERSION
    info = tmp_path / "mlx-0.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx\nVersion: 0.99.0\n")
    path = os.pathsep.join([str(tmp_path), str(Path(_native.__file__).parents[1])])
    result = subprocess.run(
        [sys.executable, "-c", "import vllm_metal._native"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert (
        f"vllm-metal was built against mlx {wanted}, but mlx 0.99.0 is installed" in result.stderr
    )
