// SPDX-License-Identifier: Apache-2.0
// A lazy graph as a list of its nodes, and new graphs of the same nodes on other inputs.
//
// `mx.compile` replays a graph, too: it looks each operand of each node up in a hash table that it
// fills anew every time, which is most of its time per node. A tape numbers the operands once.

#include <algorithm>
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

struct Operand {
  uint32_t value;
  // Whether nobody reads the value later.
  bool last = false;
};

struct Node {
  std::shared_ptr<mlx::core::Primitive> primitive;
  std::vector<Operand> operands;
  // Of each result: more than one for a primitive of several.
  std::vector<mlx::core::Shape> shapes;
  std::vector<mlx::core::Dtype> dtypes;
};

bool is_a(const array& node, const char* name) {
  return node.has_primitive() && std::strcmp(node.primitive().name(), name) == 0;
}

bool is_view(const array& node) {
  for (auto name : {"Broadcast", "ExpandDims", "Slice", "Squeeze", "Transpose"}) {
    if (is_a(node, name)) {
      return true;
    }
  }
  return false;
}

// What a node is made of. A shape that is given to a reshaped array is given to the array at once.
std::vector<array> operands_of(const array& node) {
  auto operands = node.inputs();
  while (is_a(node, "Reshape") && is_a(operands[0], "Reshape")) {
    array inner = operands[0].inputs()[0];
    operands[0] = std::move(inner);
  }
  return operands;
}

// The arrays that lead from the inputs to the outputs, operands first. Of several results of one
// primitive the first one met stands for all.
std::vector<array> in_order(
    const std::vector<array>& outputs,
    std::unordered_set<uintptr_t>& known) {
  std::vector<array> order;
  // With the operands that are not in order yet, the first one last. Not recursive: graphs are deep.
  std::vector<std::pair<array, std::vector<array>>> open;
  auto visit = [&](const array& found) {
    if (known.insert(found.id()).second) {
      for (auto& sibling : found.siblings()) {
        known.insert(sibling.id());
      }
      auto operands = operands_of(found);
      std::reverse(operands.begin(), operands.end());
      open.emplace_back(found, std::move(operands));
    }
  };
  for (auto& output : outputs) {
    visit(output);
    while (!open.empty()) {
      auto& [node, operands] = open.back();
      if (!operands.empty()) {
        array operand = std::move(operands.back());
        operands.pop_back();
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
        for (auto& operand : operands_of(node)) {
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
      for (auto& operand : operands_of(*node)) {
        name_constant(operand);
      }
    }
    for (auto& result : results) {
      name_constant(result);
    }

    for (auto node : live) {
      Node recorded{node->primitive_ptr(), {}, {}, {}};
      for (auto& operand : operands_of(*node)) {
        recorded.operands.push_back({number.at(operand.id())});
      }
      for (auto& output : node->outputs()) {
        number.emplace(output.id(), number.size());
        recorded.shapes.push_back(output.shape());
        recorded.dtypes.push_back(output.dtype());
      }
      num_results += recorded.shapes.size();
      nodes.push_back(std::move(recorded));
    }
    std::unordered_set<uint32_t> read;
    for (auto& result : results) {
      outputs.push_back(number.at(result.id()));
      read.insert(outputs.back());
    }
    for (auto node = nodes.rbegin(); node != nodes.rend(); ++node) {
      for (auto operand = node->operands.rbegin(); operand != node->operands.rend(); ++operand) {
        operand->last = read.insert(operand->value).second;
      }
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
    const size_t num_given = inputs.size() + constants.size();
    auto given = [&](uint32_t index) -> const array& {
      return index < inputs.size() ? inputs[index] : constants[index - inputs.size()];
    };
    for (auto& node : nodes) {
      std::vector<array> operands;
      operands.reserve(node.operands.size());
      for (auto [index, last] : node.operands) {
        if (index < num_given) {
          operands.push_back(given(index));
        } else if (last) {
          operands.push_back(std::move(results[index - num_given]));
        } else {
          operands.push_back(results[index - num_given]);
        }
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
      found.push_back(index < num_given ? given(index) : results[index - num_given]);
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
