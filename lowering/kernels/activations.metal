// SPDX-License-Identifier: Apache-2.0
// Activation functions of float. Metal has no error function.

// exp(z^2) erfc(z) for z >= 0: with u = (z - 2) / (z + 2), a polynomial of degree 10 in u that
// interpolates (1 + 2 z) exp(z^2) erfc(z) at Chebyshev points; its relative error is below 8e-8.
inline float scaled_erfc(float z) {
  const float u = (z - 2.0f) / (z + 2.0f);
  float p = 0.000165853081f;
  p = p * u - 0.000182491203f;
  p = p * u - 0.00140832987f;
  p = p * u + 0.00104050616f;
  p = p * u + 0.00870020041f;
  p = p * u - 0.00794072219f;
  p = p * u - 0.0542158973f;
  p = p * u + 0.164035276f;
  p = p * u - 0.166030605f;
  p = p * u - 0.092763039f;
  p = p * u + 1.27697838f;
  return p / (1.0f + 2.0f * z);
}

// x Phi(x) = x erfc(-x / sqrt 2) / 2, from the tail's side so that no digits cancel.
inline float gelu(float x) {
  const float z = fabs(x) * 0.70710678f;
  const float tail = 0.5f * scaled_erfc(z) * precise::exp(-z * z);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

inline float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + precise::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
}

inline float silu(float x) {
  return x / (1.0f + precise::exp(-x));
}

// By the number that contracts use: 0 SiLU, 1 GELU, 2 its tanh approximation, 3 ReLU.
template <int FUNCTION>
inline float activate(float x) {
  return FUNCTION == 0 ? silu(x)
      : FUNCTION == 1  ? gelu(x)
      : FUNCTION == 2  ? gelu_tanh(x)
                       : max(x, 0.0f);
}
