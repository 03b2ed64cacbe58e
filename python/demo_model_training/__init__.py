# SPDX-License-Identifier: Apache-2.0
"""Trains the demo model that ships in ``vllm_metal/demo_model`` (see ``train.py``)."""
