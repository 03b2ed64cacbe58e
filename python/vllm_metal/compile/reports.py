# SPDX-License-Identifier: Apache-2.0
"""What became of each compiled graph."""

import logging
from typing import Any

from vllm_metal import envs

logger = logging.getLogger("vllm.metal.compile")

_reports: list[dict[str, Any]] = []


def reports() -> list[dict[str, Any]]:
    """A report of each graph that this process has compiled, oldest first.

    ``graph`` names it; the rest is the lowering's report (``fused``, ``lowered``, ``fallback``,
    ``timings_ms``, ...), or, for a graph that runs in PyTorch as a whole, ``refused`` with the
    reason.
    """
    return list(_reports)


def reset_reports() -> None:
    """Forget all reports."""
    _reports.clear()


def record(graph: str, report: dict[str, Any]) -> None:
    """Keep the report of a lowered graph, and log it."""
    _reports.append({"graph": graph, **report})
    fused = ", ".join(f"{count} {name}" for name, count in sorted(report["fused"].items()))
    islands = report["fallback"]
    logger.info(
        "metal: compiled %s: %d nodes to %d instructions in %.0f ms; fused %s; %d islands",
        graph,
        report["nodes"]["captured"],
        report["nodes"]["plan"],
        sum(report["timings_ms"].values()),
        fused or "nothing",
        sum(island["count"] for island in islands),
    )
    if islands:
        named = ", ".join(
            f"{island['target']} x{island['count']} ({island['where']})" for island in islands
        )
        logger.warning(
            "metal: %s: operators that run in PyTorch on the CPU (slow): %s; %s=error refuses them",
            graph,
            named,
            envs.FALLBACK.name,
        )


def record_refusal(graph: str, reason: str) -> None:
    """Keep and log that a whole graph runs in PyTorch."""
    _reports.append({"graph": graph, "refused": reason})
    logger.warning(
        "metal: %s runs in PyTorch as a whole: %s; %s=error refuses it",
        graph,
        reason,
        envs.FALLBACK.name,
    )
