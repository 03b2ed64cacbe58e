# SPDX-License-Identifier: Apache-2.0
"""The text architectures that vLLM runs: what it registers, and what transformers has."""

from collections.abc import Iterable

from zoo.case import Case, Part


def cases() -> list[Case]:
    """All of them, part by part."""
    from vllm.model_executor.models import registry

    known = registry.ModelRegistry.get_supported_archs()
    generate = registry._TEXT_GENERATION_MODELS.keys() & known
    causal = _causal()
    return [
        *_of(Part.BOTH, generate & causal),
        *_of(Part.VLLM, generate - causal),
        *_of(Part.TRANSFORMERS, filter(_has_back_end, causal - known)),
        *_of(Part.POOLED, _pooling()),
    ]


def _of(part: Part, names: Iterable[str]) -> list[Case]:
    return [Case(name, part) for name in sorted(names, key=str.lower)]


def _causal() -> set[str]:
    """What transformers has to generate text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names: set[str] = set()
    for listed in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        names.update([listed] if isinstance(listed, str) else listed)
    return names


def _has_back_end(name: str) -> bool:
    """Whether vLLM runs transformers' own class of a text model with its attention in it."""
    import transformers

    model_class = getattr(transformers, name, None)
    return (
        model_class is not None
        and model_class.is_backend_compatible()
        and not model_class.config_class.sub_configs
    )


def _pooling() -> set[str]:
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
    return names | classifiers
