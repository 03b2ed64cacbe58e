// SPDX-License-Identifier: Apache-2.0
// Attention of at most ROWS query rows a request over the paged cache, for decoding and for checking
// drafted tokens. With s_t = scale * q . k_t and the largest score so far m, the softmax is summed as
// the keys come (Milakov & Gimelshein 2018; Dao et al. 2022):
//     m' = max(m, s_t)    l = l exp(m - m') + exp(s_t - m')    o = o exp(m - m') + exp(s_t - m') v_t
// and the result is o / l. Keys are split over simdgroups, and for long contexts over threadgroups
// too ("Flash-Decoding", Dao et al. 2023), whose sums paged_attention_reduce joins.
//
// One threadgroup serves one KV head of one request: all query heads of the group and all rows meet
// each key while it is in registers. QUERY_SIMDGROUPS simdgroups share the VECTORS = GROUP * ROWS
// queries where they are too many for one's registers; they read the same keys side by side.

constexpr int KEYS = 32 / LANES;  // keys that a simdgroup reads at once, LANES lanes each
constexpr int E = D / LANES;
constexpr int EV = DV / LANES;
constexpr int VECTORS = GROUP * ROWS;
constexpr int SIMDGROUPS = QUERY_SIMDGROUPS * KEY_SIMDGROUPS;

threadgroup float partial_out[KEY_SIMDGROUPS > 1 ? SIMDGROUPS * DV : 1];
threadgroup float partial_max[SIMDGROUPS];
threadgroup float partial_sum[SIMDGROUPS];

const int kv_head = threadgroup_position_in_grid.x;
const int request = threadgroup_position_in_grid.y;
const int split = threadgroup_position_in_grid.z;
const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int num_heads = q_shape[1];
const int num_requests = seq_lens_shape[0];

// Rows behind the last request pad the step: they are given zeros, lest a NaN spreads.
if (request == num_requests) {
  for (int token = query_start[num_requests]; token < q_shape[0]; token++) {
    for (int i = thread_index_in_threadgroup; i < GROUP * DV; i += SIMDGROUPS * 32) {
      const int head = kv_head * GROUP + i / DV;
      out[((int64_t(token) * num_heads + head) * SPLITS + split) * DV + i % DV] = O(0.0f);
    }
    for (int i = thread_index_in_threadgroup; i < GROUP; i += SIMDGROUPS * 32) {
      const int head = kv_head * GROUP + i;
      const int64_t to = ((int64_t(token) * num_heads + head) * SPLITS + split) * 2;
      sums[to] = -MAXFLOAT;
      sums[to + 1] = 0.0f;
    }
  }
  return;
}

const int first_token = query_start[request];
const int rows = min(int(query_start[request + 1]) - first_token, ROWS);
const int length = seq_lens[request];
if (rows <= 0) {
  return;
}

const int part = lane % LANES;                               // which elements of a key
const int query_part = simdgroup / KEY_SIMDGROUPS;           // which queries
const int key_part = simdgroup % KEY_SIMDGROUPS;             // which blocks

float query[PER_SIMDGROUP][E];
float result[PER_SIMDGROUP][EV];
float largest[PER_SIMDGROUP];
float total[PER_SIMDGROUP];
for (int j = 0; j < PER_SIMDGROUP; j++) {
  const int vector = query_part * PER_SIMDGROUP + j;
  const int row = vector / GROUP;
  const int head = kv_head * GROUP + vector % GROUP;
  const bool used = vector < VECTORS && row < rows;
  for (int e = 0; e < E; e++) {
    query[j][e] = used
        ? float(q[(first_token + row) * q_strides[0] + head * q_strides[1] +
                  (part * E + e) * q_strides[2]]) * scale
        : 0.0f;
  }
  for (int e = 0; e < EV; e++) {
    result[j][e] = 0.0f;
  }
  // Finite, so that no difference of two is a NaN.
  largest[j] = -MAXFLOAT;
  total[j] = 0.0f;
}

// Blocks that any row sees, this split's share of them, and of those this simdgroup's.
const int first_key = WINDOW > 0 ? max(0, length - rows - WINDOW + 1) : 0;
const int first_block = first_key / BLOCK;
const int end_block = (length + BLOCK - 1) / BLOCK;
const int share = (end_block - first_block + SPLITS - 1) / SPLITS;
const int begin = first_block + split * share;
const int end = min(end_block, begin + share);

