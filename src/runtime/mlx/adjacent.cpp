// SPDX-License-Identifier: Apache-2.0
// Parts of one array that lie beside each other, as one part.

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "mlx/c/error.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/stream.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

using mlx::core::array;
using mlx::core::Shape;

namespace {

// Columns `start` to `stop` of `whole`, `[.., columns]`, seen as `[.., heads, size]`.
struct Part {
  array whole;
  Shape start;
  Shape stop;
};

std::optional<Part> part(const array& heads) {
  auto made_by = [](const array& node, const char* name) {
    return node.has_primitive() && std::strcmp(node.primitive().name(), name) == 0;
  };
  if (!made_by(heads, "Reshape") || !made_by(heads.inputs()[0], "Slice")) {
    return std::nullopt;
  }
  auto& columns = heads.inputs()[0];
  auto rank = columns.ndim();
  if (heads.ndim() != rank + 1 ||
      !std::equal(columns.shape().begin(), columns.shape().end() - 1, heads.shape().begin())) {
    return std::nullopt;
  }
  auto [start, stop, strides] =
      static_cast<mlx::core::Slice&>(columns.primitive()).state();
  auto& whole = columns.inputs()[0];
  for (size_t axis = 0; axis < rank; ++axis) {
    bool is_all = start[axis] == 0 && stop[axis] == whole.shape(axis);
    if (strides[axis] != 1 || (axis + 1 < rank && !is_all)) {
      return std::nullopt;
    }
  }
  return Part{whole, start, stop};
}

std::optional<array> adjacent(const array& left, const array& right, mlx::core::Stream stream) {
  auto first = part(left);
  auto second = part(right);
  if (!first || !second || first->whole.id() != second->whole.id() ||
      first->stop.back() != second->start.back() || left.shape(-1) != right.shape(-1)) {
    return std::nullopt;
  }
  auto columns = slice(first->whole, first->start, second->stop, stream);
  auto shape = left.shape();
  shape[shape.size() - 2] += right.shape(-2);
  return reshape(columns, shape, stream);
}

} // namespace

// As mlx-c's functions: 0, or 1 after the error handler was told.
extern "C" int vllm_metal_join_heads(
    mlx_array* out,
    mlx_array left,
    mlx_array right,
    mlx_stream stream) {
  try {
    auto &l = mlx_array_get_(left), &r = mlx_array_get_(right);
    auto& s = mlx_stream_get_(stream);
    auto view = adjacent(l, r, s);
    mlx_array_set_(*out, view ? std::move(*view) : concatenate({l, r}, -2, s));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
