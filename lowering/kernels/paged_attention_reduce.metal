// SPDX-License-Identifier: Apache-2.0
// Joins the splits of paged_attention_decode: with the largest score m_i, the sum l_i and the
// unnormalised result o_i of split i, and M = max m_i,
//     out = sum_i exp(m_i - M) o_i / (sum_i exp(m_i - M) l_i + exp(sink - M))
// One simdgroup for each token and head.

const int head = threadgroup_position_in_grid.x;
const int token = threadgroup_position_in_grid.y;
const int num_heads = partial_shape[1];
const int64_t at = (int64_t(token) * num_heads + head) * SPLITS;

float largest = -MAXFLOAT;
for (int i = 0; i < SPLITS; i++) {
  largest = max(largest, sums[(at + i) * 2]);
}
if (SINKS) {
  largest = max(largest, float(sinks[head]));
}
float total = SINKS ? fast::exp(float(sinks[head]) - largest) : 0.0f;
for (int i = 0; i < SPLITS; i++) {
  total += sums[(at + i) * 2 + 1] * fast::exp(sums[(at + i) * 2] - largest);
}
// A row that pads the step has seen no key.
const float factor = total > 0.0f ? 1.0f / total : 0.0f;
for (int d = thread_index_in_simdgroup; d < DV; d += 32) {
  float sum = 0.0f;
  for (int i = 0; i < SPLITS; i++) {
    sum += partial[(at + i) * DV + d] * fast::exp(sums[(at + i) * 2] - largest);
  }
  out[(int64_t(token) * num_heads + head) * DV + d] = T(sum * factor);
}