for (int block = begin + key_part; block < end; block += KEY_SIMDGROUPS) {
  const int64_t slot =
      int64_t(block_table[request * block_table_strides[0] + block * block_table_strides[1]]) * BLOCK;
  for (int i = 0; i < BLOCK && block * BLOCK + i < length; i += KEYS) {
    const int key = block * BLOCK + i + lane / LANES;
    const bool exists = key < length;
    const int64_t at = (slot + i + lane / LANES) * cache_strides[0] + kv_head * cache_strides[1];
    float k[E];
    float v[EV];
    for (int e = 0; e < E; e++) {
      k[e] = float(cache[at + part * E + e]);
    }
    // Behind the last token lies anything, and zero times NaN is NaN.
    for (int e = 0; e < EV; e++) {
      v[e] = exists ? float(cache[at + D + part * EV + e]) : 0.0f;
    }
    for (int j = 0; j < PER_SIMDGROUP; j++) {
      const int vector = query_part * PER_SIMDGROUP + j;
      const int row = vector / GROUP;
      if (row >= rows) {
        continue;  // the same for all lanes
      }
      float score = 0.0f;
      for (int e = 0; e < E; e++) {
        score += query[j][e] * k[e];
      }
      if (LANES == 32) {
        score = simd_sum(score);
      } else {
        for (ushort step = LANES / 2; step > 0; step /= 2) {
          score += simd_shuffle_xor(score, step);
        }
      }
      const int position = length - rows + row;
      if (SOFT_CAP) {
        score = soft_cap * precise::tanh(score / soft_cap);
      }
      if (ALIBI) {
        score += alibi_slopes[kv_head * GROUP + vector % GROUP] * float(key - position);
      }
      const bool seen = exists && key <= position && (WINDOW <= 0 || position - key < WINDOW);
      score = seen ? score : -INFINITY;
      const float larger = max(largest[j], score);
      const float keep = fast::exp(largest[j] - larger);
      const float weight = fast::exp(score - larger);
      largest[j] = larger;
      total[j] = total[j] * keep + weight;
      for (int e = 0; e < EV; e++) {
        result[j][e] = result[j][e] * keep + weight * v[e];
      }
    }
  }
}

for (int j = 0; j < PER_SIMDGROUP; j++) {
  const int vector = query_part * PER_SIMDGROUP + j;
  const int row = vector / GROUP;
  const int head = kv_head * GROUP + vector % GROUP;
  const bool used = vector < VECTORS && row < rows;

  // Keys that were read at once, to one sum.
  for (ushort step = LANES; step < 32; step *= 2) {
    const float other = simd_shuffle_xor(largest[j], step);
    const float larger = max(largest[j], other);
    const float keep = fast::exp(largest[j] - larger);
    const float other_keep = fast::exp(other - larger);
    total[j] = total[j] * keep + simd_shuffle_xor(total[j], step) * other_keep;
    for (int e = 0; e < EV; e++) {
      result[j][e] = result[j][e] * keep + simd_shuffle_xor(result[j][e], step) * other_keep;
    }
    largest[j] = larger;
  }

  // Then the simdgroups that share these queries.
  float all_largest = largest[j];
  float all_total = total[j];
  if (KEY_SIMDGROUPS > 1) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane < LANES) {
      for (int e = 0; e < EV; e++) {
        partial_out[simdgroup * DV + part * EV + e] = result[j][e];
      }
    }
    if (lane == 0) {
      partial_max[simdgroup] = largest[j];
      partial_sum[simdgroup] = total[j];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const int from = query_part * KEY_SIMDGROUPS;
    all_largest = partial_max[from];
    for (int i = 1; i < KEY_SIMDGROUPS; i++) {
      all_largest = max(all_largest, partial_max[from + i]);
    }
    all_total = 0.0f;
    for (int i = 0; i < KEY_SIMDGROUPS; i++) {
      all_total += partial_sum[from + i] * fast::exp(partial_max[from + i] - all_largest);
    }
  }
  // A sink is a key of that score and no value (Xiao et al. 2024).
  float denominator = all_total;
  float keep = 1.0f;
  if (SINKS && SPLITS == 1) {
    const float sink = float(sinks[used ? head : 0]);
    const float larger = max(all_largest, sink);
    keep = fast::exp(all_largest - larger);
    denominator = all_total * keep + fast::exp(sink - larger);
  }
  const float factor = SPLITS == 1 ? keep / denominator : 1.0f;
  if (!used || key_part != 0) {
    continue;
  }
  const int64_t to = (int64_t(first_token + row) * num_heads + head) * SPLITS + split;
  if (KEY_SIMDGROUPS > 1) {
    const int from = query_part * KEY_SIMDGROUPS;
    for (int d = lane; d < DV; d += 32) {
      float sum = 0.0f;
      for (int i = 0; i < KEY_SIMDGROUPS; i++) {
        sum += partial_out[(from + i) * DV + d] * fast::exp(partial_max[from + i] - all_largest);
      }
      out[to * DV + d] = O(sum * factor);
    }
  } else if (lane < LANES) {
    for (int e = 0; e < EV; e++) {
      out[to * DV + part * EV + e] = O(result[j][e] * factor);
    }
  }
  if (lane == 0) {
    sums[to * 2] = all_largest;
    sums[to * 2 + 1] = all_total;
  }
}
