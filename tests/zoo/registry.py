# SPDX-License-Identifier: Apache-2.0
"""The text architectures that vLLM registers, and what transformers knows of each."""

from zoo.case import Case


def cases() -> list[Case]:
    """All that vLLM runs: those that generate text, in both registries first, then those that
    pool."""
    return [*_generating(), *_pooling()]


def _generating() -> list[Case]:
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


def _pooling() -> list[Case]:
    """Of vLLM's models that pool text those that transformers has, and classifiers with the body of
    one that generates, which vLLM makes of it."""
    import transformers
    from vllm.model_executor.models import registry

    generate = registry._TEXT_GENERATION_MODELS
    known = {
        *registry._EMBEDDING_MODELS,
        *registry._LATE_INTERACTION_MODELS,
        *registry._REWARD_MODELS,
        *registry._TOKEN_CLASSIFICATION_MODELS,
        *registry._SEQUENCE_CLASSIFICATION_MODELS,
    }
    of_images = {
        name
        for name in known
        if (model := registry.ModelRegistry._try_inspect_model_cls(name)) is None
        or model.supports_multimodal
    }
    suffix = "ForSequenceClassification"
    classifiers = {
        name
        for name in dir(transformers)
        if name.endswith(suffix) and f"{name.removesuffix(suffix)}ForCausalLM" in generate
    }
    names = {name for name in known if hasattr(transformers, name)} - of_images - generate.keys()
    return [Case(name, True, pools=True) for name in sorted(names | classifiers, key=str.lower)]
