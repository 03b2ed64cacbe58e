# SPDX-License-Identifier: Apache-2.0
"""Conformance of the lowered ATen operators, by PyTorch's own operator database."""
