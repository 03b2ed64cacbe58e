# SPDX-License-Identifier: Apache-2.0
"""Train the demo model: a small Qwen3 that knows CPython's documentation.

In ``python/``::

    nice python -m demo_model_training.train --output vllm_metal/demo_model
    python -m demo_model_training.prompts vllm_metal/demo_model ../tests/data/demo_prompts.json

The corpus comes from the running CPython (see ``corpus.py``). The first stage reads all of it, the
second only questions with their answers and the opening paragraphs of the documents, which a model
of this size can learn by heart: that is what makes its greedy text stable and recognisable. It
knows little that it has not seen, as the validation loss says.

The committed weights: CPython 3.11.7 on Linux, corpus
e55e0a47d9682737e573490c3333244e88c97494dd23d53e7f24ab658446f4d3, torch 2.14.0, one thread of a
busy AMD EPYC (Zen 3), 1350 steps of 2048 tokens:

=======  =====  =============  ===============  =======
stage    steps  training loss  validation loss  minutes
=======  =====  =============  ===============  =======
whole      750           2.25             4.06       21
core       600           0.41             3.72       24
=======  =====  =============  ===============  =======

Losses are in nats per token. The training loss is the last one printed, a mean over 20 (whole) or
25 steps; the validation loss is that of held-out documents (in the core stage, of their opening
paragraphs). Another CPU or torch version rounds differently and gives other weights of the kind.

The text learnt is CPython's documentation, (c) Python Software Foundation, under the PSF licence.
"""

import argparse
import math
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from demo_model_training.corpus import Corpus, Question, collect
from demo_model_training.documents import (
    IGNORED_LABEL,
    conversations,
    encode_chats,
    encode_prose,
    openings,
    pack,
    train_tokenizer,
)

SEED = 1
VOCAB_SIZE = 3072
SEQUENCE_LENGTH = 256
ROWS_PER_STEP = 8
STEPS = {"whole": 750, "core": 600}
CHAT_PASSES = {"whole": 3, "core": 1}
VALIDATION_SHARE = 0.02
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 20


def build_model(vocab_size: int, end_token: int) -> Qwen3ForCausalLM:
    """The untrained model in float32: 2.4 million parameters, tied embeddings."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        eos_token_id=end_token,
        pad_token_id=end_token,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz steps, for matrices (K. Jordan, 2024).

    It needs about half of AdamW's steps here. Unlike ``torch.optim.Muon`` it computes in float32:
    bfloat16 products are ten times slower on CPUs without instructions for them.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix once."""
        for group in self.param_groups:
            for matrix in group["params"]:
                buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                buffer.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalise(matrix.grad.lerp(buffer, group["momentum"]))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix (about) with all singular values one; five Newton-Schulz steps."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def batches(
    questions: list[Question],
    passes: int,
    prose: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Tensor]:
    """Endless training batches, int64 [rows, tokens]; each epoch is shuffled and packed anew."""
    generator = random.Random(SEED)
    while True:
        chats = encode_chats(tokenizer, conversations(questions, passes, generator))
        rows = pack(chats + prose, SEQUENCE_LENGTH + 1, generator)
        print(f"epoch of {(rows != IGNORED_LABEL).sum()} tokens, {len(rows)} rows", flush=True)
        for start in range(0, len(rows) - ROWS_PER_STEP + 1, ROWS_PER_STEP):
            yield torch.from_numpy(rows[start : start + ROWS_PER_STEP])


def loss_of(model: Qwen3ForCausalLM, rows: Tensor) -> Tensor:
    """Mean cross entropy of the next token, scalar."""
    inputs, labels = rows[:, :-1].clamp(min=0), rows[:, 1:]
    logits = model(input_ids=inputs, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)


@torch.no_grad()
def validation_loss(model: Qwen3ForCausalLM, rows: np.ndarray) -> float:
    """Mean loss over the held-out rows."""
    losses = [loss_of(model, torch.from_numpy(part)).item() for part in np.array_split(rows, 4)]
    return sum(losses) / len(losses)


def learning_rate_factor(stage: str, step: int) -> float:
    """Half a cosine over both stages, from one to a half and on to zero; each stage warms up."""
    progress = step / STEPS[stage] / 2 + (0.5 if stage == "core" else 0.0)
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * progress))


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the model in bfloat16 with its configuration and tokenizer."""
    stored = Qwen3ForCausalLM(Qwen3Config.from_dict(model.config.to_dict()))
    stored.load_state_dict(model.state_dict())
    stored.bfloat16()
    end_token = tokenizer.eos_token_id
    stored.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=end_token, pad_token_id=end_token
    )
    stored.save_pretrained(output)
    # How a tokenizer was loaded says nothing about it.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(output, save_jinja_files=False)


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """Documents to train on and documents held out, in a seeded order."""
    shuffled = list(documents)
    random.Random(SEED).shuffle(shuffled)
    held_out = int(len(documents) * VALIDATION_SHARE)
    return shuffled[held_out:], shuffled[:held_out]


def train_whole(output: Path) -> None:
    """First half: a new tokenizer and model, on everything."""
    corpus = collect()
    tokenizer = train_tokenizer(corpus, VOCAB_SIZE)
    model = build_model(len(tokenizer), tokenizer.eos_token_id)
    trained, held_out = split(corpus.prose)
    run_steps("whole", corpus, trained, held_out, model, tokenizer, output)


def train_core(output: Path) -> None:
    """Second half: the model saved by the first, on opening paragraphs and answers alone."""
    corpus = collect()
    tokenizer = AutoTokenizer.from_pretrained(output)
    model = Qwen3ForCausalLM.from_pretrained(output, dtype=torch.float32).train()
    trained, held_out = map(openings, split(corpus.prose))
    held_out = [opening for opening in held_out if opening not in set(trained)]
    run_steps("core", corpus, trained, held_out, model, tokenizer, output)


def run_steps(
    stage: str,
    corpus: Corpus,
    trained: list[str],
    held_out: list[str],
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
) -> None:
    """Run a stage's steps; print the corpus hash, the loss curve and the final figures."""
    started = time.monotonic()
    validation = pack(encode_prose(tokenizer, held_out), SEQUENCE_LENGTH + 1, random.Random(SEED))
    print(
        f"{stage}: corpus {corpus.corpus_hash()}, {len(corpus.questions)} questions,"
        f" {len(trained)} documents of {sum(map(len, trained))} characters,"
        f" {model.num_parameters()} parameters"
    )
    embedding = model.model.embed_tokens.weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim == 1 or p is embedding]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    base_rates = [MATRIX_LEARNING_RATE, OTHER_LEARNING_RATE]
    encoded = encode_prose(tokenizer, trained)
    data = batches(corpus.questions, CHAT_PASSES[stage], encoded, tokenizer)
    losses: list[float] = []
    for step in range(STEPS[stage]):
        loss = loss_of(model, next(data))
        loss.backward()
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(stage, step)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        done = step + 1
        if done % 25 == 0:
            mean = sum(losses[-25:]) / 25
            print(f"step {done} loss {mean:.3f} {time.monotonic() - started:.0f} s", flush=True)
        if done % 150 == 0:
            held_out_loss = validation_loss(model, validation)
            print(f"step {done} validation loss {held_out_loss:.3f}", flush=True)
            save(model, tokenizer, output)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--output", type=Path, required=True, help="directory of the model")
    parser.add_argument("--stage", choices=["whole", "core", "both"], default="both")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    if options.stage != "core":
        train_whole(options.output)
    if options.stage != "whole":
        train_core(options.output)


if __name__ == "__main__":
    main()
