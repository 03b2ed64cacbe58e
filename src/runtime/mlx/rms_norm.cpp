// SPDX-License-Identifier: Apache-2.0
// RMSNorm on a CPU as one node.
//
// `mx.fast.rms_norm` is a kernel on GPUs and writes itself out as eight nodes on a CPU, a third of all
// nodes of a decode step. Here one node makes the same roundings: `x / sqrt(mean(x^2) + eps)` in
// float32, rounded to `x`'s dtype, times the weight, rounded.

#include <array>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/backend/common/utils.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/error.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/stream.h"
#include "mlx/primitives.h"

using mlx::core::array;

namespace {

// Numbers that lie a stride apart.
template <typename T>
struct Strided {
  const T* first;
  int64_t stride;

  T operator[](int64_t i) const {
    return first[i * stride];
  }
};

// Sums that do not wait for each other.
template <typename Row>
float sum_of_squares(Row row, int64_t size) {
  constexpr int64_t width = 8;
  std::array<float, width> sums{};
  int64_t i = 0;
  for (; i + width <= size; i += width) {
    for (int64_t lane = 0; lane < width; ++lane) {
      float x = row[i + lane];
      sums[lane] += x * x;
    }
  }
  float sum = 0;
  for (; i < size; ++i) {
    float x = row[i];
    sum += x * x;
  }
  for (float lane : sums) {
    sum += lane;
  }
  return sum;
}

template <typename T, typename Row>
void normalise(Row row, Strided<T> weight, T* out, int64_t size, float eps) {
  float scale = 1 / std::sqrt(sum_of_squares(row, size) / size + eps);
  for (int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<T>(row[i] * scale);
  }
  if (weight.first != nullptr) {
    for (int64_t i = 0; i < size; ++i) {
      out[i] = static_cast<T>(static_cast<float>(out[i]) * static_cast<float>(weight[i]));
    }
  }
}

// Over the last axis of `x`. `out` is contiguous, and may be the memory of `x` where that is, too.
template <typename T>
void normalise_rows(const array& x, const array* weight, array& out, float eps) {
  const int64_t size = x.shape(-1);
  const int64_t num_rows = size ? x.size() / size : 0;
  const mlx::core::Shape shape(x.shape().begin(), x.shape().end() - 1);
  const mlx::core::Strides strides(x.strides().begin(), x.strides().end() - 1);
  Strided<T> scales{nullptr, 0};
  if (weight != nullptr) {
    scales = {weight->data<T>(), weight->strides(0)};
  }
  for (int64_t row = 0; row < num_rows; ++row) {
    auto first = x.data<T>() + mlx::core::elem_to_loc(row, shape, strides);
    auto to = out.data<T>() + row * size;
    if (x.strides(-1) == 1) {
      normalise(first, scales, to, size, eps);
    } else {
      normalise(Strided<T>{first, x.strides(-1)}, scales, to, size, eps);
    }
  }
}

class RmsNorm : public mlx::core::UnaryPrimitive {
 public:
  RmsNorm(mlx::core::Stream stream, float eps) : UnaryPrimitive(stream), eps_(eps) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override {
    auto& x = inputs[0];
    if (x.is_donatable() && x.flags().row_contiguous) {
      out.copy_shared_buffer(x);
    } else {
      out.set_data(mlx::core::allocator::malloc(out.nbytes()));
    }
    std::vector<array> read;
    for (auto& input : inputs) {
      read.push_back(array::unsafe_weak_copy(input));
    }
    mlx::core::cpu::get_command_encoder(stream()).dispatch(
        [read = std::move(read), out = array::unsafe_weak_copy(out), eps = eps_]() mutable {
          auto* weight = read.size() > 1 ? &read[1] : nullptr;
          if (out.dtype() == mlx::core::float32) {
            normalise_rows<float>(read[0], weight, out, eps);
          } else if (out.dtype() == mlx::core::float16) {
            normalise_rows<mlx::core::float16_t>(read[0], weight, out, eps);
          } else {
            normalise_rows<mlx::core::bfloat16_t>(read[0], weight, out, eps);
          }
        });
  }

  void eval_gpu(const std::vector<array>&, array&) override {
    throw std::runtime_error("[rms_norm] this one is for CPUs.");
  }

  const char* name() const override {
    return "RmsNorm";
  }

  bool is_equivalent(const mlx::core::Primitive& other) const override {
    return eps_ == static_cast<const RmsNorm&>(other).eps_;
  }

  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  float eps_;
};

array rms_norm(const array& x, const array* weight, float eps, mlx::core::Stream stream) {
  auto dtype = x.dtype();
  if (dtype != mlx::core::float32 && dtype != mlx::core::float16 &&
      dtype != mlx::core::bfloat16) {
    throw std::invalid_argument("[rms_norm] not of floating-point numbers.");
  }
  if (x.ndim() == 0) {
    throw std::invalid_argument("[rms_norm] of a scalar.");
  }
  std::vector<array> inputs{x};
  if (weight != nullptr) {
    if (weight->ndim() != 1 || weight->shape(0) != x.shape(-1) || weight->dtype() != dtype) {
      throw std::invalid_argument("[rms_norm] the weight's size or dtype is not that of the rows.");
    }
    inputs.push_back(*weight);
  }
  return array(x.shape(), dtype, std::make_shared<RmsNorm>(stream, eps), std::move(inputs));
}

} // namespace

// As mlx-c's functions: 0, or 1 after the error handler was told. A `weight` of no array is none.
extern "C" int vllm_metal_rms_norm(
    mlx_array* out,
    mlx_array x,
    mlx_array weight,
    float eps,
    mlx_stream stream) {
  try {
    auto* scales = weight.ctx ? &mlx_array_get_(weight) : nullptr;
    mlx_array_set_(*out, rms_norm(mlx_array_get_(x), scales, eps, mlx_stream_get_(stream)));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
