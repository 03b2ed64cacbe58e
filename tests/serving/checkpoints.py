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
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
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
WITH_SLIDING_WINDOW = ("mistral", "gemma2", "gemma3")


@torch.no_grad()
def build(name: str, directory: Path) -> PreTrainedModel:
    """Draw the model `name`, save it to `directory` and return it in evaluation mode."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    model = MODELS[name]().float().eval()
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
