// SPDX-License-Identifier: Apache-2.0
// A token for each request from its logits, with its own temperature, min-p, top-k, top-p and seed.
//
// Kept are the tokens with x >= largest + temperature * log(min_p), fewer than top_k larger ones, and
// less than top_p of the kept mass in larger ones; of equal logits all are kept. Both bounds are found
// without sorting: the amount (count, or mass of exp(x / temperature)) of what is larger than a bound
// falls with the bound, so a search over the 32 bits of ordered floats, four at a time, ends at the
// smallest bound that keeps it below the limit.
//
// Among the kept, argmax(x / temperature - log(-log u)) is a sample of the softmax (Gumbel 1954;
// Maddison et al. 2014), with u from a counter of the token's index and the request's step.

constexpr int THREADS = SIMDGROUPS * 32;
constexpr int PIVOTS = 15;
threadgroup float partial[SIMDGROUPS * PIVOTS];
threadgroup int partial_index[SIMDGROUPS];

const int request = threadgroup_position_in_grid.x;
const int first = thread_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int vocab = logits_shape[1];
const int64_t row = request * logits_strides[0];
const int64_t step = logits_strides[1];
const float heat = temperature[request];
const bool is_random = heat > 0.0f;

float largest = -INFINITY;
for (int i = first; i < vocab; i += THREADS) {
  largest = max(largest, clean_logit(float(logits[row + i * step])));
}
largest = simd_max(largest);
if (lane == 0) {
  partial[simdgroup] = largest;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
largest = simd_max(lane < SIMDGROUPS ? partial[lane] : -INFINITY);
threadgroup_barrier(mem_flags::mem_threadgroup);

uint bound = 0;
if (is_random && min_p[request] > 0.0f) {
  bound = ordered_bits(largest + heat * precise::log(min_p[request]));
}
for (int stage = 0; stage < 2; stage++) {
  const bool by_mass = stage == 1;
  const bool is_limited = by_mass ? top_p[request] < 1.0f
                                  : top_k[request] > 0 && top_k[request] < vocab;
  if (!is_random || !is_limited) {
    continue;  // the same for all threads
  }
  float limit = float(top_k[request]);
  if (by_mass) {
    float mass = 0.0f;
    for (int i = first; i < vocab; i += THREADS) {
      const float x = clean_logit(float(logits[row + i * step]));
      mass += ordered_bits(x) >= bound ? precise::exp((x - largest) / heat) : 0.0f;
    }
    mass = simd_sum(mass);
    if (lane == 0) {
      partial[simdgroup] = mass;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    mass = simd_sum(lane < SIMDGROUPS ? partial[lane] : 0.0f);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    limit = max(top_p[request] * mass, 1e-30f);  // the largest is always kept
  }
  uint low = 0;
  for (int shift = 28; shift >= 0; shift -= 4) {
    // Amounts above the last number of each sixteenth of what is left, but the last.
    float amount[PIVOTS];
    for (int j = 0; j < PIVOTS; j++) {
      amount[j] = 0.0f;
    }
    for (int i = first; i < vocab; i += THREADS) {
      const float x = clean_logit(float(logits[row + i * step]));
      const uint bits = ordered_bits(x);
      const float weight = by_mass ? precise::exp((x - largest) / heat) : 1.0f;
      for (int j = 0; j < PIVOTS; j++) {
        amount[j] += bits > low + (uint(j + 1) << shift) - 1 ? weight : 0.0f;
      }
    }
    for (int j = 0; j < PIVOTS; j++) {
      const float sum = simd_sum(amount[j]);
      if (lane == 0) {
        partial[simdgroup * PIVOTS + j] = sum;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float sum = 0.0f;
    for (int s = 0; s < SIMDGROUPS && lane < PIVOTS; s++) {
      sum += partial[s * PIVOTS + lane];
    }
    low += uint(simd_sum(lane < PIVOTS && sum >= limit ? 1 : 0)) << shift;
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  bound = max(bound, low);
}

float best = -INFINITY;
int best_index = vocab;
const uint2 key = uint2(seeds[request * 2], seeds[request * 2 + 1]);
for (int block = first; block * 4 < vocab; block += THREADS) {
  const uint4 words = philox(uint4(uint(block), steps[request], 0, 0), key);
  for (int e = 0; e < 4; e++) {
    const int i = block * 4 + e;
    if (i < vocab) {
      const float x = clean_logit(float(logits[row + i * step]));
      float score = x;
      if (is_random) {
        // 23 bits and a half: a float has them all, so that u is never 1.
        const float u = (float(words[e] >> 9) + 0.5f) * 1.1920929e-7f;  // 2^-23
        score = ordered_bits(x) >= bound
            ? (x - largest) / heat - precise::log(-precise::log(u))
            : -INFINITY;
      }
      if (score > best) {
        best = score;
        best_index = i;
      }
    }
  }
}
// The largest, of equal ones the first.
const float lane_best = simd_max(best);
best_index = simd_min(best == lane_best ? best_index : vocab);
if (lane == 0) {
  partial[simdgroup] = lane_best;
  partial_index[simdgroup] = best_index;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (first == 0) {
  for (int s = 0; s < SIMDGROUPS; s++) {
    const bool is_better = s == 0 || partial[s] > best ||
        (partial[s] == best && partial_index[s] < best_index);
    if (is_better) {
      best = partial[s];
      best_index = partial_index[s];
    }
  }
  // Without any finite logit, token 0.
  tokens[request] = best_index < vocab ? best_index : 0;
}
