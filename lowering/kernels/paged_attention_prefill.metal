// SPDX-License-Identifier: Apache-2.0
// Causal attention of a ragged batch of prompts, whose earlier tokens may lie in the paged cache: the
// step's own keys and values are written there before. FlashAttention (Dao et al. 2022) on matrices of
// 8 x 8: a simdgroup keeps eight queries Q and their results O in registers, and for every eight keys
//     S = Q K^T,   m' = max(m, S),   P = exp(S - m'),   O = diag(exp(m - m')) O + P V
// A threadgroup serves TILE queries of one KV head, rows and heads of its group side by side, so that
// a group's heads meet each key together. Its simdgroups need nothing of each other.
//
// Queries, scores and weights stay float, and each lane owns two neighbours of one row of a matrix, in
// the order that MLX's own attention relies on.

constexpr int MATRICES = 4;  // of eight keys, between two updates of the maximum
constexpr int TILE = 32;
constexpr int SUMS = D / 8 < 4 ? D / 8 : 4;  // of a score: shorter ones round less, and need not wait

const int kv_head = threadgroup_position_in_grid.x;
const int tile = threadgroup_position_in_grid.y;
const int lane = thread_index_in_simdgroup;
const int num_heads = q_shape[1];
const int num_requests = seq_lens_shape[0];
const int request = tiles[tile * 2];

// Rows behind the last request pad the step: they are given zeros, lest a NaN spreads.
if (request == num_requests) {
  for (int token = query_start[num_requests]; token < q_shape[0]; token++) {
    for (int i = thread_index_in_threadgroup; i < GROUP * DV; i += TILE / 8 * 32) {
      const int head = kv_head * GROUP + i / DV;
      out[(int64_t(token) * num_heads + head) * DV + i % DV] = T(0.0f);
    }
  }
  return;
}

const int first_token = query_start[request];
const int rows = query_start[request + 1] - first_token;
const int length = seq_lens[request];
const int first_vector = tiles[tile * 2 + 1] + simdgroup_index_in_threadgroup * 8;
if (first_vector >= rows * GROUP) {
  return;
}

const int quad = lane / 4;
const int matrix_row = (quad & 4) + (lane / 2) % 4;
const int matrix_column = (quad & 2) * 2 + (lane % 2) * 2;

// The query that this lane's row of every matrix belongs to.
const int vector = first_vector + matrix_row;
const bool used = vector < rows * GROUP;
const int row = vector / GROUP;
const int head = kv_head * GROUP + vector % GROUP;
const int position = length - rows + row;

simdgroup_matrix<float, 8, 8> query[D / 8];
simdgroup_matrix<float, 8, 8> result[DV / 8];
for (int d = 0; d < D / 8; d++) {
  for (int k = 0; k < 2; k++) {
    const int64_t at = (first_token + row) * q_strides[0] + head * q_strides[1] +
        (d * 8 + matrix_column + k) * q_strides[2];
    query[d].thread_elements()[k] = used ? float(q[used ? at : 0]) * scale : 0.0f;
  }
}
for (int d = 0; d < DV / 8; d++) {
  result[d] = simdgroup_matrix<float, 8, 8>(0.0f);
}
// Finite, so that no difference of two is a NaN.
float largest = -MAXFLOAT;
float total = 0.0f;  // of this lane's columns

// Keys that any of the eight queries sees; blocks hold a multiple of eight.
const int last_row = min(rows - 1, (first_vector + 7) / GROUP);
const int end = length - rows + last_row + 1;
const int first_position = length - rows + first_vector / GROUP;
const int begin = WINDOW > 0 ? max(0, first_position - WINDOW + 1) / 8 * 8 : 0;

