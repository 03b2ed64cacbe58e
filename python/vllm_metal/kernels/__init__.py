# SPDX-License-Identifier: Apache-2.0
"""Metal kernels: their contracts, what each computes in float64, and the check of both against each
other on the user's machine."""
