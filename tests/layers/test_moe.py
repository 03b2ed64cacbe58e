# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts in PyTorch, against vLLM's own definitions."""

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import activation as vllm_activation
from vllm.model_executor.layers.fused_moe.activation import ApplyMoEActivationConfig, MoEActivation
from vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router import fused_topk_bias
from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import grouped_topk

from vllm_metal import layers
from vllm_metal.layers.moe import activate, expert_matmul

layers.register()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("slots", [1, 3])
def test_expert_matmul(slots: int) -> None:
    x, weight = random(7, slots, 6), random(5, 4, 6, seed=1)
    ids = torch.randint(0, 4, (7, 3), generator=torch.Generator().manual_seed(2))
    expected = torch.einsum("tkm,tknm->tkn", x.expand(7, 3, 6), weight[ids])
    torch.testing.assert_close(expert_matmul(x, weight, ids.int()), expected)


def test_weights_of_unchosen_experts_are_not_read() -> None:
    weight = random(3, 4, 6)
    weight[1] = float("nan")
    assert expert_matmul(random(2, 1, 6), weight, torch.tensor([[0], [2]])).isfinite().all()


NATIVE = {
    MoEActivation.SILU: lambda: vllm_activation.SiluAndMul(),
    MoEActivation.GELU: lambda: vllm_activation.GeluAndMul(),
    MoEActivation.GELU_TANH: lambda: vllm_activation.GeluAndMul("tanh"),
    MoEActivation.SWIGLUOAI: lambda: vllm_activation.SwigluOAIAndMul(),
    MoEActivation.SWIGLUOAI_UNINTERLEAVE: lambda: vllm_activation.SiluAndMulWithClamp(
        1.5, alpha=1.7, beta=1.0
    ),
    MoEActivation.SWIGLUSTEP: lambda: vllm_activation.SwigluStepAndMul(),
    MoEActivation.SITU: lambda: vllm_activation.SituAndMul(0.7, 1.3),
}


@pytest.mark.parametrize("kind", NATIVE)
def test_gated_activations_are_vllms(kind: MoEActivation) -> None:
    oai = kind == MoEActivation.SWIGLUOAI_UNINTERLEAVE
    config = ApplyMoEActivationConfig(
        clamp_limit=1.5 if oai else None,
        alpha=1.7,
        beta=1.0,
        activation_situ_beta=0.7,
        activation_situ_linear_beta=1.3,
    )
    x = 5 * random(3, 2, 16)
    with set_current_vllm_config(VllmConfig()):
        expected = NATIVE[kind]().forward_native(x)
    torch.testing.assert_close(activate(kind, x, config), expected)


def test_clamped_silu_is_vllms() -> None:
    x = 5 * random(3, 16)
    with set_current_vllm_config(VllmConfig()):
        expected = vllm_activation.SiluAndMulWithClamp(2.0).forward_native(x)
    found = activate(MoEActivation.SILU, x, ApplyMoEActivationConfig(clamp_limit=2.0))
    torch.testing.assert_close(found, expected)


def test_every_activation_is_known() -> None:
    for kind in MoEActivation:
        config = ApplyMoEActivationConfig(clamp_limit=1.0, activation_situ_beta=1.0)
        x = random(2, 8)
        assert activate(kind, x, config).shape == (2, 4 if kind.is_gated else 8)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_bias_decides_who_is_chosen_and_not_with_which_weight(
    scoring: str, renormalize: bool
) -> None:
    logits, bias = random(9, 8), random(8, seed=1)
    weights, ids = fused_topk_bias(
        hidden_states=random(9, 4),
        gating_output=logits,
        scoring_func=scoring,
        e_score_correction_bias=bias,
        topk=3,
        renormalize=renormalize,
        routed_scaling_factor=1.5,
    )
    scores = {
        "softmax": lambda: logits.softmax(-1),
        "sigmoid": logits.sigmoid,
        "sqrtsoftplus": lambda: torch.nn.functional.softplus(logits).sqrt(),
    }[scoring]()
    chosen = (scores + bias).topk(3).indices
    expected = scores.gather(1, chosen)
    if renormalize:
        expected = expected / expected.sum(-1, keepdim=True)
    assert ids.tolist() == chosen.tolist()
    torch.testing.assert_close(weights, 1.5 * expected)


def test_one_group_is_plain_routing() -> None:
    logits, bias = random(9, 8), random(8, seed=1)
    common = {"hidden_states": random(9, 4), "gating_output": logits, "topk": 3}
    common |= {"renormalize": True, "scoring_func": "sigmoid", "e_score_correction_bias": bias}
    weights, ids = grouped_topk(num_expert_group=1, topk_group=1, **common)
    plain, plain_ids = fused_topk_bias(**common)
    order, plain_order = ids.argsort(), plain_ids.argsort()
    assert ids.gather(1, order).tolist() == plain_ids.gather(1, plain_order).tolist()
    torch.testing.assert_close(weights.gather(1, order), plain.gather(1, plain_order))
