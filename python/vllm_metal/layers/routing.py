# SPDX-License-Identifier: Apache-2.0
"""vLLM's fused routing kernels (`csrc/moe/topk_softmax_kernels.cu` and its neighbours) in PyTorch.

They are registered under vLLM's own names as composite operators, so that capture sees the PyTorch
operators that they consist of, and every router of vLLM works unchanged.

Shapes, for t tokens, e experts, k of them chosen: `gating_output` [t, e], `topk_weights` float32
[t, k] and `topk_ids` [t, k] (both written), `e_score_correction_bias` [e], which decides who is
chosen and not with which weight.
"""

import functools
from collections.abc import Callable

import torch

_SCHEMAS = {
    "topk_softmax": "(Tensor(a!) topk_weights, Tensor(b!) topk_indices, "
    "Tensor(c!) token_expert_indices, Tensor gating_output, bool renormalize, Tensor? bias, "
    "Tensor? is_padding=None) -> ()",
    "topk_sigmoid": "(Tensor(a!) topk_weights, Tensor(b!) topk_indices, "
    "Tensor(c!) token_expert_indices, Tensor gating_output, bool renormalize, Tensor? bias, "
    "float routed_scaling_factor, Tensor? is_padding=None) -> ()",
    "topk_softplus_sqrt": "(Tensor(a!) topk_weights, Tensor(b!) topk_indices, "
    "Tensor(c!) token_expert_indices, Tensor gating_output, bool renormalize, "
    "float routed_scaling_factor, Tensor? bias, Tensor? input_ids, Tensor? tid2eid, "
    "Tensor? is_padding=None, Tensor? bias_vl=None, int image_sentinel_lo=0) -> ()",
}


def topk_softmax(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool,
    bias: torch.Tensor | None,
    is_padding: torch.Tensor | None = None,
) -> None:
    """Scores are the softmax of the logits."""
    scores = gating_output.float().softmax(dim=-1)
    _choose(topk_weights, topk_indices, scores, bias, renormalize)


def topk_sigmoid(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool,
    bias: torch.Tensor | None,
    routed_scaling_factor: float,
    is_padding: torch.Tensor | None = None,
) -> None:
    """Scores are the sigmoid of the logits."""
    scores = gating_output.float().sigmoid()
    _choose(topk_weights, topk_indices, scores, bias, renormalize, routed_scaling_factor)


def topk_softplus_sqrt(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool,
    routed_scaling_factor: float,
    bias: torch.Tensor | None,
    input_ids: torch.Tensor | None,
    tid2eid: torch.Tensor | None,
    is_padding: torch.Tensor | None = None,
    bias_vl: torch.Tensor | None = None,
    image_sentinel_lo: int = 0,
) -> None:
    """Scores are sqrt(softplus(logits)); `tid2eid` [vocab_size, k] chooses by token id instead."""
    if bias_vl is not None:
        raise NotImplementedError("routing of image tokens by a bias of their own")
    scores = torch.nn.functional.softplus(gating_output.float()).sqrt()
    ids = None
    if tid2eid is not None:
        assert input_ids is not None
        ids = tid2eid[input_ids.long()].long()
    _choose(topk_weights, topk_indices, scores, bias, renormalize, routed_scaling_factor, ids)


def _choose(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    renormalize: bool,
    scale: float = 1.0,
    ids: torch.Tensor | None = None,
) -> None:
    if ids is None:
        preference = scores if bias is None else scores + bias
        ids = preference.topk(topk_weights.shape[-1], dim=-1).indices
    weights = scores.gather(-1, ids)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    topk_weights.copy_(weights if scale == 1.0 else weights * scale)
    topk_indices.copy_(ids)


_KERNELS: dict[str, Callable[..., None]] = {
    "topk_softmax": topk_softmax,
    "topk_sigmoid": topk_sigmoid,
    "topk_softplus_sqrt": topk_softplus_sqrt,
}
_LIBRARY = torch.library.Library("_moe_C", "FRAGMENT")


@functools.cache
def register() -> None:
    """Define the operators. vLLM comes as pure Python here, so none exists yet."""
    for name, schema in _SCHEMAS.items():
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, _KERNELS[name], "CompositeImplicitAutograd")
