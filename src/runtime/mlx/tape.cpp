// SPDX-License-Identifier: Apache-2.0
// A lazy graph as a list of its nodes, and new graphs of the same nodes on other inputs.
//
// `mx.compile` replays a graph, too: it looks each operand of each node up in a hash table that it
// fills anew every time, which is most of its time per node. A tape numbers the operands once.

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "mlx/c/error.h"
#include "mlx/c/private/vector.h"
#include "mlx/primitives.h"

using mlx::core::array;

namespace {

// Nodes that depend on no input are kept as arrays, computed by the first step that needs them,
// where that holds little memory besides what is held already.
constexpr size_t max_kept_bytes = 1 << 16;

struct Node {
  std::shared_ptr<mlx::core::Primitive> primitive;
  std::vector<uint32_t> operands;
  // Of each result: more than one for a primitive of several.
  std::vector<mlx::core::Shape> shapes;
  std::vector<mlx::core::Dtype> dtypes;
};

bool is_view(const array& node) {
  for (auto name : {"Broadcast", "ExpandDims", "Slice", "Squeeze", "Transpose"}) {
    if (std::strcmp(node.primitive().name(), name) == 0) {
      return true;
    }
  }
  return false;
}

// The arrays that lead from the inputs to the outputs, operands first. Of several results of one
// primitive the first one met stands for all.
std::vector<array> in_order(
    const std::vector<array>& outputs,
    std::unordered_set<uintptr_t>& known) {
  std::vector<array> order;
  // With the number of operands that are in order already. Not recursive: graphs are deep.
  std::vector<std::pair<array, size_t>> open;
  auto visit = [&](const array& found) {
    if (known.insert(found.id()).second) {
      for (auto& sibling : found.siblings()) {
        known.insert(sibling.id());
      }
      open.emplace_back(found, 0);
    }
  };
  for (auto& output : outputs) {
    visit(output);
    while (!open.empty()) {
      auto& [node, done] = open.back();
      if (done < node.inputs().size()) {
        array operand = node.inputs()[done++];
        visit(operand);
      } else {
        order.push_back(std::move(node));
        open.pop_back();
      }
    }
  }
  return order;
}

} // namespace

struct vllm_metal_tape {
  std::vector<mlx::core::Shape> input_shapes;
  std::vector<mlx::core::Dtype> input_dtypes;
  std::vector<array> constants;
  std::vector<Node> nodes;
  size_t num_results = 0;
  // Values are numbered: inputs, constants, results of the nodes.
  std::vector<uint32_t> outputs;

  vllm_metal_tape(
      const std::vector<array>& inputs,
      const std::vector<array>& results) {
    std::unordered_set<uintptr_t> known;
    std::unordered_map<uintptr_t, uint32_t> number;
    for (auto& input : inputs) {
      if (!known.insert(input.id()).second) {
        throw std::invalid_argument("[tape] an array is two inputs.");
      }
      number.emplace(input.id(), number.size());
      input_shapes.push_back(input.shape());
      input_dtypes.push_back(input.dtype());
    }
    auto order = in_order(results, known);

    // Which of them depend on no input, by array: kept as they are.
    std::unordered_map<uintptr_t, const array*> kept;
    std::vector<const array*> live;
    for (auto& node : order) {
      bool fixed = node.siblings().empty();
      if (fixed && node.has_primitive()) {
        for (auto& operand : node.inputs()) {
          fixed = fixed && kept.count(operand.id());
        }
        fixed = fixed && (is_view(node) || node.nbytes() <= max_kept_bytes);
      }
      if (fixed) {
        kept.emplace(node.id(), &node);
      } else {
        live.push_back(&node);
      }
    }
    auto name_constant = [&](const array& value) {
      auto found = kept.find(value.id());
      if (found != kept.end() && number.emplace(value.id(), number.size()).second) {
        constants.push_back(value);
      }
    };
    for (auto node : live) {
      for (auto& operand : node->inputs()) {
        name_constant(operand);
      }
    }
    for (auto& result : results) {
      name_constant(result);
    }

    for (auto node : live) {
      Node recorded{node->primitive_ptr(), {}, {}, {}};
      for (auto& operand : node->inputs()) {
        recorded.operands.push_back(number.at(operand.id()));
      }
      for (auto& output : node->outputs()) {
        number.emplace(output.id(), number.size());
        recorded.shapes.push_back(output.shape());
        recorded.dtypes.push_back(output.dtype());
      }
      num_results += recorded.shapes.size();
      nodes.push_back(std::move(recorded));
    }
    for (auto& result : results) {
      outputs.push_back(number.at(result.id()));
    }
  }

  std::vector<array> replay(const std::vector<array>& inputs) const {
    if (inputs.size() != input_shapes.size()) {
      throw std::invalid_argument("[tape] another number of inputs than was traced.");
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].shape() != input_shapes[i] || inputs[i].dtype() != input_dtypes[i]) {
        throw std::invalid_argument("[tape] an input of another shape or dtype than was traced.");
      }
    }
    std::vector<array> results;
    results.reserve(num_results);
    auto value = [&](uint32_t index) -> const array& {
      if (index < inputs.size()) {
        return inputs[index];
      }
      index -= inputs.size();
      return index < constants.size() ? constants[index] : results[index - constants.size()];
    };
    for (auto& node : nodes) {
      std::vector<array> operands;
      operands.reserve(node.operands.size());
      for (auto index : node.operands) {
        operands.push_back(value(index));
      }
      if (node.shapes.size() == 1) {
        results.emplace_back(
            node.shapes[0], node.dtypes[0], node.primitive, std::move(operands));
        continue;
      }
      auto made = array::make_arrays(node.shapes, node.dtypes, node.primitive, operands);
      results.insert(results.end(), made.begin(), made.end());
    }
    std::vector<array> found;
    found.reserve(outputs.size());
    for (auto index : outputs) {
      found.push_back(value(index));
    }
    return found;
  }
};

// As mlx-c's functions: 0, or 1 after the error handler was told.
extern "C" int vllm_metal_tape_record(
    vllm_metal_tape** out,
    mlx_vector_array inputs,
    mlx_vector_array outputs) {
  try {
    *out = new vllm_metal_tape(mlx_vector_array_get_(inputs), mlx_vector_array_get_(outputs));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

extern "C" int vllm_metal_tape_replay(
    mlx_vector_array* out,
    const vllm_metal_tape* tape,
    mlx_vector_array inputs) {
  try {
    mlx_vector_array_set_(*out, tape->replay(mlx_vector_array_get_(inputs)));
    return 0;
  } catch (std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

extern "C" size_t vllm_metal_tape_num_nodes(const vllm_metal_tape* tape) {
  return tape->nodes.size();
}

extern "C" void vllm_metal_tape_free(vllm_metal_tape* tape) {
  delete tape;
}
