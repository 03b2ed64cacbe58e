// SPDX-License-Identifier: Apache-2.0
// From the rows of a merged projection (query heads, key heads, value heads): queries and keys, RMS
// normalised head by head where the model does so, their first R elements rotated (Su et al. 2021),
//     y_a = x_a cos - x_b sin,   y_b = x_b cos + x_a sin,
// and the rows that the paged cache takes, in which a head's keys and values lie side by side: one
// scatter writes both.
//
// A simdgroup for each head of each token. A lane computes a rotated pair's other element again, from
// the cache, which spares an exchange that would depend on the style.

const int lane = thread_position_in_threadgroup.x;
const int head = thread_position_in_grid.y;
const int token = thread_position_in_grid.z;
const int kv_row = D + DV;
const int keys_end = HEADS + KV_HEADS;

if (head >= keys_end) {
  const int kv_head = head - keys_end;
  const int64_t from = token * qkv_strides[0] + (keys_end * D + kv_head * DV) * qkv_strides[1];
  const int64_t to = (int64_t(token) * KV_HEADS + kv_head) * kv_row + D;
  for (int i = lane; i < DV; i += 32) {
    rows[to + i] = T(qkv[from + i * qkv_strides[1]]);
  }
  return;
}

const bool is_query = head < HEADS;
const int64_t from = token * qkv_strides[0] + head * D * qkv_strides[1];
const int64_t step = qkv_strides[1];
float factor = 1.0f;
if (NORM) {
  float square = 0.0f;
  for (int i = lane; i < D; i += 32) {
    const float value = float(qkv[from + i * step]);
    square += value * value;
  }
  factor = precise::rsqrt(simd_sum(square) / float(D) + eps);
}

for (int i = lane; i < D; i += 32) {
  // Which element this one is rotated with, and by which angle.
  int other = i;
  int angle = 0;
  bool is_first = true;
  if (i < R) {
    if (STYLE == 1) {  // GPT-J: neighbours
      is_first = i % 2 == 0;
      other = is_first ? i + 1 : i - 1;
      angle = i / 2;
    } else {  // GPT-NeoX: halves; STYLE 2 has an angle for each element of both
      is_first = i < R / 2;
      other = is_first ? i + R / 2 : i - R / 2;
      angle = STYLE == 2 || is_first ? i : other;
    }
  }
  float x = float(qkv[from + i * step]);
  float y = float(qkv[from + other * step]);
  if (NORM) {
    const W x_weight = is_query ? q_weight[i] : k_weight[i];
    const W y_weight = is_query ? q_weight[other] : k_weight[other];
    x = float(scale_normal<T>(x * factor, x_weight));
    y = float(scale_normal<T>(y * factor, y_weight));
  }
  if (i < R) {
    const float c = float(cos[token * cos_strides[0] + angle * cos_strides[1]]);
    const float s = float(sin[token * sin_strides[0] + angle * sin_strides[1]]);
    x = is_first ? x * c - y * s : x * c + y * s;
  }
  if (is_query) {
    q[(int64_t(token) * HEADS + head) * D + i] = T(x);
  } else {
    rows[(int64_t(token) * KV_HEADS + head - HEADS) * kv_row + i] = T(x);
  }
}
