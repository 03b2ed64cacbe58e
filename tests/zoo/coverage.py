# SPDX-License-Identifier: Apache-2.0
"""The coverage table."""

from collections import Counter

from vllm_metal import patches
from zoo.case import CHANGED, Outcome, Part

_HEADER = """<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by `make coverage`. -->
# Coverage

A tiny random model of every text-generation architecture that vLLM registers, run through the
lowered path in float32 on MLX's CPU back-end. *passed*: every greedy token is the reference's (or
ties with it within 1e-3) and no top-10 log-probability is further from it than 2e-4. Of models that
give embeddings or scores: no hidden state, or no logit, is further from it. *refused by vLLM*: its
PyTorch model ends with the same error.

Where vLLM's model computes something else than Hugging Face's, the reference is Hugging Face's
with that one thing changed, and the row says what, and where vLLM does it
(`tests/zoo/differences.py`): a pass there says that the plugin runs vLLM's model.
"""

_PATCHES = """
## Patch points

What of vLLM has CUDA or Triton forms only, and what is in its place
(`python/vllm_metal/patches.py`). vLLM's PyTorch model runs the same definition, so where Hugging
Face has no model to compare with, it is part of the reference too. While a model is built, CUDA's
streams are None (`python/vllm_metal/cuda_placeholder.py`).

| of vLLM | in its place |
|---|---|"""

_TITLES = {
    Part.BOTH: "In vLLM and transformers",
    Part.VLLM: "In vLLM alone",
    Part.TRANSFORMERS: "In transformers alone, through vLLM's back-end for its models",
    Part.POOLED: "Embeddings and scores",
}

GOOD = ("passed", "as vLLM")


def read(table: str) -> dict[str, str]:
    """Results by architecture, from what `table` wrote."""
    table = table.split("## Patch points")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    return {row[1].strip(): row[3].strip() for row in rows[1:] if row[1].strip() != "architecture"}


def line(o: Outcome) -> str:
    """One outcome, for the terminal."""
    difference = "" if o.largest_difference is None else f"{o.largest_difference:.1e}"
    return (
        f"{o.case.architecture:32} {o.result:16} {difference:8} {o.seconds:5.1f} s  "
        f"{' '.join(sorted(set(o.islands)))} {o.reason}"
    )


def summary(outcomes: list[Outcome]) -> str:
    """Counts, in a line for each group."""
    lines = []
    for title, group in _groups(outcomes):
        counts = Counter(o.result for o in group)
        islands = sum(1 for o in group if o.passed and o.islands)
        changed = sum(1 for o in group if o.passed and CHANGED in o.reason)
        rest = ", ".join(f"{n} {r}" for r, n in sorted(counts.items()) if r != "passed")
        lines.append(
            f"{title}: {counts['passed']} of {len(group)} passed, {islands} of them with islands, "
            f"{changed} against a changed reference" + (f"; {rest}" if rest else "")
        )
    return "\n".join(lines)


def table(outcomes: list[Outcome]) -> str:
    """The whole document."""
    parts = [_HEADER]
    for title, group in _groups(outcomes):
        parts.append(f"\n## {title}\n\n{summary(group).split(': ', 1)[1]}\n")
        parts.append(
            "| architecture | attention and state | result | largest difference | islands "
            "| reason |\n|---|---|---|---|---|---|"
        )
        for o in sorted(group, key=lambda o: o.case.architecture.lower()):
            difference = "" if o.largest_difference is None else f"{o.largest_difference:.1e}"
            islands = ", ".join(f"{n}x{c}" for n, c in sorted(Counter(o.islands).items()))
            reason = o.reason.replace("|", "\\|").replace("\n", " ")
            parts.append(
                f"| {o.case.architecture} | {o.kinds} | {o.result} | {difference} | {islands} "
                f"| {reason} |"
            )
    return "\n".join([*parts, _patch_points()]) + "\n"


def _patch_points() -> str:
    """What of vLLM is replaced by PyTorch: for the rows above, part of both sides."""
    replaced = [
        f"| `{theirs}` | `{ours}` |" for theirs, ours in sorted(patches.REPLACEMENTS.items())
    ]
    return "\n".join([_PATCHES, *replaced])


def _groups(outcomes: list[Outcome]) -> list[tuple[str, list[Outcome]]]:
    groups = [
        (title, [o for o in outcomes if o.case.part == part]) for part, title in _TITLES.items()
    ]
    return [(title, group) for title, group in groups if group]
