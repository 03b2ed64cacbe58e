# SPDX-License-Identifier: Apache-2.0
"""The check of a kernel against its definition, on the machine that is to run it.

A kernel's specialisation is what the runtime launches: a name with sizes, parameters and dtypes. On
the first need it is tried on a few random and extreme inputs; the verdict is kept with all that it
depends on: the kernel's texts, the specialisation, the chip, the system and MLX. One that Metal
refuses, or that differs, is not to be used: the reference is right everywhere.
"""

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np

from .activation import expected_gated, gated
from .attention import DECODE, PREFILL, REDUCE, AttentionCase, AttentionStep
from .contract import Contract, Run, contract
from .norm import add, layer_norm, rms_norm, run_norm
from .rope import RopeCase, RopeStep
from .sample import SAMPLE, Requests, sample, scores_of
from .tensor import Tensor, tensor

logger = logging.getLogger(__name__)

OK, DIFFERS, FAILS = "ok", "differs", "fails"

Sizes = Mapping[str, int]
DTypes = Mapping[str, str]
Contracts = Callable[[str], Contract]


@dataclass(frozen=True)
class Specialisation:
    """What the runtime launches: the contract's sizes, parameters and dtypes. Sizes that vary from
    step to step, such as the number of tokens, may be left out."""

    kernel: str
    sizes: tuple[tuple[str, int], ...]
    dtypes: tuple[tuple[str, str], ...]

    @staticmethod
    def of(kernel: str, sizes: Sizes, dtypes: DTypes) -> "Specialisation":
        return Specialisation(kernel, tuple(sorted(sizes.items())), tuple(sorted(dtypes.items())))

    def __str__(self) -> str:
        dtypes = ", ".join(dtype for _, dtype in self.dtypes)
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes)
        return f"{self.kernel} ({dtypes}; {sizes})"


@dataclass(frozen=True)
class Verdict:
    """Whether a specialisation may be used; `reason` says why not."""

    specialisation: str
    status: str
    reason: str = ""

    @property
    def usable(self) -> bool:
        return self.status == OK


# Tried where a specialisation leaves them open: vLLM's usual sizes, and more splits than blocks.
_BLOCKS, _SPLITS = (16, 32), (1, 4)

# A result and what it should be.
Pair = tuple[Tensor, np.ndarray]


def _attention(
    name: str, run: Run, contracts: Contracts, sizes: Sizes, dtypes: DTypes
) -> Iterator[Pair]:
    """As `_attention_steps`, for the sizes of blocks and numbers of splits that steps have."""
    blocks = [sizes["block_size"]] if "block_size" in sizes else _BLOCKS
    splits = [sizes["splits"]] if "splits" in sizes else _SPLITS
    for block, split in product(blocks, [1] if name == PREFILL else splits):
        step = {**sizes, "block_size": block, "splits": split}
        yield from _attention_steps(name, run, contracts, step, dtypes)


def _attention_steps(
    name: str, run: Run, contracts: Contracts, sizes: Sizes, dtypes: DTypes
) -> Iterator[Pair]:
    """Steps of prompts or of few rows, with lengths at the borders of blocks."""
    block, rows = sizes["block_size"], sizes.get("rows", 1)
    lengths = (1, block, block + 1, 3 * block - 1)
    requests = tuple((min(rows if i else 1, length), length) for i, length in enumerate(lengths))
    if name == PREFILL:
        # Whole, behind tokens in the cache, and with rows of a tile whose keys end in two blocks.
        requests = ((2 * block + 3, 2 * block + 3), (5, 2 * block), (5, 2 * block + 2), (1, 1))
    case = AttentionCase(
        requests,
        heads=sizes["num_heads"],
        kv_heads=sizes["num_kv_heads"],
        size=sizes["head_size"],
        size_v=sizes["head_size_v"],
        block=block,
        rows=rows,
        window=sizes["window"],
        splits=sizes["splits"],
        soft_cap=20.0 if sizes["has_soft_cap"] else 0.0,
        sinks=bool(sizes["has_sinks"]),
        alibi=bool(sizes["has_alibi"]),
        padding=1,
        dtype=dtypes["T"],
    )
    # Ordinary queries; none at all, which weighs all keys alike; and some that pick single keys: as
    # large as float32 has digits for in sums as long as those of a prompt's scores.
    most = 4.0 if name == PREFILL and dtypes["T"] == "float32" else 20.0
    for magnitude in (2.0, 0.0, most):
        step = AttentionStep(case, magnitude)
        if name == PREFILL:
            found = step.prefill(run, contracts(PREFILL))
        else:
            found = step.decode(run, contracts(DECODE), contracts(REDUCE))
        yield found, step.expected()


