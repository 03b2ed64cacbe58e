# SPDX-License-Identifier: Apache-2.0
"""Functions in the place of Triton kernels, against what they are defined as."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from vllm_metal import patches
from vllm_metal.triton_placeholder import jit


def test_function_is_replaced_where_it_was_imported() -> None:
    home, user = ModuleType("fused_home"), ModuleType("fused_user")
    home.double = user.renamed = lambda x: 2 * x  # type: ignore[attr-defined]
    sys.modules |= {"fused_home": home, "fused_user": user}
    try:
        patches.replaces_function(home, "double")(lambda x: x + x + 1)
        assert home.double(1) == user.renamed(1) == 3
        with pytest.raises(AttributeError):
            patches.replaces_function(home, "triple")
    finally:
        del sys.modules["fused_home"], sys.modules["fused_user"]


def test_kernel_without_a_form_says_so() -> None:
    @jit(do_not_specialize=["size"])
    def scale_kernel(X, size) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(NotImplementedError, match="scale_kernel is a Triton kernel"):
        scale_kernel[(1,)](torch.ones(1), 1)


@pytest.mark.parametrize("gate_first", [False, True])
def test_group_norm(gate_first: bool) -> None:
    from vllm_metal.fused.group_norm import layer_norm

    x, z, weight = torch.randn(5, 12), torch.randn(5, 12), torch.randn(12)
    y, _, _ = layer_norm(
        x,
        weight,
        None,
        1e-5,
        z=z,
        group_size=4,
        norm_before_gate=not gate_first,
        is_rms_norm=True,
        activation="sigmoid",
    )
    gate = torch.sigmoid(z)
    before = x * gate if gate_first else x
    expected = F.rms_norm(before.unflatten(-1, (3, 4)), (4,), eps=1e-5).flatten(1) * weight
    torch.testing.assert_close(y, expected if gate_first else expected * gate)


def test_decay_is_negative_and_bounded() -> None:
    from vllm_metal.fused.delta_gate import kda_gate

    g, a, bias = torch.randn(6, 8) * 10, torch.randn(1, 1, 2, 1), torch.randn(8)
    decay = kda_gate(g, a, 4, bias, lower_bound=-5.0)
    assert decay.shape == (6, 2, 4)
    assert decay.min() >= -5.0 and decay.max() <= 0.0
    free = kda_gate(g, a, 4, bias)
    expected = -a.exp().view(2, 1) * F.softplus((g + bias).view(6, 2, 4))
    torch.testing.assert_close(free, expected)


@pytest.mark.parametrize("neox", [False, True])
def test_rotated_queries_keep_their_norm(neox: bool) -> None:
    from vllm_metal.fused.attention_inputs import qk_norm_rope

    angles = torch.arange(10.0)[:, None] * torch.tensor([1.0, 0.1])
    table = torch.cat([angles.cos(), angles.sin()], dim=-1)
    weight = torch.ones(8)
    q, k = qk_norm_rope(
        torch.randn(3, 16), torch.randn(3, 8), weight, weight, 0.0, torch.tensor([0, 4, 9]), table,
        8, 4, neox,
    )  # fmt: skip
    torch.testing.assert_close(q.view(3, 2, 8).square().mean(-1), torch.ones(3, 2))
    torch.testing.assert_close(k.view(3, 1, 8).square().mean(-1), torch.ones(3, 1))


def test_residual_norm() -> None:
    from vllm_metal.fused.residual_norm import norm_residual_norm

    x, residual = torch.randn(4, 8), torch.randn(4, 8)
    a, b = torch.rand(8), torch.rand(8)
    hidden, y = norm_residual_norm(x, residual, a, 1e-5, b, 1e-6, (0.6, 0.8))
    expected = 0.6 * F.rms_norm(x, (8,), a, 1e-5) + 0.8 * residual
    torch.testing.assert_close(hidden, expected)
    assert y is not None
    torch.testing.assert_close(y, F.rms_norm(expected, (8,), b, 1e-6))
    assert norm_residual_norm(x, residual, a, 1e-5, None, None, (0.6, 0.8))[1] is None


def test_attention_residual() -> None:
    from vllm_metal.fused.attention_residual import attention_residual

    prefix, delta, blocks = torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 4, 8)
    norm, qk, out = torch.rand(8), torch.randn(8), torch.rand(8)
    total, before = prefix + delta, blocks.clone()
    y = attention_residual(prefix, delta, blocks, norm, qk, out, 2, 2, 1e-5, 1e-6)
    sources = torch.stack([before[:, 0], before[:, 1], total], dim=1)
    weights = (F.rms_norm(sources, (8,), norm, 1e-5) @ qk).softmax(-1)
    mixed = torch.einsum("ts,tsn->tn", weights, sources)
    torch.testing.assert_close(y, F.rms_norm(mixed, (8,), out, 1e-6))
    torch.testing.assert_close(prefix, total)
    torch.testing.assert_close(blocks[:, 2], total)
    assert torch.equal(blocks[:, [0, 1, 3]], before[:, [0, 1, 3]])


def test_expert_values() -> None:
    from vllm_metal.fused.expert_values import expert_values

    x, experts = torch.randn(5, 4), torch.randn(3, 6, 4)
    weights, ids = torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    expected = torch.zeros(5, 6)
    for token in range(5):
        for weight, expert in zip(weights[token], ids[token], strict=True):
            expected[token] += weight * F.silu(experts[expert] @ x[token])
    torch.testing.assert_close(expert_values(None, x, experts, weights, ids), expected)
