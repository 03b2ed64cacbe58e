// SPDX-License-Identifier: Apache-2.0
// Philox-4x32-10 (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3): four random words
// of a counter and a key, without state.
inline uint4 philox(uint4 counter, uint2 key) {
  for (int round = 0; round < 10; round++) {
    const uint high_x = mulhi(0xD2511F53u, counter.x);
    const uint high_z = mulhi(0xCD9E8D57u, counter.z);
    counter = uint4(high_z ^ counter.y ^ key.x, 0xCD9E8D57u * counter.z,
                    high_x ^ counter.w ^ key.y, 0xD2511F53u * counter.x);
    key = uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
  }
  return counter;
}