def _rows(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Iterator[Tensor]:
    """Random, zero and large rows."""
    values = np.random.default_rng(seed).standard_normal(shape)
    for magnitude in (1.0, 0.0, 100.0):
        yield tensor(values * magnitude, dtype)


def _norm(
    name: str, run: Run, contracts: Contracts, sizes: Sizes, dtypes: DTypes
) -> Iterator[Pair]:
    width, dtype = sizes["width"], dtypes["T"]
    random = np.random.default_rng(1)
    rounded = bool(sizes.get("rounded_sum", 1))

    def parameter(flag: str) -> Tensor | None:
        values = tensor(random.standard_normal(width), dtypes["W"])
        return values if sizes.get(flag, 0) else None

    weight, bias = parameter("has_weight"), parameter("has_bias")
    scale = weight.numbers() if weight else 1.0
    shift = bias.numbers() if bias else 0.0
    both = zip(_rows((3, width), dtype), _rows((3, width), dtype, seed=2), strict=True)
    for x, residual in both:
        added = residual if sizes.get("has_residual", 0) else None
        out, total = run_norm(run, contracts(name), x, added, weight, bias, rounded)
        summed = add(x, added, rounded)
        by_rms = name == "rms_norm"
        yield out, rms_norm(summed, scale) if by_rms else layer_norm(summed, scale, shift)
        if added is not None:
            yield total, add(x, added, rounded=True)


def _rope(
    name: str, run: Run, contracts: Contracts, sizes: Sizes, dtypes: DTypes
) -> Iterator[Pair]:
    case = RopeCase(
        tokens=3,
        heads=sizes["num_heads"],
        kv_heads=sizes["num_kv_heads"],
        size=sizes["head_size"],
        size_v=sizes["head_size_v"],
        rotary=sizes["rotary_dim"],
        style=sizes["style"],
        norm=bool(sizes["has_norm"]),
        dtype=dtypes["T"],
        table=dtypes["C"],
        weight=dtypes["W"],
    )
    step = RopeStep(case)
    yield from zip(step.answer(run, contracts(name)), step.expected(), strict=True)


def _gated(
    name: str, run: Run, contracts: Contracts, sizes: Sizes, dtypes: DTypes
) -> Iterator[Pair]:
    for x in _rows((3, 2 * sizes["width"]), dtypes["T"]):
        function = sizes["function"]
        yield gated(run, contracts(name), x, function), expected_gated(x, function)


def _soft_cap(
    name: str, run: Run, contracts: Contracts, sizes: Sizes, dtypes: DTypes
) -> Iterator[Pair]:
    cap = np.float32(30)
    for x in _rows((3, sizes["width"]), dtypes["T"]):
        inputs = {"x": x, "cap": tensor(cap, "float32")}
        launch = {"num_rows": 3, "width": sizes["width"]}
        found = contracts(name).run(run, inputs, launch, {"T": dtypes["T"]})["out"]
        yield found, float(cap) * np.tanh(x.numbers() / float(cap))


def _sample(
    name: str, run: Run, contracts: Contracts, sizes: Sizes, dtypes: DTypes
) -> Iterator[Pair]:
    """Each filter alone and all together, and the largest, of ordinary and of like logits."""
    requests = Requests(
        30,
        temperature=[1.0, 3.0, 1.5, 1.0, 0.0, 2.0] * 5,
        top_k=[0, 2, 0, 0, 5, 50] * 5,
        top_p=[1.0, 1.0, 0.8, 1.0, 0.9, 0.95] * 5,
        min_p=[0.0, 0.0, 0.0, 0.05, 0.0, 0.01] * 5,
        step=[*range(29), 2**31 + 5],
    )
    for logits in _rows((30, sizes["vocab_size"]), dtypes["T"]):
        yield scores_of(sample(run, contracts(name), logits, requests), logits, requests)


_TRIALS = {
    DECODE: _attention,
    PREFILL: _attention,
    "rms_norm": _norm,
    "layer_norm": _norm,
    "qk_norm_rope": _rope,
    "gated_activation": _gated,
    "soft_cap": _soft_cap,
    SAMPLE: _sample,
}


def try_out(specialisation: Specialisation, run: Run, contracts: Contracts = contract) -> Verdict:
    """Runs a specialisation on its trial inputs. Never raises for what a kernel does wrong."""
    name = specialisation.kernel
    sizes, dtypes = dict(specialisation.sizes), dict(specialisation.dtypes)
    text = str(specialisation)
    trials = _TRIALS.get(name)
    if trials is None:
        return Verdict(text, FAILS, "there is no trial of this kernel")
    try:
        for found, expected in trials(name, run, contracts, sizes, dtypes):
            difference = contracts(name).difference(found, expected, dtypes["T"])
            if difference is not None:
                return Verdict(text, DIFFERS, difference)
    except Exception as error:  # whatever MLX and Metal's compiler raise: serving goes on
        return Verdict(text, FAILS, f"{type(error).__name__}: {error}"[:2000])
    return Verdict(text, OK)


def this_machine() -> str:
    """The chip, the system and MLX: what a verdict depends on beside the kernel."""
    import mlx.core as mx

    chip = str(mx.device_info().get("device_name", platform.machine()))
    return " ".join((chip, platform.system(), platform.release(), "mlx", version("mlx")))


class Verdicts:
    """Verdicts that were reached before, in a file. A file that cannot be read counts as empty, and
    one that cannot be written is not: the check then runs again next time."""

    def __init__(self, path: Path, machine: str):
        self._path = path
        self._machine = machine
        self._known: dict[str, Verdict] = {}
        try:
            saved = json.loads(path.read_text())
            self._known = {key: Verdict(**fields) for key, fields in saved.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass

    def _key(self, specialisation: Specialisation, contracts: Contracts) -> str:
        digest = hashlib.sha256(self._machine.encode())
        names = [specialisation.kernel]
        if specialisation.kernel == DECODE:
            names.append(REDUCE)
        for kernel in map(contracts, names):
            parts = (json.dumps(kernel.data, sort_keys=True), kernel.body, kernel.header)
            digest.update("\0".join(parts).encode())
        digest.update(repr(specialisation).encode())
        return digest.hexdigest()

    def check(
        self, needed: Iterable[Specialisation], run: Run, contracts: Contracts = contract
    ) -> list[Verdict]:
        """A verdict for each, tried out where none is known; what may not be used is logged."""
        verdicts, is_new = [], False
        for specialisation in needed:
            key = self._key(specialisation, contracts)
            verdict = self._known.get(key)
            if verdict is None:
                verdict = self._known[key] = try_out(specialisation, run, contracts)
                is_new = True
            if not verdict.usable:
                logger.warning(
                    "kernel %s is not used on this machine, its reference is: it %s: %s",
                    verdict.specialisation,
                    verdict.status,
                    verdict.reason,
                )
            verdicts.append(verdict)
        if is_new:
            self._save()
        return verdicts

    def _save(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, prefix=self._path.name, delete=False
            ) as file:
                json.dump({key: asdict(verdict) for key, verdict in self._known.items()}, file)
            os.replace(file.name, self._path)
        except OSError as error:
            logger.warning("the verdicts on kernels cannot be kept in %s: %s", self._path, error)
