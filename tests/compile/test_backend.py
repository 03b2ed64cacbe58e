# SPDX-License-Identifier: Apache-2.0
"""`torch.compile(.., backend="mlx")` keeps PyTorch's semantics."""

import logging
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vllm_metal.compile import CompileError, mlx, reports


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="mlx", **options)


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def islands() -> list[str]:
    return [island["target"] for report in reports() for island in report["fallback"]]


def test_the_entry_point_is_the_backend() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    value = project["project"]["entry-points"]["torch_dynamo_backends"]["mlx"]
    assert EntryPoint("mlx", value, "torch_dynamo_backends").load() is mlx
    with pytest.raises(Exception, match="no options"):
        compiled(torch.sin, options={"fast": True})(torch.ones(2))


def test_batch_and_sequence_are_symbols_and_new_sizes_compile_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)).eval()
    run = compiled(model, dynamic=True)
    with torch.no_grad():
        for shape in ((3, 5, 8), (4, 7, 8), (2, 9, 8), (1, 6, 8)):
            x = torch.randn(*shape)
            close(run(x), model(x))
    # The batch of one is a graph of its own: PyTorch takes sizes of 0 and 1 as numbers.
    assert len(reports()) <= 2
    assert islands() == []
    count = len(reports())
    with torch.no_grad():
        close(run(torch.zeros(5, 2, 8)), model(torch.zeros(5, 2, 8)))
    assert len(reports()) == count


def test_sizes_become_symbols_by_themselves_and_by_mark() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([x, y], 1)
        flat = joined.reshape(x.shape[0] * joined.shape[1], -1)
        return flat[: x.shape[0]] * x.shape[1] + joined.shape[1] // 2

    run = compiled(function)
    for b, s, t in ((2, 3, 4), (3, 5, 2), (4, 2, 9), (5, 7, 3)):
        x, y = torch.randn(b, s, 6), torch.randn(b, t, 6)
        close(run(x, y), function(x, y))
    assert len(reports()) == 2  # with the first sizes as numbers, then with symbols
    x = torch.randn(4, 6)
    torch._dynamo.mark_dynamic(x, 0)
    only_marked = compiled(lambda x: x.view(-1, 3).sum(0))
    close(only_marked(x), x.view(-1, 3).sum(0))
    before = len(reports())
    x = torch.randn(10, 6)
    close(only_marked(x), x.view(-1, 3).sum(0))
    assert len(reports()) == before


def test_arguments_are_changed_in_place_and_results_alias_as_in_pytorch() -> None:
    def function(x, y, n):  # type: ignore[no-untyped-def]
        x.add_(1)
        y[1:3].mul_(n)
        return x.view(-1)[:4], x, None, y.shape[0] * 3 + n, (y @ y.T).sum(), y > 0, y.int()

    ours, theirs = (torch.randn(2, 3), torch.randn(5, 6)), None
    theirs = tuple(tensor.clone() for tensor in ours)
    found, expected = compiled(function)(*ours, 2), function(*theirs, 2)
    close(found, expected)
    close(ours, theirs)
    assert found[1] is ours[0] and found[0].data_ptr() == ours[0].data_ptr()
    found[0].zero_()
    assert ours[0].view(-1)[:4].eq(0).all()


def test_layouts_and_dtypes_come_through() -> None:
    def function(tensors):  # type: ignore[no-untyped-def]
        return [torch.cat([t, t]).flip(0) if t.dtype == torch.bool else t * 2 + 1 for t in tensors]

    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    dtypes += [torch.int8, torch.uint8, torch.bool]
    given = [torch.arange(24).reshape(4, 6).to(dtype) for dtype in dtypes]
    given += [torch.randn(6, 4).T, torch.randn(4, 12)[:, ::2], torch.randn(1, 6).expand(4, 6)]
    given += [torch.tensor(3.0), torch.empty(0, 5)]
    found = compiled(function)(given)
    expected = function(given)
    close(found, expected)
    assert [t.dtype for t in found] == [t.dtype for t in expected]


def test_graphs_break_and_go_on() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        if y.sum().item() > 0:
            y = y * 2
        return y.cos()

    run = compiled(function)
    for x in (torch.ones(4), -torch.ones(4)):
        close(run(x), function(x))
    assert len(reports()) >= 3


def test_numbers_among_the_arguments() -> None:
    def function(x: torch.Tensor, scale: float, count: int, flag: bool) -> torch.Tensor:
        return x[:count] * scale if flag else x + count

    run = compiled(function, dynamic=True)
    x = torch.randn(9, 2)
    for arguments in ((0.5, 3, True), (1.5, 4, True), (0.25, 7, True), (0.5, 3, False)):
        close(run(x, *arguments), function(x, *arguments))