for (int step = begin; step < end; step += 8 * MATRICES) {
  float score[MATRICES][2];
  int64_t at[MATRICES];
  float larger = largest;
  for (int m = 0; m < MATRICES; m++) {
    const int first_key = step + m * 8;
    score[m][0] = score[m][1] = -INFINITY;
    if (first_key >= end) {
      continue;  // the same for all lanes
    }
    const int64_t block = block_table[request * block_table_strides[0] +
                                      first_key / BLOCK * block_table_strides[1]];
    at[m] = (block * BLOCK + first_key % BLOCK) * cache_strides[0] + kv_head * cache_strides[1];
    simdgroup_matrix<float, 8, 8> sums[SUMS];
    for (int s = 0; s < SUMS; s++) {
      sums[s] = simdgroup_matrix<float, 8, 8>(0.0f);
    }
    for (int d = 0; d < D / 8; d++) {
      simdgroup_matrix<T, 8, 8> stored;
      simdgroup_load(stored, cache + at[m] + d * 8, cache_strides[0], ulong2(0, 0), true);
      simdgroup_matrix<float, 8, 8> keys;
      for (int k = 0; k < 2; k++) {
        keys.thread_elements()[k] = float(stored.thread_elements()[k]);
      }
      simdgroup_multiply_accumulate(sums[d % SUMS], query[d], keys, sums[d % SUMS]);
    }
    for (int k = 0; k < 2; k++) {
      const int key = first_key + matrix_column + k;
      float value = 0.0f;
      for (int s = 0; s < SUMS; s++) {
        value += sums[s].thread_elements()[k];
      }
      if (SOFT_CAP) {
        value = soft_cap * precise::tanh(value / soft_cap);
      }
      if (ALIBI) {
        value += alibi_slopes[used ? head : 0] * float(key - position);
      }
      const bool seen = key <= position && (WINDOW <= 0 || position - key < WINDOW);
      score[m][k] = seen ? value : -INFINITY;
      larger = max(larger, score[m][k]);
    }
  }
  // The four lanes of a row.
  larger = max(larger, simd_shuffle_xor(larger, 1));
  larger = max(larger, simd_shuffle_xor(larger, 8));
  const float keep = fast::exp(largest - larger);
  largest = larger;
  total *= keep;
  for (int d = 0; d < DV / 8; d++) {
    for (int k = 0; k < 2; k++) {
      result[d].thread_elements()[k] *= keep;
    }
  }
  for (int m = 0; m < MATRICES; m++) {
    const int first_key = step + m * 8;
    if (first_key >= end) {
      continue;
    }
    simdgroup_matrix<float, 8, 8> weights;
    for (int k = 0; k < 2; k++) {
      const float weight = fast::exp(score[m][k] - larger);
      total += weight;
      weights.thread_elements()[k] = weight;
    }
    // Behind the last token lies anything, and zero times NaN is NaN.
    const bool exists = first_key + matrix_row < length;
    for (int d = 0; d < DV / 8; d++) {
      simdgroup_matrix<T, 8, 8> stored;
      simdgroup_load(stored, cache + at[m] + D + d * 8, cache_strides[0]);
      simdgroup_matrix<float, 8, 8> values;
      for (int k = 0; k < 2; k++) {
        values.thread_elements()[k] = exists ? float(stored.thread_elements()[k]) : 0.0f;
      }
      simdgroup_multiply_accumulate(result[d], weights, values, result[d]);
    }
  }
}

total += simd_shuffle_xor(total, 1);
total += simd_shuffle_xor(total, 8);
float factor = 1.0f / total;
if (SINKS) {
  // A key of that score and no value (Xiao et al. 2024).
  const float sink = float(sinks[used ? head : 0]);
  const float larger = max(largest, sink);
  const float keep = fast::exp(largest - larger);
  factor = keep / (total * keep + fast::exp(sink - larger));
}
if (used) {
  const int64_t to = (int64_t(first_token + row) * num_heads + head) * DV;
  for (int d = 0; d < DV / 8; d++) {
    for (int k = 0; k < 2; k++) {
      out[to + d * 8 + matrix_column + k] = T(result[d].thread_elements()[k] * factor);
    }
  }
}
