# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: vLLM's fused-MoE method in PyTorch, with one operator for the product of
tokens with the weights of their experts. Routing, activations, shared experts and the weighted sum
are ordinary operators, which capture sees.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.fused_moe.activation import ApplyMoEActivationConfig, MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.runner import moe_runner
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)


@torch.library.custom_op("vllm_metal::expert_matmul", mutates_args=())
def expert_matmul(x: torch.Tensor, weight: torch.Tensor, expert_ids: torch.Tensor) -> torch.Tensor:
    """`out[t, i] = weight[expert_ids[t, i]] @ x[t, i]`.

    x [t, k or 1, m], weight [e, n, m], expert_ids int [t, k] -> [t, k, n]. Weights of experts that
    nothing is routed to are not read.
    """
    tokens, chosen = expert_ids.shape
    rows = x.expand(tokens, chosen, x.shape[-1]).reshape(tokens * chosen, -1)
    ids = expert_ids.reshape(-1)
    out = x.new_empty(tokens * chosen, weight.shape[1])
    for expert in ids.unique().tolist():
        mine = (ids == expert).nonzero()[:, 0]
        out[mine] = rows[mine] @ weight[expert].T
    return out.view(tokens, chosen, -1)


@expert_matmul.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, expert_ids: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*expert_ids.shape, weight.shape[1]))


def activate(
    activation: MoEActivation, x: torch.Tensor, config: ApplyMoEActivationConfig
) -> torch.Tensor:
    """vLLM's `apply_moe_activation`: x [.., 2n], gates before ups, or x [.., n] where there is no
    gate -> [.., n]."""
    return _ACTIVATIONS[activation](x, config)


def _gated(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor, config: ApplyMoEActivationConfig) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        if config.clamp_limit is not None:
            gate, up = _clamp(gate, up, config.clamp_limit)
        return function(gate) * up

    return run


def _plain(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, config: function(x)


def _clamp(gate: torch.Tensor, up: torch.Tensor, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    return gate.clamp(max=limit), up.clamp(min=-limit, max=limit)


def _swiglu_oai(x: torch.Tensor, config: ApplyMoEActivationConfig) -> torch.Tensor:
    # gates and ups alternate; the constants are those of vLLM's kernel
    gate, up = _clamp(x[..., ::2], x[..., 1::2], 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def _swiglu_oai_packed(x: torch.Tensor, config: ApplyMoEActivationConfig) -> torch.Tensor:
    assert config.clamp_limit is not None
    gate, up = x.chunk(2, dim=-1)
    gate, up = _clamp(gate, up, config.clamp_limit)
    return gate * torch.sigmoid(config.alpha * gate) * (up + config.beta)


def _swiglu_step(x: torch.Tensor, config: ApplyMoEActivationConfig) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).clamp(max=7.0) * up.clamp(min=-7.0, max=7.0)


def _situ(x: torch.Tensor, config: ApplyMoEActivationConfig) -> torch.Tensor:
    beta, linear_beta = config.activation_situ_beta, config.activation_situ_linear_beta
    assert beta is not None
    gate, up = x.float().chunk(2, dim=-1)
    gate = beta * torch.tanh(gate / beta) * torch.sigmoid(gate)
    if linear_beta is not None and linear_beta > 0:
        up = linear_beta * torch.tanh(up / linear_beta)
    return (gate * up).to(x.dtype)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


_ACTIVATIONS: dict[MoEActivation, Callable[..., torch.Tensor]] = {
    MoEActivation.SILU: _gated(F.silu),
    MoEActivation.GELU: _gated(F.gelu),
    MoEActivation.GELU_TANH: _gated(_gelu_tanh),
    MoEActivation.RELU2: _gated(_relu2),
    MoEActivation.SWIGLUOAI: _swiglu_oai,
    MoEActivation.SWIGLUOAI_UNINTERLEAVE: _swiglu_oai_packed,
    MoEActivation.SWIGLUSTEP: _swiglu_step,
    MoEActivation.SITU: _situ,
    MoEActivation.SILU_NO_MUL: _plain(F.silu),
    MoEActivation.GELU_NO_MUL: _plain(F.gelu),
    MoEActivation.GELU_TANH_NO_MUL: _plain(_gelu_tanh),
    MoEActivation.RELU2_NO_MUL: _plain(_relu2),
}


class MetalFusedMoEMethod(UnquantizedFusedMoEMethod):
    """Unquantised experts; weights stay as vLLM loads them: w13 [e, 2n or n, m], w2 [e, m, n]."""

    def __init__(self, moe: FusedMoEConfig) -> None:
        # Not vLLM's own, which selects a kernel for a CUDA device.
        FusedMoEMethodBase.__init__(self, moe)
        self.unquantized_backend = UnquantizedMoeBackend.OOT
        self.supports_pre_processed_weights = True
        self._activation_config: ApplyMoEActivationConfig | None = None

    @property
    def is_monolithic(self) -> bool:
        return False

    def process_weights_after_loading(self, layer: Any) -> None:
        """The loaded layout is the one that is computed with."""

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any = None,
        shared_experts_input: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [t, m], topk_weights float32 [t, k], topk_ids [t, k] -> [t, m] in x's dtype."""
        if self._activation_config is None:
            self._activation_config = ApplyMoEActivationConfig.from_configs(
                self.moe, self.get_fused_moe_quant_config(layer)
            )
        rows = x.unsqueeze(1)
        if layer.apply_router_weight_on_input:
            rows = rows * topk_weights.unsqueeze(-1).to(x.dtype)
        hidden = expert_matmul(rows, layer.w13_weight, topk_ids)
        if self.moe.has_bias:
            hidden = hidden + layer.w13_bias[topk_ids.long()]
        hidden = activate(layer.activation, hidden, self._activation_config)
        out = expert_matmul(hidden, layer.w2_weight, topk_ids)
        if self.moe.has_bias:
            out = out + layer.w2_bias[topk_ids.long()]
        if layer.apply_router_weight_on_input:
            return out.sum(dim=1)
        return (out.float() * topk_weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)


class MetalMoERunner(moe_runner.MoERunner):
    """vLLM's runner without the opaque operator around it: capture sees the router, the shared
    experts and the gate as what they are."""

    def _select_forward(self) -> Callable[..., Any]:
        if self._shared_experts is None:
            return moe_runner._moe_forward
        return moe_runner._moe_forward_shared

    def _maybe_fuse_gate_weights(self) -> None:
        # Made anew each time: what is computed while a model is captured must not outlive that.
        self._combined_gate_weight = None
        super()._maybe_fuse_gate_weights()


@functools.cache
def register() -> None:
    """Make vLLM build these."""
    UnquantizedFusedMoEMethod.register_oot(MetalFusedMoEMethod)
    moe_runner.MoERunner.register_oot(MetalMoERunner)
    _allow_plain_experts()


def _allow_plain_experts() -> None:
    """Experts without a gate: vLLM refuses them on platforms that it does not know."""
    check = FusedMoEConfig.__post_init__

    def post_init(self: FusedMoEConfig) -> None:
        try:
            check(self)
        except NotImplementedError:
            if self.is_act_and_mul:
                raise

    FusedMoEConfig.__post_init__ = post_init  # type: ignore[method-assign]
