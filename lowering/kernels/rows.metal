// SPDX-License-Identifier: Apache-2.0
// What kernels share that give each row a threadgroup.

// The sum over a threadgroup of SIMDGROUPS simdgroups, for every thread. `partial` has SIMDGROUPS
// elements and is free again afterwards.
template <int SIMDGROUPS>
inline float threadgroup_sum(float value, threadgroup float* partial, uint simdgroup, uint lane) {
  value = simd_sum(value);
  if (SIMDGROUPS == 1) {
    return value;
  }
  if (lane == 0) {
    partial[simdgroup] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  value = simd_sum(lane < uint(SIMDGROUPS) ? partial[lane] : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return value;
}

// `normal` times a weight, rounded as the graph rounds: to T before a weight of T, which is what
// vLLM's and MLX's rms_norm do; once where the weight is float32.
template <typename T, typename W>
inline T scale_normal(float normal, W weight) {
  if (metal::is_same_v<T, W>) {
    return T(float(T(normal)) * float(weight));
  }
  return T(normal * float(weight));
}
