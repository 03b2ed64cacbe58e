# SPDX-License-Identifier: Apache-2.0
"""Captures a vLLM model: backbone and logits head, each a graph over a symbolic row count."""

import inspect
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import vllm.ir
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context

from vllm_metal.capture.errors import CaptureError
from vllm_metal.capture.layers import describe_layers, layer_parameters
from vllm_metal.capture.symbols import TOKEN_SYMBOL, TRACE_TOKENS
from vllm_metal.capture.trace import Trace
from vllm_metal.fx import Node, document_bytes, graph_json, live_nodes

IrOps = Literal["whole", "decomposed"]

TOKEN_TYPE_IDS = "token_type_ids"
"""The argument of models that read pairs of texts: which of the two a token is of."""


def gives_logits(model: nn.Module, vllm_config: VllmConfig) -> bool:
    """Whether the model has a head. One that vLLM adapts to pooling keeps `compute_logits`, and
    not the layers that it calls."""
    pools = vllm_config.model_config.runner_type == "pooling"
    return hasattr(model, "compute_logits") and not pools


@dataclass
class Captured:
    """A captured model.

    ``document`` is the FX document; ``buffers`` and ``parameters`` are the tensors it names, by
    path: buffers (and lifted constants) with their values, parameters as (dtype, shape).
    ``aliases`` maps a tied parameter's other paths to the one in use. ``timings`` are seconds per
    stage.
    """

    document: bytes
    buffers: dict[str, torch.Tensor]
    parameters: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    aliases: dict[str, str]
    layers: dict[str, dict[str, Any]]
    timings: dict[str, float] = field(default_factory=dict)


def capture(
    model: nn.Module,
    vllm_config: VllmConfig,
    *,
    ir_ops: IrOps = "whole",
    trace_tokens: int = TRACE_TOKENS,
) -> Captured:
    """Capture ``model``, built by ``construct`` or loaded with real weights; it is left unchanged.

    ``ir_ops`` keeps vLLM's IR operators (``vllm_ir.rms_norm`` ...) whole or takes their reference
    implementation apart. ``trace_tokens`` is the count the trace pretends to have; no document
    depends on it. Raises ``CaptureError`` with the module and source line of what stops it.
    """
    return _Capture(model, vllm_config, ir_ops, trace_tokens).run()


