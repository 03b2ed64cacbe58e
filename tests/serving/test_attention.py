# SPDX-License-Identifier: Apache-2.0
"""The PyTorch attention against one query, one head and one key at a time, in float64."""

import math
from types import SimpleNamespace

import pytest
import torch

from vllm_metal.attention import (
    MetalAttentionImpl,
    MetalAttentionMetadata,
    read_kv_cache,
    write_kv_cache,
)

BLOCK_SIZE = 4
HEADS, KV_HEADS = 4, 2
QUERY_LENS, SEQ_LENS = (1, 5, 1, 7), (9, 5, 1, 13)
"""Decodes, a whole prompt and the second chunk of one, in one batch."""


def reference(query, keys, values, first_query, *, scale, visible, cap, slopes, sqrt, sinks):
    """query [T, H, D], keys [L, KV, D], values [L, KV, Dv] -> float64[T, H, Dv], by definition."""
    output = torch.zeros(query.shape[0], HEADS, values.shape[-1], dtype=torch.float64)
    for t in range(query.shape[0]):
        position = first_query + t
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            scores = {}
            for key in range(keys.shape[0]):
                if not visible(position, key):
                    continue
                score = float(query[t, head].double() @ keys[key, kv_head].double()) * scale
                if cap:
                    score = cap * math.tanh(score / cap)
                if slopes:
                    distance = abs(position - key)
                    score -= slopes[head] * (math.sqrt(distance) if sqrt else distance)
                scores[key] = score
            total = sum(math.exp(score) for score in scores.values())
            if sinks is not None:
                total += math.exp(sinks[head])
            for key, score in scores.items():
                output[t, head] += math.exp(score) / total * values[key, kv_head].double()
    return output


