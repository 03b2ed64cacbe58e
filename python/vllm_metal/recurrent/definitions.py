# SPDX-License-Identifier: Apache-2.0
"""The recurrences of one request, token by token and in float32.

Each takes the operands of the request's tokens `t` and its state, and gives the results and the
state after them. `lowering::ir::Recurrence` has the same list.
"""

import torch


def causal_conv(
    x: torch.Tensor, weight: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depthwise causal convolution: x [t, c], weight [c, n], state [n - 1, c], the last inputs."""
    inputs = torch.cat([state, x])
    windows = inputs.unfold(0, weight.shape[1], 1)  # [t, c, n]
    return (windows * weight).sum(-1), inputs[x.shape[0] :]


def linear_scan(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`S = e^decay S + v k^T, y = S q` (Mamba-2, arXiv:2405.21060): q, k [t, g, n], v [t, h, p],
    decay [t, h], state [h, p, n]."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    results = []
    for token in range(v.shape[0]):
        state = decay[token].exp()[:, None, None] * state
        state = state + v[token, :, :, None] * k[token, :, None, :]
        results.append(torch.einsum("hpn,hn->hp", state, q[token]))
    return torch.stack(results), state


def delta_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`S = S diag(e^decay), S = S + beta (v - S k) k^T, y = S q` (gated delta rule,
    arXiv:2412.06464; Kimi Delta Attention, arXiv:2510.26692): as `linear_scan`, with decay [t, h]
    or [t, h, n] and beta [t, h]."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    decay = decay if decay.dim() == 3 else decay[..., None]
    results = []
    for token in range(v.shape[0]):
        state = state * decay[token].exp()[:, None, :]
        seen = torch.einsum("hpn,hn->hp", state, k[token])
        change = beta[token][:, None] * (v[token] - seen)
        state = state + change[:, :, None] * k[token][:, None, :]
        results.append(torch.einsum("hpn,hn->hp", state, q[token]))
    return torch.stack(results), state


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`S = e^(dt a) S + dt x b^T, y = S c` (Mamba, arXiv:2312.00752): x, dt [t, d], a [d, n], b, c
    [t, n], state [d, n]."""
    results = []
    for token in range(x.shape[0]):
        step = dt[token][:, None]
        state = (step * a).exp() * state + step * x[token][:, None] * b[token][None, :]
        results.append(state @ c[token])
    return torch.stack(results), state
