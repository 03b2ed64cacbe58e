# SPDX-License-Identifier: Apache-2.0
"""The text-generation architectures that vLLM registers, and what transformers knows of each."""

from zoo.case import Case


def cases() -> list[Case]:
    """All of vLLM's text-generation architectures, those in both registries first."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm.model_executor.models import registry

    causal: set[str] = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        causal.update([names] if isinstance(names, str) else names)
    known = registry.ModelRegistry.get_supported_archs()
    found = [
        Case(name, name in causal) for name in registry._TEXT_GENERATION_MODELS if name in known
    ]
    return sorted(found, key=lambda case: (not case.in_transformers, case.architecture.lower()))