class _Capture:
    def __init__(
        self, model: nn.Module, vllm_config: VllmConfig, ir_ops: IrOps, trace_tokens: int
    ) -> None:
        self.model = model
        self.vllm_config = vllm_config
        self.ir_ops = ir_ops
        self.trace_tokens = trace_tokens
        self.layers = describe_layers(model, vllm_config)
        self.aliases = _aliases(model)
        self.buffers: dict[str, torch.Tensor] = {}
        hidden = layer_parameters(self.layers)
        self.parameters = {p: _shape(t) for p, t in model.named_parameters() if p in hidden}

    def run(self) -> Captured:
        start = time.perf_counter()
        backbone, hidden = self._graph("backbone", "num_tokens", self._run_backbone)
        middle = time.perf_counter()
        graphs = [backbone]
        if gives_logits(self.model, self.vllm_config):
            logits, _ = self._graph(
                "logits", "num_rows", lambda trace, rows: self._run_logits(trace, rows, hidden)
            )
            graphs.append(logits)
        end = time.perf_counter()
        config = self.vllm_config.model_config
        document = document_bytes(
            type(self.model).__name__, config.dtype, self.layers, self.aliases, graphs
        )
        return Captured(
            document=document,
            buffers=self.buffers,
            parameters=self.parameters,
            aliases=self.aliases,
            layers=self.layers,
            timings={
                "backbone": middle - start,
                "logits": end - middle,
                "document": time.perf_counter() - end,
            },
        )

    def _graph(self, name: str, role: str, run: Any) -> tuple[dict[str, Any], Any]:
        trace = Trace(self.model, self.trace_tokens)
        with (
            _fake_weights(self.model, trace) as originals,
            self._surroundings(),
            trace.recording(),
        ):
            output = run(trace, trace.count)
        trace.finish(output)
        nodes = live_nodes(trace.nodes)
        check_no_burnt_size(nodes, self.trace_tokens)
        self._collect(nodes, {**originals, **trace.constants})
        symbols = {TOKEN_SYMBOL: role}
        return graph_json(name, symbols, nodes, trace.names, frozenset(self.layers)), output

    def _run_backbone(self, trace: Trace, tokens: torch.SymInt) -> Any:
        input_ids = trace.input("input_ids", (tokens,), torch.int32)
        shape = (3, tokens) if self.vllm_config.model_config.uses_mrope else (tokens,)
        positions = trace.input("positions", shape, torch.int64)
        further = {}
        if TOKEN_TYPE_IDS in inspect.signature(self.model.forward).parameters:
            further[TOKEN_TYPE_IDS] = trace.input(TOKEN_TYPE_IDS, (tokens,), torch.int32)
        # By keyword, as vLLM's runner calls it: the order differs between models.
        return self.model(
            input_ids=input_ids,
            positions=positions,
            intermediate_tensors=None,
            inputs_embeds=None,
            **further,
        )

    def _run_logits(self, trace: Trace, rows: torch.SymInt, hidden: Any) -> Any:
        if not isinstance(hidden, torch.Tensor):
            raise CaptureError("the model's forward gives several values, compute_logits takes one")
        states = trace.input("hidden_states", (rows, *hidden.shape[1:]), hidden.dtype)
        return self.model.compute_logits(states)

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What vLLM sets up around a forward pass; nothing compiled, IR operators as asked."""
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(vllm.ir.enable_torch_wrap(self.ir_ops == "whole"))
            for op in vllm.ir.op.IrOp.registry.values():
                stack.enter_context(op.set_priority(["native"]))
            stack.enter_context(
                set_forward_context({}, self.vllm_config, num_tokens=self.trace_tokens)
            )
            yield

    def _collect(self, nodes: list[Node], tensors: dict[str, torch.Tensor]) -> None:
        for node in nodes:
            if node.role == "parameter":
                self.parameters[node.path] = _shape(tensors[node.path])
            elif node.role == "buffer":
                self.buffers[node.path] = tensors[node.path].detach()


def check_no_burnt_size(nodes: list[Node], trace_tokens: int) -> None:
    """A multiple of the trace's token count among the arguments was a symbolic size once."""
    for node in nodes:
        for leaf in node.arguments():
            if isinstance(leaf, (int, float)) and leaf and leaf % trace_tokens == 0:
                raise CaptureError(
                    f"module {node.module} at {node.source}: {node.target} holds {leaf}, the "
                    "number of tokens of the trace, as a constant: the model turned a symbolic "
                    "size into a number"
                )


def _shape(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def _aliases(model: nn.Module) -> dict[str, str]:
    first = {id(p): path for path, p in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {path: first[id(p)] for path, p in every if first[id(p)] != path}


@contextmanager
def _fake_weights(model: nn.Module, trace: Trace) -> Iterator[dict[str, torch.Tensor]]:
    """Put fake tensors in the place of all parameters and buffers; gives the real ones by path."""
    originals: dict[str, torch.Tensor] = {}
    fakes: dict[int, torch.Tensor] = {}
    restore: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for prefix, module in model.named_modules():
            for role, table in (("parameter", module._parameters), ("buffer", module._buffers)):
                restore.append((table, dict(table)))
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in fakes:
                        path = f"{prefix}.{name}" if prefix else name
                        originals[path] = tensor
                        fakes[id(tensor)] = trace.weight(role, path, tensor)
                    table[name] = fakes[id(tensor)]  # type: ignore[assignment]
        yield originals
    finally:
        for table, saved in restore:
            table.clear()
            table.update(saved)
