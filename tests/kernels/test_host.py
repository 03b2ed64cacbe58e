# SPDX-License-Identifier: Apache-2.0
"""The executor: right kernels are right, among them one of MLX's own, and wrong ones are caught."""

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from vllm_metal.kernels.contract import Kernel, Launch
from vllm_metal.kernels.tensor import Tensor, tensor

from .host import KernelError, run, toolchain
from .host.execute import source_of
from .host.lint import address_spaces, forbidden

DTYPES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}

# Sums of rows by four simdgroups: threadgroup memory, a barrier, strides.
ROW_SUM = """
  threadgroup float partial[4];
  const int row = threadgroup_position_in_grid.x;
  const int i = thread_index_in_threadgroup;
  float sum = 0;
  for (int c = i; c < x_shape[1]; c += 128) {
    sum += float(x[row * x_strides[0] + c * x_strides[1]]);
  }
  sum = simd_sum(sum);
  if (thread_index_in_simdgroup == 0) {
    partial[simdgroup_index_in_threadgroup] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) {
    out[row] = T(partial[0] + partial[1] + partial[2] + partial[3]);
  }
"""


def row_sum(body: str, x: Tensor) -> np.ndarray:
    rows = x.shape[0]
    launch = Launch((rows * 128, 1, 1), (128, 1, 1), {"out": ((rows,), x.dtype)}, {"T": x.dtype})
    return run(Kernel("row_sum", ["x"], ["out"], body), {"x": x}, launch)["out"].numbers()


