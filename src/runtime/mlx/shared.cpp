// SPDX-License-Identifier: Apache-2.0
// An array under another name, so that who is its only user may write into its memory.
//
// MLX writes into an operand's memory ("donation") where nobody else holds it. A step in flight holds
// the caches that it reads until it is done, so the next step, built meanwhile, would copy each of
// them. What `Shared` gives has a holder of its own that keeps the memory alive. Who uses it answers
// for the order: the writes come after all reads of what was there.

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "mlx/c/error.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/stream.h"
#include "mlx/primitives.h"

using mlx::core::array;

namespace {

// Frees nothing: it lets go of who does. Always of that one, and not of another `Shared` of it, or
// the holders of a cache would form a list as long as its history.
struct Release {
  std::shared_ptr<array::Data> holder;

  void operator()(mlx::core::allocator::Buffer) {
    holder.reset();
  }
};

class Shared : public mlx::core::UnaryPrimitive {
 public:
  explicit Shared(mlx::core::Stream stream) : UnaryPrimitive(stream) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override {
    eval(inputs[0], out);
  }

  void eval_gpu(const std::vector<array>& inputs, array& out) override {
    eval(inputs[0], out);
  }

  const char* name() const override {
    return "Shared";
  }

  bool is_equivalent(const mlx::core::Primitive&) const override {
    return true;
  }

  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  static void eval(const array& in, array& out) {
    auto holder = in.data_shared_ptr();
    if (auto* shared = holder->d.target<Release>()) {
      holder = shared->holder;
    }
    out.set_data(
        in.buffer(), in.data_size(), in.strides(), in.flags(), in.offset(), Release{holder});
  }
};

} // namespace

// As mlx-c's functions: 0, or 1 after the error handler was told.
extern "C" int vllm_metal_shared(mlx_array* out, mlx_array in, mlx_stream stream) {
  try {
    auto& array = mlx_array_get_(in);
    auto primitive = std::make_shared<Shared>(mlx_stream_get_(stream));
    mlx_array_set_(*out, mlx::core::array(array.shape(), array.dtype(), primitive, {array}));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}