def test_a_changed_weight_is_noticed_and_weights_are_uploaded_once() -> None:
    from vllm_metal.compile.weights import weights

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    run = compiled(model)
    x = torch.randn(3, 4)
    with torch.no_grad():
        close(run(x), model(x))
        uploads = {key: array for key, (_, array) in weights._uploads.items()}
        close(run(torch.randn(5, 4)).shape, torch.Size([5, 4]))
        close(run(torch.randn(6, 4)).shape, torch.Size([6, 4]))
        assert {key: weights._uploads[key][1] for key in uploads} == uploads
        model[0].weight.mul_(2)
        close(run(x), model(x))
        model[0].weight = nn.Parameter(torch.ones(4, 4))
        close(run(x), model(x))
        model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})
        close(run(x), model(x))


def test_layers_of_one_graph_keep_their_own_weights() -> None:
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)).eval()
    for layer in layers:
        layer.compile(backend="mlx")
    x = torch.randn(2, 4)
    with torch.no_grad():
        for _ in range(2):
            for layer in layers:
                close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(mode: Any) -> None:
    model = nn.Linear(4, 2)
    with mode():
        x = torch.randn(3, 4)
        close(compiled(model)(x), model(x))


def test_training_runs_the_forward_pass_on_mlx_and_the_backward_pass_in_pytorch() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 1))
    run = compiled(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 8)
    for _ in range(2):
        model(x).sum().backward()
        expected = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        run(x).sum().backward()
        close([parameter.grad for parameter in model.parameters()], expected, 1e-4)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.unclaimed("aten.special_bessel_j0.default")
def test_an_island_is_named_with_its_line_or_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x * 2) + 1

    x = torch.rand(4)
    with caplog.at_level(logging.INFO, logger="vllm.metal.compile"):
        close(compiled(function)(x), function(x))
    assert islands() == ["aten.special_bessel_j0.default"]
    assert "tests/compile/test_backend.py" in reports()[0]["fallback"][0]["where"]
    assert [record.levelname for record in caplog.records if "graph" in record.message] == [
        "INFO",
        "WARNING",
    ]
    torch._dynamo.reset()
    monkeypatch.setenv("VLLM_METAL_FALLBACK", "error")
    with pytest.raises(Exception, match=r"bessel_j0.*cannot be lowered") as caught:
        compiled(function)(x)
    assert CompileError.__name__ in f"{caught.type} {caught.value}"
    assert "tests/compile/test_backend.py" in str(caught.value)


def test_values_that_mlx_cannot_hold_leave_the_graph_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.abs() * 2

    x = torch.randn(8, dtype=torch.complex64)
    close(compiled(function)(x), function(x))
    assert "complex64 has no MLX counterpart" in reports()[0]["refused"]
    torch._dynamo.reset()
    monkeypatch.setenv("VLLM_METAL_FALLBACK", "error")
    with pytest.raises(Exception, match="complex64 has no MLX counterpart"):
        compiled(function)(x)


def test_an_index_out_of_range_is_an_error_and_the_next_call_works() -> None:
    table = nn.Embedding(4, 3)
    run = compiled(table)
    with torch.no_grad():
        with pytest.raises((ValueError, IndexError), match="must be from 0 to 3"):
            run(torch.tensor([1, 9]))
        close(run(torch.tensor([1, 3])), table(torch.tensor([1, 3])))


def test_results_have_memory_of_their_own_and_pytorchs_layout() -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))

    def function(x, n):  # type: ignore[no-untyped-def]
        y = x * 2
        return y, y.clone(), x.clone(), weight * 2, weight[:n].clone(), y.T.contiguous(), y.T + 1

    run = compiled(function, dynamic=True)
    x = torch.randn(4, 3)
    with torch.no_grad():
        for n in (1, 2):
            expected = function(x, n)
            for result in run(x, n):
                result.fill_(7)
            found = run(x, n)
            close(found, expected)
            assert [t.stride() for t in found] == [t.stride() for t in expected]
    assert weight[1, 2] == 5


def test_tensors_elsewhere_are_refused_with_what_to_do() -> None:
    with pytest.raises(Exception, match=r"takes tensors on the CPU.*on meta"):
        compiled(torch.sin)(torch.ones(2, device="meta"))


def test_float64_is_computed_where_mlx_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, dtype=torch.float64)
    close(compiled(torch.exp)(x), torch.exp(x))
    assert "fused" in reports()[0]
    monkeypatch.setattr("vllm_metal.compile.backend.device", lambda: "gpu")
    torch._dynamo.reset()
    close(compiled(torch.cos)(x), torch.cos(x))
    assert "float64" in reports()[1]["refused"]
