# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints of the architectures that the serving tests cover, in float32.

Matrices are drawn with a standard deviation of 0.1: with the usual 0.02 the layers add so little
to the residual stream that a model without rotary embeddings still passes for the right one.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 320
SLIDING_WINDOW = 24
"""Shorter than most prompts of the tests, and no multiple of a block."""

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
_GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": SLIDING_WINDOW,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 2,
}
# Fewer keys than most prompts have, and so many heads that no two keys have the same score.
_INDEX = {"index_topk": 12, "index_n_heads": 16, "index_head_dim": 16}
_MAMBA_2 = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "state_size": 16,
    "num_heads": 8,
    "head_dim": 16,
    "n_groups": 1,
    "chunk_size": 16,
}
_FALCON_H1 = {
    "head_dim": 16,
    "mamba_d_ssm": 128,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
_JAMBA = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "mamba_dt_rank": 8,
}
# What LFM2's own checkpoints say and the class does not.
_LFM2 = {
    "layer_types": ["conv", "full_attention"],
    "conv_dim": 64,
    "conv_dim_out": 64,
    "block_dim": 64,
    "block_ff_dim": 96,
    "block_multiple_of": 1,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "block_norm_eps": 1e-5,
}
_SPECIAL = {key: _SHAPE[key] for key in ("vocab_size", "pad_token_id", "bos_token_id")}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=16, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SHAPE, sliding_window=SLIDING_WINDOW)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_SHAPE | _GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=4.0)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_SHAPE | _GEMMA)),
}
STATE_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "deepseek3": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**_SHAPE | _LATENT)),
    "deepseek32": lambda: DeepseekV32ForCausalLM(DeepseekV32Config(**_SHAPE | _LATENT | _INDEX)),
    "mamba2": lambda: Mamba2ForCausalLM(Mamba2Config(**_SPECIAL | _MAMBA_2, eos_token_id=None)),
    "jamba": lambda: JambaForCausalLM(JambaConfig(**_SHAPE | _JAMBA)),
    "falcon_h1": lambda: FalconH1ForCausalLM(FalconH1Config(**_SHAPE | _FALCON_H1)),
    "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(**_SHAPE | _LFM2)),
}
# Of residual sums and layer norms.
LAYER_NORM_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, **_SPECIAL)
    ),
}
WITH_SLIDING_WINDOW = ("mistral", "gemma2", "gemma3")


@torch.no_grad()
def build(name: str, directory: Path) -> PreTrainedModel:
    """Draw the model `name`, save it to `directory` and return it in evaluation mode."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    model = (MODELS | STATE_MODELS | LAYER_NORM_MODELS)[name]().float().eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.1
        if parameter.dim() == 1 and not bool((parameter == 0).all()):
            noise += parameter  # a norm's weight stays near what it starts from
        parameter.copy_(noise)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens with a chat template."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    core.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
    )
    core.train_from_iterator([PreTrainedModel.__doc__ or ""] * 2, trainer)
    assert core.get_vocab_size() == VOCAB_SIZE
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return fast