def batch(dtype=torch.float32, head_size=6, head_size_v=6):
    """Query, key and value rows of the batch, what each request has in its cache before, the cache
    with those blocks in random places (the rest NaN) and the metadata."""
    torch.manual_seed(0)
    blocks_per_request = 4
    order = torch.randperm(len(SEQ_LENS) * blocks_per_request) + 1
    table = order.view(len(SEQ_LENS), blocks_per_request).int()
    cache = torch.full((len(order) + 1, KV_HEADS, BLOCK_SIZE, head_size + head_size_v), math.nan)
    cache = cache.to(dtype)
    keys = [torch.randn(n, KV_HEADS, head_size).to(dtype) for n in SEQ_LENS]
    values = [torch.randn(n, KV_HEADS, head_size_v).to(dtype) for n in SEQ_LENS]
    slots, new_keys, new_values, starts = [], [], [], [0]
    for i, (query_len, seq_len) in enumerate(zip(QUERY_LENS, SEQ_LENS, strict=True)):
        positions = torch.arange(seq_len)
        all_slots = table[i][positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        old = seq_len - query_len
        write_kv_cache(cache, keys[i][:old], values[i][:old], all_slots[:old].long())
        slots.append(all_slots[old:].long())
        new_keys.append(keys[i][old:])
        new_values.append(values[i][old:])
        starts.append(starts[-1] + query_len)
    query = torch.randn(starts[-1], HEADS, head_size).to(dtype)
    metadata = MetalAttentionMetadata(
        query_start_loc=starts,
        seq_lens=list(SEQ_LENS),
        block_table=table,
        slot_mapping=torch.cat(slots),
        num_actual_tokens=starts[-1],
        causal=[True] * len(SEQ_LENS),
        bidirectional_ranges={},
    )
    return query, torch.cat(new_keys), torch.cat(new_values), keys, values, cache, metadata


def causal(position, key):
    return key <= position


OPTIONS = {
    "plain": ({}, causal),
    "sliding window": ({"sliding_window": 3}, lambda q, k: k <= q and q - k < 3),
    "soft cap": ({"logits_soft_cap": 0.8}, causal),
    "no soft cap, written 0": ({"logits_soft_cap": 0.0}, causal),
    "alibi": ({"alibi_slopes": [0.5, 0.25, 0.125, 0.0625]}, causal),
    "alibi sqrt": ({"alibi_slopes": [0.5, 0.25, 0.1, 0.05], "use_alibi_sqrt": True}, causal),
    "sinks": ({"sinks": torch.tensor([0.3, -1.0, 2.0, 0.0])}, causal),
    "all": (
        {
            "sliding_window": 6,
            "logits_soft_cap": 2.0,
            "alibi_slopes": [0.5, 0.25, 0.125, 0.0625],
            "sinks": torch.tensor([0.3, -1.0, 2.0, 0.0]),
        },
        lambda q, k: k <= q and q - k < 6,
    ),
}


def run(options, tensors, layer=None):
    query, key, value, _, values, cache, metadata = tensors
    impl = MetalAttentionImpl(HEADS, query.shape[-1], 0.4, KV_HEADS, **options)
    output = torch.full((query.shape[0], HEADS, values[0].shape[-1]), math.nan, dtype=query.dtype)
    impl.forward(layer or SimpleNamespace(), query, key, value, cache, metadata, output)
    return output


def assert_matches(output, tensors, options, visible, tolerance=1e-5):
    query, _, _, keys, values, _, metadata = tensors
    for i, seq_len in enumerate(SEQ_LENS):
        rows = slice(metadata.query_start_loc[i], metadata.query_start_loc[i + 1])
        expected = reference(
            query[rows],
            keys[i],
            values[i],
            seq_len - QUERY_LENS[i],
            scale=0.4,
            visible=visible if callable(visible) else visible[i],
            cap=options.get("logits_soft_cap"),
            slopes=options.get("alibi_slopes"),
            sqrt=options.get("use_alibi_sqrt", False),
            sinks=options.get("sinks"),
        )
        assert (output[rows].double() - expected).abs().max() <= tolerance, f"request {i}"


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    options, visible = OPTIONS[name]
    tensors = batch()
    assert_matches(run(options, tensors), tensors, options, visible)


@pytest.mark.parametrize(("head_size", "head_size_v"), [(5, 5), (6, 4), (96, 32), (1, 1)])
def test_head_sizes(head_size, head_size_v):
    tensors = batch(head_size=head_size, head_size_v=head_size_v)
    assert_matches(run({}, tensors), tensors, {}, causal)


def test_bfloat16_is_computed_in_float32():
    tensors = batch(dtype=torch.bfloat16)
    # bfloat16 keeps 8 bits of the result: the only rounding
    assert_matches(run({}, tensors), tensors, {}, causal, tolerance=2**-8 * 2)


def test_long_prompts_are_computed_in_parts(monkeypatch):
    monkeypatch.setattr("vllm_metal.attention._SCORES_AT_ONCE", 2 * HEADS * max(SEQ_LENS))
    tensors = batch()
    assert_matches(run({"sliding_window": 6}, tensors), tensors, {}, OPTIONS["all"][1])


def test_not_causal_for_some_requests():
    tensors = batch()
    tensors[-1].causal = [True, False, True, False]
    visible = [causal, lambda q, k: True, causal, lambda q, k: True]
    assert_matches(run({}, tensors), tensors, {}, visible)


def test_not_causal_window_looks_both_ways():
    tensors = batch()
    tensors[-1].causal = [False] * 4
    options = {"sliding_window": 3}
    assert_matches(run(options, tensors), tensors, options, lambda q, k: abs(q - k) < 3)


@pytest.mark.parametrize("clamp", [False, True])
def test_bidirectional_ranges(clamp):
    tensors = batch()
    tensors[-1].bidirectional_ranges = {1: [(1, 3)], 3: [(5, 9)]}
    options = {"sliding_window": 3}

    def visible_with(ranges):
        def visible(q, k):
            in_range = any(a <= q <= b and a <= k <= b for a, b in ranges)
            return (k <= q and q - k < 3) or (in_range and (not clamp or q - k < 3))

        return visible

    layer = SimpleNamespace(mm_prefix_clamp_sliding_window=clamp)
    visible = [visible_with([]), visible_with([(1, 3)]), visible_with([]), visible_with([(5, 9)])]
    assert_matches(run(options, tensors, layer), tensors, options, visible)


def test_encoder_only_needs_no_cache():
    _, _, _, keys, values, _, metadata = batch()
    rows = [torch.randn(n, HEADS, 6) for n in SEQ_LENS]
    metadata.query_start_loc = [0, *torch.tensor(SEQ_LENS).cumsum(0).tolist()]
    metadata.num_actual_tokens = sum(SEQ_LENS)
    metadata.causal = [False] * len(SEQ_LENS)
    impl = MetalAttentionImpl(HEADS, 6, 0.4, KV_HEADS, attn_type="encoder_only")
    output = torch.empty(sum(SEQ_LENS), HEADS, 6)
    impl.forward(
        SimpleNamespace(),
        torch.cat(rows),
        torch.cat(keys),
        torch.cat(values),
        torch.empty(0),
        metadata,
        output,
    )
    for i in range(len(SEQ_LENS)):
        expected = reference(
            rows[i], keys[i], values[i], 0, scale=0.4, visible=lambda q, k: True,
            cap=None, slopes=None, sqrt=False, sinks=None,
        )  # fmt: skip
        found = output[metadata.query_start_loc[i] : metadata.query_start_loc[i + 1]]
        assert (found.double() - expected).abs().max() <= 1e-5


def test_cross_attention_sees_the_whole_encoder():
    """The encoder's keys were cached by the first step; the decoder's position does not count."""
    tensors = batch()
    run({}, tensors)  # fills the cache
    query, _, _, _, _, cache, metadata = tensors
    metadata.causal = [False] * len(SEQ_LENS)
    impl = MetalAttentionImpl(HEADS, 6, 0.4, KV_HEADS, attn_type="encoder_decoder")
    output = torch.empty_like(query)
    impl.forward(SimpleNamespace(), query, None, None, cache, metadata, output)
    assert_matches(output, tensors, {}, lambda q, k: True)


def test_shared_cache_is_read_and_not_written():
    tensors = batch()
    first = run({}, tensors)
    query, key, value, _, _, cache, metadata = tensors
    before = cache.clone()
    impl = MetalAttentionImpl(
        HEADS, 6, 0.4, KV_HEADS, kv_sharing_target_layer_name="model.layers.0.self_attn.attn"
    )
    second = torch.empty_like(first)
    impl.forward(SimpleNamespace(), query, key + 1, value + 1, cache, metadata, second)
    assert torch.equal(cache.nan_to_num(7), before.nan_to_num(7))
    assert torch.equal(first, second)


def test_padding_slots_and_rows():
    """Slot -1 writes nothing, and rows behind the last token come out as zeros."""
    tensors = list(batch())
    query, key, value = tensors[:3]
    padded = [torch.cat([t, torch.full_like(t[:3], 9.0)]) for t in (query, key, value)]
    metadata = tensors[-1]
    metadata.slot_mapping = torch.cat([metadata.slot_mapping, torch.tensor([-1, -1, -1])])
    output = run({}, (*padded, *tensors[3:]))
    assert_matches(output, tensors, {}, causal)
    assert torch.equal(output[-3:], torch.zeros(3, HEADS, 6))
    assert not (tensors[5] == 9.0).any()


def test_blocks_behind_the_window_are_not_read():
    """vLLM gives them to other requests: here they hold NaN, and 0 * NaN would show."""
    tensors = batch()
    _, _, _, _, _, cache, metadata = tensors
    cache[metadata.block_table[3, 0]] = math.nan
    options = {"sliding_window": 3}
    assert_matches(run(options, tensors), tensors, options, lambda q, k: k <= q and q - k < 3)


def test_profiling_run_has_no_metadata():
    impl = MetalAttentionImpl(HEADS, 6, 0.4, KV_HEADS)
    output = torch.full((3, HEADS, 6), math.nan)
    tokens = torch.zeros(3, HEADS, 6)
    impl.forward(SimpleNamespace(), tokens, tokens, tokens, torch.empty(0), None, output)
    assert torch.equal(output, torch.zeros(3, HEADS, 6))


def test_cache_in_any_physical_order():
    """vLLM lays the cache out as it likes; the view it hands over is always [B, H, N, C]."""
    torch.manual_seed(0)
    token_major = torch.zeros(5, BLOCK_SIZE, KV_HEADS, 10).transpose(1, 2)
    key, value = torch.randn(6, KV_HEADS, 6), torch.randn(6, KV_HEADS, 4)
    table = torch.tensor([3, 1], dtype=torch.int32)
    slots = torch.tensor([12, 13, 14, 15, 4, 5])
    write_kv_cache(token_major, key, value, slots)
    keys, values = read_kv_cache(token_major, table, 2, 6).split([6, 4], dim=-1)
    assert torch.equal(keys, key[2:].transpose(0, 1))
    assert torch.equal(values, value[2:].transpose(0, 1))
