# SPDX-License-Identifier: Apache-2.0
"""Keys selected by an index, and attention to them, on paged caches in PyTorch: by definition."""

from types import SimpleNamespace

import pytest
import torch

from serving.test_attention import HEADS, QUERY_LENS, SEQ_LENS, assert_matches, batch
from vllm_metal import key_selection
from vllm_metal.attention import MetalAttentionImpl, write_kv_cache

SIZE, INDEX_HEADS, COUNT = 6, 9, 4


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch):
    """Puts a layer and its metadata where vLLM has them in a step."""

    def put(layer, metadata):
        context = SimpleNamespace(
            attn_metadata=None if metadata is None else {"layer": metadata},
            no_compile_layers={"layer": layer},
        )
        monkeypatch.setattr(key_selection, "get_forward_context", lambda: context)

    return put


def test_the_best_keys_are_selected(place):
    *_, metadata = batch()
    cache = torch.full((len(SEQ_LENS) * 4 + 1, 4, SIZE), torch.nan)
    keys = [torch.randn(n, 1, SIZE) for n in SEQ_LENS]
    for i, (query_len, seq_len) in enumerate(zip(QUERY_LENS, SEQ_LENS, strict=True)):
        old = torch.arange(seq_len - query_len)
        slots = metadata.block_table[i][old // 4].long() * 4 + old % 4
        write_kv_cache(cache.unsqueeze(1), keys[i][old], keys[i][old][..., :0], slots)
    new = torch.cat([k[-n:] for k, n in zip(keys, QUERY_LENS, strict=True)])
    q = torch.randn(len(new), INDEX_HEADS, SIZE)
    weights = torch.randn(len(new), INDEX_HEADS)
    place(SimpleNamespace(kv_cache=cache), metadata)
    found = torch.ops.vllm_metal.select_keys(q, new, weights, COUNT, "layer")
    assert found.dtype == torch.int32 and found.shape == (len(new), COUNT)
    row = 0
    for i, (query_len, seq_len) in enumerate(zip(QUERY_LENS, SEQ_LENS, strict=True)):
        for position in range(seq_len - query_len, seq_len):
            scores = [
                sum(
                    weights[row, h] * max(0.0, q[row, h] @ keys[i][s, 0])
                    for h in range(INDEX_HEADS)
                )
                for s in range(position + 1)
            ]
            best = sorted(range(position + 1), key=lambda s: -scores[s])[:COUNT]
            assert sorted(found[row].tolist()) == sorted(best + [-1] * (COUNT - len(best)))
            row += 1


def test_attention_to_selected_keys(place):
    tensors = batch()
    query, key, value, _, _, cache, metadata = tensors
    torch.manual_seed(1)
    selected = torch.full((len(query), COUNT), -1, dtype=torch.int32)
    named = []
    for i, (query_len, seq_len) in enumerate(zip(QUERY_LENS, SEQ_LENS, strict=True)):
        named.append({})
        for t in range(query_len):
            position = seq_len - query_len + t
            some = torch.randperm(position + 1)[:COUNT].int()
            selected[metadata.query_start_loc[i] + t, : len(some)] = some
            named[i][position] = set(some.tolist())
    layer = SimpleNamespace(impl=MetalAttentionImpl(HEADS, SIZE, 0.4, 2), kv_cache=cache)
    place(layer, metadata)
    found = torch.ops.vllm_metal.sparse_attention(query, selected, key, value, "layer")
    visible = [lambda q, k, of=of: k in of[q] for of in named]
    assert_matches(found, tensors, {}, visible)


def test_a_run_without_requests_selects_nothing(place):
    place(None, None)
    q, k, weights = torch.randn(3, 2, SIZE), torch.randn(3, 1, SIZE), torch.randn(3, 2)
    selected = torch.ops.vllm_metal.select_keys(q, k, weights, COUNT, "layer")
    assert selected.tolist() == [[-1] * COUNT] * 3
    value = torch.randn(3, 1, 5)
    attended = torch.ops.vllm_metal.sparse_attention(q, selected, k, value, "layer")
    assert attended.tolist() == torch.zeros(3, 2, 5).tolist()
