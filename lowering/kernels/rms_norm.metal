// SPDX-License-Identifier: Apache-2.0
// y = x / sqrt(mean(x^2) + eps) * w (Zhang & Sennrich 2019), and with a residual r, y of x + r beside
// x + r itself. A threadgroup for each row; the row stays in registers, so it is read once.

threadgroup float partial[SIMDGROUPS];
constexpr int THREADS = SIMDGROUPS * 32;

const int row = threadgroup_position_in_grid.x;
const int first = thread_index_in_threadgroup;
const int width = x_shape[1];

float value[PER_THREAD];
float square = 0.0f;
for (int j = 0; j < PER_THREAD; j++) {
  const int i = first + j * THREADS;
  value[j] = 0.0f;
  if (i < width) {
    value[j] = float(x[row * x_strides[0] + i * x_strides[1]]);
    if (RESIDUAL) {
      value[j] += float(residual[row * residual_strides[0] + i * residual_strides[1]]);
      const T rounded = T(value[j]);
      sum[int64_t(row) * width + i] = rounded;
      if (ROUNDED_SUM) {
        value[j] = float(rounded);
      }
    }
  }
  square += value[j] * value[j];
}
square = threadgroup_sum<SIMDGROUPS>(square, partial, simdgroup_index_in_threadgroup,
                                     thread_index_in_simdgroup);
const float factor = precise::rsqrt(square / float(width) + eps);
for (int j = 0; j < PER_THREAD; j++) {
  const int i = first + j * THREADS;
  if (i < width) {
    const float normal = value[j] * factor;
    out[int64_t(row) * width + i] =
        WEIGHT ? scale_normal<T>(normal, W(weight[i])) : T(normal);
  }
}
// Without a residual the second output is one element that nobody reads.
if (!RESIDUAL && row == 0 && first == 0) {
  sum[0] = T(0.0f);
}
