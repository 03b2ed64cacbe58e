# SPDX-License-Identifier: Apache-2.0
"""Which of a plan's kernels may be used on this machine: those that passed their self-check."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_metal import envs

from .contract import Contract, Run, contract
from .self_check import Specialisation, Verdict, Verdicts, this_machine

logger = logging.getLogger("vllm.metal")

UNCHECKED = "not used"


@dataclass(frozen=True)
class PlanKernels:
    """A plan's kernels; `verdicts` is None where nothing here runs them."""

    needed: list[Any]
    verdicts: list[Verdict] | None

    @property
    def usable(self) -> list[Any]:
        """What `Runtime.load` takes."""
        if self.verdicts is None:
            return []
        both = zip(self.needed, self.verdicts, strict=True)
        return [needed for needed, verdict in both if verdict.usable]

    def table(self) -> list[dict[str, str]]:
        """A row for each: `kernel`, `status` and `reason`."""
        if self.verdicts is None:
            return [
                {
                    "kernel": str(_specialisation(needed)),
                    "status": UNCHECKED,
                    "reason": "there is no Metal here; its reference runs",
                }
                for needed in self.needed
            ]
        return [
            {"kernel": verdict.specialisation, "status": verdict.status, "reason": verdict.reason}
            for verdict in self.verdicts
        ]

    def log(self) -> None:
        """One line; what is not usable was logged when it was found."""
        if self.verdicts:
            logger.info(
                "metal: kernels checked on this machine: %d of %d",
                len(self.usable),
                len(self.needed),
            )


def _specialisation(choice: Any) -> Specialisation:
    return Specialisation.of(choice.name, choice.sizes, choice.dtypes)


def kernel_runner(device_name: str) -> Run | None:
    """What runs kernels on MLX's device; None where that is not Metal. Not yet run on Metal."""
    import mlx.core as mx

    if device_name != "gpu" or not mx.metal.is_available():
        return None
    from .metal import run_on_metal

    return run_on_metal


def check_kernels(
    plan: Any, run: Run | None, contracts: Callable[[str], Contract] = contract
) -> PlanKernels:
    """Checks what the plan needs, by verdicts that were kept or by trying it out; never raises for
    what a kernel does wrong."""
    needed = list(plan.kernels)
    if run is None:
        return PlanKernels(needed, None)
    verdicts = Verdicts(envs.CACHE_DIR.value() / "kernels.json", this_machine())
    checked = verdicts.check(map(_specialisation, needed), run, contracts)
    return PlanKernels(needed, checked)
