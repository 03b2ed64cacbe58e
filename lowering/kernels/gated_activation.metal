// SPDX-License-Identifier: Apache-2.0
// y = f(gate) * up (Shazeer 2020), gate and up being the halves of a merged projection's rows. Each
// thread makes PER_THREAD neighbours.

const int row = thread_position_in_grid.y;
const int width = x_shape[1] / 2;
const int first = thread_position_in_grid.x * PER_THREAD;
for (int j = 0; j < PER_THREAD; j++) {
  const int i = first + j;
  if (i < width) {
    const float gate = float(x[row * x_strides[0] + i * x_strides[1]]);
    const float up = float(x[row * x_strides[0] + (width + i) * x_strides[1]]);
    out[int64_t(row) * width + i] = T(activate<FUNCTION>(gate) * up);
  }
}
