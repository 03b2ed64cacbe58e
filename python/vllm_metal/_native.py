# SPDX-License-Identifier: Apache-2.0
"""Loads the native module `vllm_metal._core` next to the one MLX of this process.

Import `core` from here, never `vllm_metal._core` itself: MLX has to be loaded first, and it has to
be the version that the native module was built against.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from packaging.requirements import Requirement


class NativeModuleError(ImportError):
    """The native module can't be used in this environment; the message says what to do."""


def required_mlx_version() -> str | None:
    """The mlx version that the installed vllm-metal asks for, or None in a bare checkout."""
    try:
        requirements = importlib.metadata.requires("vllm-metal") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in map(Requirement, requirements):
        if requirement.name == "mlx":
            return next(
                (pin.version for pin in requirement.specifier if pin.operator == "=="), None
            )
    return None


def refuse_other_mlx(found: str, wanted: str | None) -> None:
    """Raises NativeModuleError unless `found` is the mlx version that is wanted."""
    if wanted is not None and found != wanted:
        raise NativeModuleError(
            f"vllm-metal was built against mlx {wanted}, but mlx {found} is installed: "
            f"run `pip install mlx=={wanted}`, or build vllm-metal again"
        )


def load() -> ModuleType:
    """Imports mlx, then the native module, and returns the latter.

    Raises NativeModuleError when mlx is missing, when its version is not the one that the native
    module was built against, or when the native module was not built.
    """
    wanted = required_mlx_version()
    try:
        found = importlib.metadata.version("mlx")
        # A wrong version is refused before the native module is loaded: it may lack symbols.
        refuse_other_mlx(found, wanted)
        importlib.import_module("mlx.core")
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError) as error:
        raise NativeModuleError(
            f"vllm-metal needs mlx{'==' + wanted if wanted else ''}, which is not installed"
        ) from error
    try:
        core = importlib.import_module("vllm_metal._core")
    except ImportError as error:
        raise NativeModuleError(
            f"the native module vllm_metal._core can't be loaded with mlx {found}: {error}; "
            "install vllm-metal again, in a checkout with `./install.sh`"
        ) from error
    for version in (found, core.mlx_version()):
        refuse_other_mlx(version, core.MLX_VERSION)
    return core


core = load()
