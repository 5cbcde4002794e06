"""Messages in, tokens out: the composite model, its processor, sparsity and backends.

`register()` makes the Auto classes and `transformers.pipeline("any-to-any")` know the composite;
it runs when a name of this package is first asked for. Importing the package alone stays light.
"""

from __future__ import annotations

from typing import Any

_LAZY = {
    "MultimodalConfig": "multimodal.configuration",
    "MultimodalProcessor": "multimodal.processing",
    "MultimodalForConditionalGeneration": "multimodal.modeling",
    "compose": "multimodal.composition",
    "load_backend": "multimodal.backends",
}

__all__ = [*_LAZY, "register"]


def register() -> None:
    """Register the composite with transformers' Auto classes (idempotent)."""
    from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    from multimodal.configuration import MultimodalConfig
    from multimodal.modeling import MultimodalForConditionalGeneration
    from multimodal.processing import MultimodalProcessor

    name = MultimodalConfig.model_type
    AutoConfig.register(name, MultimodalConfig, exist_ok=True)
    AutoProcessor.register(MultimodalConfig, MultimodalProcessor, exist_ok=True)
    AutoModelForMultimodalLM.register(
        MultimodalConfig, MultimodalForConditionalGeneration, exist_ok=True
    )
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[name] = MultimodalForConditionalGeneration.__name__


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'multimodal' has no attribute {name!r}")
    from importlib import import_module

    register()
    return getattr(import_module(_LAZY[name]), name)