def some(shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    return tensor(np.random.default_rng(3).standard_normal(shape), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_are_those_of_the_input(dtype: str) -> None:
    base = some((500, 10), dtype)
    for x in (base, base.transpose(1, 0), base[::3, 1::2], base[:1, :1]):
        expected = x.numbers().sum(1)
        np.testing.assert_allclose(row_sum(ROW_SUM, x), expected, rtol=DTYPES[dtype], atol=0.02)


def test_a_kernel_that_ignores_strides_reads_poison() -> None:
    ignorant = ROW_SUM.replace("row * x_strides[0] + c * x_strides[1]", "row * x_shape[1] + c")
    x = some((4, 300))
    np.testing.assert_allclose(row_sum(ignorant, x), x.numbers().sum(1), atol=1e-4)
    assert np.isnan(row_sum(ignorant, x[:, ::2])).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_vector_attention_of_mlx_itself(dtype: str) -> None:
    """MLX's kernel through our stand-in for Metal, against MLX on the CPU: a check of it."""
    root = Path(mx.__file__).parent / "include/mlx/backend/metal/kernels"
    header = (root / "sdpa_vector.h").read_text()
    body = """
  const int keys = k_shape[2];
  sdpa_vector<T, 64>(q, k, v, out, q_shape[1] / k_shape[1], keys, size_t(keys) * 64, size_t(64),
      size_t(keys) * 64, size_t(64), 0.125f, nullptr, (const device T*)nullptr, 0, 0, 0,
      (const device T*)nullptr, q_shape[1], threadgroup_position_in_grid, threadgroups_per_grid,
      simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
"""
    q, k, v = some((1, 4, 1, 64), dtype), some((1, 2, 45, 64), dtype), some((1, 2, 45, 64), dtype)
    launch = Launch((4 * 1024, 1, 1), (1024, 1, 1), {"out": (q.shape, dtype)}, {"T": dtype})
    kernel = Kernel("mlx_sdpa_vector", ["q", "k", "v"], ["out"], body, header)
    found = run(kernel, {"q": q, "k": k, "v": v}, launch, orders=(0, 2))["out"].numbers()
    arrays = [mx.array(x.numbers().astype(np.float32)).astype(x.mlx_dtype) for x in (q, k, v)]
    expected = mx.fast.scaled_dot_product_attention(*arrays, scale=0.125).astype(mx.float32)
    np.testing.assert_allclose(found, np.array(expected), atol=DTYPES[dtype], rtol=DTYPES[dtype])


def test_matrices_of_a_simdgroup() -> None:
    body = """
  const int row = threadgroup_position_in_grid.y * 8, column = threadgroup_position_in_grid.x * 8;
  const int n = b_shape[1], depth = a_shape[1];
  simdgroup_matrix<float, 8, 8> left, right, sum(0.0f);
  for (int k = 0; k < depth; k += 8) {
    simdgroup_load(left, a + row * depth + k, depth);
    simdgroup_load(right, b + column * depth + k, depth, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sum, left, right, sum);
  }
  simdgroup_store(sum, out + row * b_shape[0] + column, b_shape[0]);
"""
    a, b = some((16, 24)), some((32, 24))
    launch = Launch((4 * 32, 2, 1), (32, 1, 1), {"out": ((16, 32), "float32")})
    kernel = Kernel("product", ["a", "b"], ["out"], body)
    found = run(kernel, {"a": a, "b": b}, launch)["out"].numbers()
    np.testing.assert_allclose(found, a.numbers() @ b.numbers().T, atol=1e-5)


def test_atomics_and_ragged_threadgroups() -> None:
    body = """const uint i = thread_position_in_grid.x;
  atomic_fetch_add_explicit(&out[x[i] & 15], 1, memory_order_relaxed);"""
    x = tensor(np.random.default_rng(0).integers(0, 1000, 777), "int32")
    kernel = Kernel("histogram", ["x"], ["out"], body, atomic_outputs=True)
    launch = Launch((777, 1, 1), (256, 1, 1), {"out": ((16,), "int32")}, init_value=0)
    found = run(kernel, {"x": x}, launch)["out"].storage
    np.testing.assert_array_equal(found, np.bincount(x.storage & 15, minlength=16))


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
# What is replaced, by what, and what the executor says.
WRONG = {
    "missing barrier": (BARRIER, "", "depends on the order of threads"),
    "divergent barrier": (BARRIER, f"if (i < 64) {BARRIER}", "divergence|order of threads"),
    "return before a barrier": (BARRIER, f"if (i == 100) return;\n{BARRIER}", "divergence"),
    "divergent simdgroup function": (
        "sum = simd_sum(sum);",
        "if (i % 32 < 16) sum = simd_sum(sum);\n else sum =\n simd_sum(sum);",
        "simdgroup divergence",
    ),
    "read past the end": ("* x_strides[1]]", "* x_strides[1] + 8]", "access outside a buffer"),
    "read before the start": ("x[row *", "x[-5000 + row *", "access outside a buffer"),
    "write to an input": ("out[row] = T", "((device T*)x)[row] = T", "write to an input"),
    "index out of a threadgroup array": (
        "partial[simdgroup_index_in_threadgroup]",
        "partial[simdgroup_index_in_threadgroup + 1]",
        "undefined behaviour",
    ),
    "too much threadgroup memory": ("partial[4]", "partial[10000]", "Metal allows 32768"),
    "a name that is not there": ("float sum = 0", "float sun = 0", "does not compile"),
    "a race for an output": (
        "if (i == 0) {",
        "if (i >= 0) { out[row] = T(i);} if (i == 5) {",
        "depends on the order of threads",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_caught(name: str) -> None:
    old, new, message = WRONG[name]
    assert old in ROW_SUM
    with pytest.raises(KernelError, match=message):
        row_sum(ROW_SUM.replace(old, new), some((3, 200)))


def test_what_nobody_wrote_is_not_a_number() -> None:
    x = some((3, 200))
    unwritten = row_sum(ROW_SUM.replace("if (i == 0) {", "if (i == 0 && row != 1) {"), x)
    assert np.isnan(unwritten[1]) and np.isfinite(unwritten[[0, 2]]).all()
    partly = ROW_SUM.replace("if (thread_index_in_simdgroup == 0) {", "if (i == 0) {")
    assert np.isnan(row_sum(partly, x)).all(), "threadgroup memory that nobody wrote"


FORBIDDEN = {
    "double y = 1.0;": "no double",
    "long long n = 0;": "no long long",
    "auto p = std::max(1, 2);": "standard library",
    "float* p = new float[2];": "heap",
    "static int counter;": "static",
    "auto f = [&](int a) { return a; };": "lambdas",
    'printf("x");': "strings",
    "if (true) { threadgroup float a[2]; }": None,
    "if (true) {\n threadgroup float a[2];\n }": "nested scope",
    "int fib(int n) { return n < 2 ? n : fib(n - 1); }": "calls itself",
    "threadgroup float a[2] = {0};": "start unset",
    "goto end;": "goto",
    "#include <vector>": "own headers",
}


@pytest.mark.parametrize("text", FORBIDDEN)
def test_the_lint_refuses_what_metal_refuses(text: str) -> None:
    expected = FORBIDDEN[text]
    found = forbidden(text)
    assert expected is None or any(expected in finding for finding in found), found
    assert forbidden(f"// {text}".replace("\n", "\n// ")) == [], "comments are free"


def spaces(body: str, columns: int = 200) -> list[str]:
    x = some((3, columns))
    launch = Launch((384, 1, 1), (128, 1, 1), {"out": ((3,), "float32")}, {"T": "float32"})
    return address_spaces(source_of(Kernel("row_sum", ["x"], ["out"], body), {"x": x}, launch))


def test_pointers_keep_their_address_space() -> None:
    assert spaces(ROW_SUM) == []
    for wrong in (
        "const T* p = x;",
        "device float* p = partial;",
        "const device int* p = x_shape;",
    ):
        assert spaces(ROW_SUM.replace("float sum = 0;", f"float sum = 0; {wrong}")) != [], wrong
    # MLX passes an input of fewer than eight elements in the constant address space.
    pointer = ROW_SUM.replace("float sum = 0;", "float sum = 0; const device T* p = x;")
    assert spaces(pointer) == []
    assert spaces(pointer, columns=2) != []


def test_a_machine_without_the_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(KernelError, match=r"clang-19 is missing.*apt-get install clang-19"):
        toolchain.compiler()
