# SPDX-License-Identifier: Apache-2.0
"""The sizes of the zoo's models: the usual ones, or others, drawn by a seed for each architecture.

What passes in one passes in all, or the lowering knows the sizes of its tests. A case runs in a
process of its own, and draws before anything reads a size.
"""

import os
from dataclasses import dataclass
from random import Random

VARIANT = "ZOO_VARIANT"
"""The environment variable that holds the seed."""
FLAGS = "ZOO_FLAGS"
"""The environment variable that is set where the seed turns fields that are true or false, too."""
MAX_POSITIONS = 256
MOST_LAYERS = 12


@dataclass
class Sizes:
    """`head_size` is that of a model whose default is 128. Without `num_kv_heads`, heads are shared
    by two where the default shares them. `window` is shorter than most prompts of the zoo, and no
    multiple of a block."""

    hidden_size: int = 64
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_size: int = 16
    intermediate_size: int = 96
    vocab_size: int = 320
    num_layers: int = 3
    window: int = 24
    latent_rank: int = 16
    num_experts: int = 8
    experts_per_token: int | None = None
    expert_groups: int | None = None
    state_head_size: int = 16
    state_groups: int = 2
    state_size: int = 16
    convolution: int | None = None

    @property
    def grouped_heads(self) -> int:
        """Heads of keys and values, where they are shared."""
        return self.num_kv_heads or self.num_heads // 2

    def draw(self, random: Random) -> None:
        """Replace every size by one that goes with the others."""
        shapes = [
            (size, heads)
            for size in (8, 16, 24, 32, 40, 64, 80)
            for heads in (2, 3, 4, 6, 8)
            if 48 <= size * heads <= 256 and size * heads % 16 == 0
        ]
        self.head_size, self.num_heads = random.choice(shapes)
        self.hidden_size = self.head_size * self.num_heads
        self.num_kv_heads = random.choice(_divisors(self.num_heads))
        self.intermediate_size = random.choice((72, 80, 112, 136, 200))
        self.vocab_size = random.choice((257, 300, 331, 417))
        self.num_layers = random.randint(2, 5)
        self.window = random.randint(5, 40)
        self.latent_rank = random.choice((8, 16, 24, 48))
        self.num_experts = random.choice((4, 6, 8, 12, 16))
        self.expert_groups = random.choice([g for g in (1, 2, 4) if self.num_experts // g > 1])
        self.experts_per_token = random.randint(1, min(4, self.num_experts // self.expert_groups))
        self.state_head_size = random.choice((8, 16, 32))
        heads = 2 * self.hidden_size // self.state_head_size
        self.state_groups = random.choice([g for g in (1, 2, 4) if heads % g == 0])
        self.state_size = random.choice((8, 16, 24, 32))
        self.convolution = random.randint(2, 4)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


SIZES = Sizes()
"""Of the case that this process runs."""


def seed() -> str:
    """What picks the variant; empty for the usual sizes."""
    return os.environ.get(VARIANT, "")


def turns_flags() -> bool:
    """Whether the seed turns fields that are true or false, too: vLLM's models ignore many."""
    return FLAGS in os.environ
