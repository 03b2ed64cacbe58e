# SPDX-License-Identifier: Apache-2.0
"""A vLLM model lowered to MLX: captured, lowered, loaded, and run a step at a time."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    KVCacheConfig,
    KVCacheSpec,
    MambaSpec,
    UniformTypeKVCacheSpecs,
)

from vllm_metal import envs
from vllm_metal._native import core
from vllm_metal.attention import MetalAttentionMetadata
from vllm_metal.capture import TOKEN_TYPE_IDS, IrOps, capture
from vllm_metal.capture.construct import drop_storage
from vllm_metal.islands import run_island
from vllm_metal.plan_cache import PlanCache
from vllm_metal.progress import capturing
from vllm_metal.progress import lowering as lowering_bar
from vllm_metal.recurrent.metadata import MetalStateMetadata
from vllm_metal.run_ahead import SampledTokens
from vllm_metal.sampler import Draw

logger = init_logger("vllm.metal")


@dataclass(frozen=True)
class Lowering:
    """A plan, and the tensors it needs besides the model's parameters.

    `report` is the lowering's, with capture's time and `plan_cache` (`hit`, `miss` or `off`, and
    the entry's path) added. `buffers` are tensors by path, `aliases` tied parameters' other names,
    `layers` what the document says of vLLM's layers.
    """

    plan: Any
    report: dict[str, Any]
    buffers: dict[str, torch.Tensor]
    aliases: dict[str, str]
    layers: dict[str, Any]


def lower(
    model: nn.Module,
    vllm_config: VllmConfig,
    *,
    ir_ops: IrOps = "whole",
    cache: PlanCache | None = None,
    with_stages: bool = False,
    progress: bool | None = None,
) -> Lowering:
    """Capture and lower `model`, weight-free or loaded, or find its plan in `cache`.

    `with_stages` makes a cached plan one that can be dumped, by lowering the cached document;
    `progress` shows bars (None: on a terminal).
    Raises CaptureError for a model that cannot be traced, and ValueError for a node without a
    lowering where VLLM_METAL_FALLBACK=error.
    """
    start = time.perf_counter()
    options = {"refuse_fallback": envs.FALLBACK.value() == "error"}
    key = cache.key(model, vllm_config, ir_ops) if cache else None
    if cache and key and (entry := cache.load(key, model)):
        plan = core.lower(entry.document(), options) if with_stages else entry.plan
        milliseconds = (time.perf_counter() - start) * 1e3
        state = {"state": "hit", "path": str(entry.path)}
        timings = {**dict.fromkeys(entry.report["timings_ms"], 0.0), "cache": milliseconds}
        report = {**entry.report, "timings_ms": timings, "plan_cache": state}
        return Lowering(plan, report, entry.buffers, entry.aliases, entry.layers)
    before = time.perf_counter()
    with capturing(model, progress):
        captured = capture(model, vllm_config, ir_ops=ir_ops)
    seconds = time.perf_counter() - before
    with lowering_bar(progress):
        plan = core.lower(captured.document, options)
    report = json.loads(plan.report_json())
    if cache and key:
        cache.store(key, captured, plan, report, model)
    state = {"state": "miss", "path": str(cache.path(key))} if cache and key else {"state": "off"}
    report["timings_ms"] = {"capture": seconds * 1e3, **report["timings_ms"]}
    report["plan_cache"] = state
    return Lowering(plan, report, captured.buffers, captured.aliases, captured.layers)


def log_report(report: Mapping[str, Any]) -> None:
    """What was compiled, fused and left to PyTorch, in a few lines."""
    timings = dict(report["timings_ms"])
    nodes, regions, fused = report["nodes"], report["regions"], report["fused"]
    cached = " ".join(report["plan_cache"].values())
    captured = f"{report['architecture']}: {nodes['captured']:,} nodes"
    is_hit = "cache" in timings
    if is_hit:
        milliseconds = timings["cache"]
        logger.info("metal: read %s in %.0f ms (plan cache: %s)", captured, milliseconds, cached)
    else:
        seconds = timings.pop("capture") / 1e3
        logger.info("metal: captured %s in %.1f s (plan cache: %s)", captured, seconds, cached)
    logger.info(
        "metal: lowered to %s instructions%s: %d regions from %d unique ones",
        f"{nodes['plan']:,}",
        "" if is_hit else f" in {sum(timings.values()):.0f} ms",
        regions["total"],
        regions["unique"],
    )
    islands = sum(fallback["count"] for fallback in report["fallback"])
    counts = ", ".join(f"{count} {name}" for name, count in sorted(fused.items())) or "nothing"
    logger.info("metal: fused %s; %d islands", counts, islands)
    if islands:
        named = ", ".join(
            f"{island['target']} x{island['count']} ({island['where']})"
            for island in report["fallback"]
        )
        logger.warning(
            "metal: %d operators run in PyTorch on the CPU (slow): %s; %s=error refuses them",
            islands,
            named,
            envs.FALLBACK.name,
        )


class _Step:
    """A step of a model: run when its tokens, its logits or its hidden states are first asked for,
    in one call into the runtime with those."""

    def __init__(self, model: Any, inputs: dict[str, Any], attention: Any) -> None:
        self._model = model
        self._inputs = inputs
        self._attention = attention
        self._hidden: Any = None
        self.num_tokens = len(next(iter(inputs.values())))

    def hidden(self) -> Any:
        """The lazy hidden states of all tokens."""
        if self._hidden is None:
            self._hidden = self._model.step(self._inputs, self._attention)
        return self._hidden

    def logits(self, rows: torch.Tensor | None) -> torch.Tensor:
        """float[num_rows, vocab_size] of these tokens, or of all."""
        if self._hidden is not None:
            return torch.from_dlpack(self._model.logits(self._hidden, rows))
        self._hidden, logits = self._model.step_with_logits(self._inputs, self._attention, rows)
        return torch.utils.dlpack.from_dlpack(logits)

    def sample(
        self, rows: torch.Tensor | None, draws: list[Draw] | None, ahead: bool
    ) -> SampledTokens:
        """Tokens after these tokens; see `core.Model.sample`. Nobody asked for anything before."""
        if self._hidden is not None:
            raise RuntimeError("a step is sampled before its results are read")
        self._hidden, *sampled = self._model.sample(
            self._inputs, self._attention, rows, draws, ahead
        )
        return SampledTokens(*sampled)


class HiddenStates:
    """A step's result, not computed yet: the part of a tensor's interface that vLLM's runner uses
    between forward and sampling. `torch()` computes it."""

    device = torch.device("cpu")

    def __init__(self, step: _Step, rows: torch.Tensor | None = None) -> None:
        """The tokens in `rows`, or all of them."""
        self._step = step
        self._rows = rows

    def __len__(self) -> int:
        return self._step.num_tokens if self._rows is None else len(self._rows)

    @property
    def lazy(self) -> Any:
        hidden = self._step.hidden()
        return hidden if self._rows is None else hidden.rows(self._rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self._step.hidden().shape[1:]))

    def __getitem__(self, rows: slice | torch.Tensor) -> "HiddenStates":
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if (start, stop, step) == (0, len(self), 1):
                return self
            rows = torch.arange(start, stop, step)
        return HiddenStates(self._step, rows if self._rows is None else self._rows[rows])

    def logits(self) -> torch.Tensor:
        return self._step.logits(self._rows)

    def sample(self, draws: list[Draw] | None, ahead: bool) -> SampledTokens:
        return self._step.sample(self._rows, draws, ahead)

    def torch(self) -> torch.Tensor:
        return torch.from_dlpack(self.lazy)


class Logits:
    """Logits of hidden states, not computed yet."""

    def __init__(self, hidden: HiddenStates) -> None:
        self._hidden = hidden
        self._computed: torch.Tensor | None = None

    def torch(self) -> torch.Tensor:
        """float[num_rows, vocab_size]; where the step has not run, it does here."""
        if self._computed is None:
            self._computed = self._hidden.logits()
        return self._computed

    def sample(self, draws: list[Draw] | None, ahead: bool) -> SampledTokens:
        """A token for each row, the most likely ones without `draws`; with `ahead` they are waited
        for later."""
        return self._hidden.sample(draws, ahead)


class _Weights:
    """A model's parameters and buffers by path, handed over one by one.

    MLX's CPU allocator takes no foreign memory, so a weight is copied there. With `release`,
    PyTorch lets go of each as it is handed over: the model is never held twice.
    """

    def __init__(self, model: nn.Module, lowering: Lowering, release: bool) -> None:
        self._parameters = dict(model.named_parameters())
        self._lowering = lowering
        self._release = release

    def __getitem__(self, path: str) -> torch.Tensor:
        path = self._lowering.aliases.get(path, path)
        if path in self._lowering.buffers:
            return self._lowering.buffers[path]
        parameter = self._parameters[path]
        tensor = parameter.detach()
        if self._release:
            with suppress(RuntimeError):  # what something else holds too, such as a view, stays
                drop_storage(parameter)
        return tensor


class LoweredModel:
    """A plan with its weights in MLX, and the KV caches of its layers."""

    def __init__(
        self,
        runtime: Any,
        lowering: Lowering,
        model: nn.Module,
        *,
        release: bool = False,
        kernels: Sequence[Any] = (),
    ) -> None:
        """`release` leaves `model` without weights, unless islands need them; `kernels` are those
        of the plan that may be used."""
        release = release and not lowering.report["fallback"]
        weights = _Weights(model, lowering, release)
        self.plan = lowering.plan
        self._input_names = frozenset(lowering.plan.inputs("backbone"))
        self.report = lowering.report
        self.layers = lowering.layers
        shapes = envs.DECODE_SHAPES.value()
        self._model = runtime.load(lowering.plan, weights, run_island, shapes, list(kernels))
        self._last: _Step | None = None

    def allocate_kv_cache(self, config: KVCacheConfig, kernel_block_sizes: list[int]) -> int:
        """MLX arrays for vLLM's cache layout: layers that vLLM places at the same bytes, with
        blocks of their own, share an array. Returns the bytes of all.

        Raises ValueError for a kind of cache that is not lowered, MemoryError where it does not
        fit.
        """
        sizes: dict[str, tuple[int, int, str]] = {}
        states: dict[Any, list[str]] = {}
        places: dict[Any, list[str]] = {}
        kernel_block_size = {
            name: size
            for group, size in zip(config.kv_cache_groups, kernel_block_sizes, strict=False)
            for name in group.layer_names
        }
        for tensor in config.kv_cache_tensors:
            for index, name in enumerate(tensor.layers):
                spec = _layer_spec(config, name)
                start = tensor.offset + index * tensor.layer_stride
                if isinstance(spec, MambaSpec) and name in self.plan.state_layers:
                    dtypes = tuple(_dtype_name(dtype) for dtype in spec.dtypes)
                    key = (start, spec.shapes, config.num_blocks_of(tensor), dtypes)
                    states.setdefault(key, []).append(name)
                    continue
                if not isinstance(spec, AttentionSpec) or name not in self.plan.layers:
                    raise ValueError(f"layer {name} keeps a {type(spec).__name__}: not lowered yet")
                block_size = kernel_block_size[name]
                num_blocks = config.num_blocks_of(tensor) * (spec.block_size // block_size)
                sizes[name] = (num_blocks, block_size, _dtype_name(spec.dtype))
                page = (spec.num_kv_heads, spec.head_size, spec.page_size_bytes)
                places.setdefault((start, page, sizes[name]), []).append(name)
        shared = [names for names in places.values() if len(names) > 1]
        slots = [(names, num_blocks, dtypes) for (*_, num_blocks, dtypes), names in states.items()]
        return int(self._model.allocate_kv_cache(sizes, shared, slots))

    def allocate_uniform_kv_cache(self, num_blocks: int, block_size: int, dtype: str) -> int:
        """A cache of its own for every layer, for use outside vLLM's engine."""
        size = (num_blocks, block_size, dtype)
        return int(self._model.allocate_kv_cache(dict.fromkeys(self.plan.layers, size)))

    def run(
        self, input_ids: torch.Tensor, positions: torch.Tensor, attention_metadata: Any
    ) -> HiddenStates:
        """As `step`, with one group of layers and its metadata given."""
        attention = dict.fromkeys(self.plan.layers, attention_metadata)
        return self._begin(self._inputs(input_ids, positions), attention)

    def step(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        sampled: tuple[SampledTokens, list[tuple[int, int]]] | None = None,
    ) -> HiddenStates:
        """Hidden states of a step's tokens under vLLM's current forward context.

        input_ids int32[num_tokens], of which those in the places of `sampled` are the last
        step's tokens (`SampledTokens.in_place`); positions int64[num_tokens]; token_type_ids
        int32[num_tokens], or None where all are 0. Nothing is computed yet: where they are used,
        ValueError is raised, before anything runs, for an index out of range.
        """
        attention = _attention(get_forward_context().attn_metadata, input_ids.shape[0])
        inputs = self._inputs(input_ids, positions, token_type_ids)
        if sampled and "input_ids" in inputs:
            tokens, places = sampled
            inputs["input_ids"] = tokens.in_place(input_ids, places)
        return self._begin(inputs, attention)

    def _begin(self, inputs: dict[str, Any], attention: dict[str, Any]) -> HiddenStates:
        if self._last is not None:
            self._last.hidden()  # a step that nobody read still writes its keys and values
        self._last = _Step(self._model, inputs, attention)
        return HiddenStates(self._last)

    def _inputs(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        given = {
            "input_ids": input_ids,
            "positions": positions,
            TOKEN_TYPE_IDS: token_type_ids,
        }
        # Copies: vLLM's runner writes the next step's into the same tensors.
        return {
            name: torch.zeros_like(input_ids) if tensor is None else tensor.clone()
            for name, tensor in given.items()
            if name in self._input_names
        }

    def compute_logits(self, hidden: HiddenStates) -> torch.Tensor:
        """float[num_rows, vocab_size] on the CPU; here the step is computed."""
        return hidden.logits()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _layer_spec(config: KVCacheConfig, name: str) -> KVCacheSpec:
    group = next(group for group in config.kv_cache_groups if name in group.layer_names)
    spec = group.kv_cache_spec
    return spec.kv_cache_specs[name] if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def _attention(metadata: Any, num_tokens: int) -> dict[str, Any]:
    """The runtime's metadata by layer; layers of a KV-cache group share one object."""
    if metadata is None:
        raise ValueError("a step without attention metadata")
    groups: dict[int, Any] = {}
    for group in metadata.values():
        if id(group) not in groups:
            groups[id(group)] = _group(group, num_tokens)
    return {name: groups[id(group)] for name, group in metadata.items()}


def _group(metadata: MetalAttentionMetadata | MetalStateMetadata, num_tokens: int) -> Any:
    if isinstance(metadata, MetalStateMetadata):
        return core.StateMetadata(
            query_start_loc=torch.tensor(metadata.query_start_loc, dtype=torch.int32),
            read_slots=torch.tensor(metadata.read_slots, dtype=torch.int32),
            write_slots=torch.tensor(metadata.write_slots, dtype=torch.int32),
        )
    spans = [
        (request, first, last)
        for request, ranges in metadata.bidirectional_ranges.items()
        for first, last in ranges
    ]
    slots = metadata.slot_mapping[:num_tokens]
    if len(slots) < num_tokens:
        slots = torch.nn.functional.pad(slots, (0, num_tokens - len(slots)), value=-1)
    requests = len(metadata.seq_lens)
    return core.AttentionMetadata(
        block_table=metadata.block_table[:requests],
        slot_mapping=slots,
        query_start_loc=torch.tensor(metadata.query_start_loc[: requests + 1], dtype=torch.int32),
        seq_lens=torch.tensor(metadata.seq_lens, dtype=torch.int32),
        num_actual_tokens=metadata.num_actual_tokens,
        causal=metadata.causal,
        spans=spans,
    )
