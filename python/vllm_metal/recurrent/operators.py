# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.vllm_metal.*`: a recurrence over a step's requests, on a layer's state of an index.

Results are float32. In capture the operators are opaque; run by PyTorch they carry out
`definitions` on the layer's `kv_cache`.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.forward_context import get_forward_context

from vllm_metal.recurrent import definitions
from vllm_metal.recurrent.metadata import MetalStateMetadata

_library = torch.library.Library("vllm_metal", "FRAGMENT")


def _run(
    define: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    operands: tuple[torch.Tensor, ...],
    whole: tuple[int, ...],
    layer: str,
    state: int,
    shape: tuple[int, ...],
    result: torch.Tensor,
) -> torch.Tensor:
    """Runs `define` for each request. `whole` are the operands that are no tokens', `shape` is that
    of a request's state. vLLM's cache holds as many elements, in an order of its own."""
    context = get_forward_context()
    metadata = context.attn_metadata
    if metadata is None:  # vLLM's profiling run
        return result
    requests: MetalStateMetadata = metadata[layer]
    cache = context.no_compile_layers[layer].kv_cache[state]
    starts = requests.query_start_loc
    for request, (read, write) in enumerate(
        zip(requests.read_slots, requests.write_slots, strict=True)
    ):
        rows = slice(starts[request], starts[request + 1])
        if rows.start == rows.stop:
            continue
        before = torch.zeros(shape) if read < 0 else cache[read].float().reshape(shape)
        own = [
            operand.float() if index in whole else operand[rows].float()
            for index, operand in enumerate(operands)
        ]
        result[rows], after = define(*own, before)
        cache[write] = after.reshape(cache.shape[1:]).to(cache.dtype)
    return result


def _like(x: torch.Tensor) -> torch.Tensor:
    return x.new_zeros(x.shape, dtype=torch.float32)


def causal_conv(x: torch.Tensor, weight: torch.Tensor, layer: str, state: int) -> torch.Tensor:
    shape = (weight.shape[1] - 1, weight.shape[0])
    return _run(definitions.causal_conv, (x, weight), (1,), layer, state, shape, _like(x))


def linear_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    layer: str,
    state: int,
) -> torch.Tensor:
    shape = (*v.shape[1:], k.shape[-1])
    operands = (q, k, v, decay)
    return _run(definitions.linear_scan, operands, (), layer, state, shape, _like(v))


def delta_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    layer: str,
    state: int,
) -> torch.Tensor:
    shape = (*v.shape[1:], k.shape[-1])
    operands = (q, k, v, decay, beta)
    return _run(definitions.delta_scan, operands, (), layer, state, shape, _like(v))


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    layer: str,
    state: int,
) -> torch.Tensor:
    operands = (x, dt, a, b, c)
    shape = tuple(a.shape)
    return _run(definitions.selective_scan, operands, (2,), layer, state, shape, _like(x))


def _register(function: Callable[..., torch.Tensor], operands: str, result: int) -> None:
    """Defines the operator; `result` is the operand whose shape the result has."""
    tensors = ", ".join(f"Tensor {name}" for name in operands.split())
    name = function.__name__
    _library.define(f"{name}({tensors}, str layer, int state) -> Tensor")
    _library.impl(name, function, "CPU")

    def fake(*arguments: Any) -> torch.Tensor:
        like: torch.Tensor = arguments[result]
        return like.new_empty(like.shape, dtype=torch.float32)

    torch.library.register_fake(f"vllm_metal::{name}", fake, lib=_library)


_register(causal_conv, "x weight", 0)
_register(linear_scan, "q k v decay", 2)
_register(delta_scan, "q k v decay beta", 2)
_register(selective_scan, "x dt a b c", 0)
