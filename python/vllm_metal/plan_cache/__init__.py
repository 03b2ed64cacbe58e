# SPDX-License-Identifier: Apache-2.0
"""Plans on disk: a model that was captured and lowered once is not captured again."""

from vllm_metal.plan_cache.key import Key, plan_key
from vllm_metal.plan_cache.store import Entry, PlanCache

__all__ = ["Entry", "Key", "PlanCache", "plan_key"]
