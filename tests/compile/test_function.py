# SPDX-License-Identifier: Apache-2.0
"""`lower_function`: one callable, lowered for given arguments."""

import pytest
import torch

from vllm_metal.compile import lower_function


def test_a_function_gives_what_it_gives_in_pytorch() -> None:
    def function(x, y, scale=2):  # type: ignore[no-untyped-def]
        return {"scaled": torch.nn.functional.gelu(x @ y) * scale, "more": (x.sum(-1), x > 0, None)}

    x, y = torch.randn(4, 8), torch.randn(6, 8).T
    lowered = lower_function(function, (x, y), {"scale": 3})
    torch.testing.assert_close(lowered(x, y, scale=3), function(x, y, 3), atol=1e-5, rtol=1e-5)
    assert lowered.report["fallback"] == []


@pytest.mark.unclaimed("aten.special_bessel_j0.default")
def test_an_operator_without_a_lowering_is_an_island_or_refused() -> None:
    x = torch.rand(5)
    lowered = lower_function(torch.special.bessel_j0, (x,))
    assert [island["target"] for island in lowered.report["fallback"]] == [
        "aten.special_bessel_j0.default"
    ]
    torch.testing.assert_close(lowered(x), torch.special.bessel_j0(x))
    with pytest.raises(ValueError, match=r"aten\.special_bessel_j0\.default cannot be lowered"):
        lower_function(torch.special.bessel_j0, (x,), refuse_fallback=True)
