// SPDX-License-Identifier: Apache-2.0
// y = cap tanh(x / cap), of logits (Gemma 2). Each thread makes PER_THREAD neighbours.

const int row = thread_position_in_grid.y;
const int width = x_shape[1];
const int first = thread_position_in_grid.x * PER_THREAD;
for (int j = 0; j < PER_THREAD; j++) {
  const int i = first + j;
  if (i < width) {
    const float value = float(x[row * x_strides[0] + i * x_strides[1]]);
    out[int64_t(row) * width + i] = T(cap * precise::tanh(value / cap));
  }
}
