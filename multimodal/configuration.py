"""Configuration of a composite: which towers, which backbone, how they are joined.

Towers are described by what `VisionTower.to_dict` and `AudioTower.to_dict` write, the backbone by
its own transformers config; everything is JSON.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from multimodal.prompts import Side, sided_keys


class MultimodalConfig(PreTrainedConfig):
    """A composite of up to two towers and a causal language model.

    Attributes:
        text_config: the backbone's config (any dense or MoE causal LM of transformers).
        vision_config, audio_config: tower configs, None where the composite lacks the sense.
        image_token_id, region_token_id, audio_token_id: placeholders the features replace.
        vision_reduction: "shuffle" joins, "pool" averages `vision_factor` squared patches a token.
        audio_stack: encoder frames joined into one token.
        view_profile: name in `encoders.dicom.views.PROFILES` that turns a volume into pictures.
        view_size: side of those pictures in pixels.
        findings: [name, has sides] pairs the finding head knows; empty without such a head.
        neighbours: width of what patches learn from those around them before it; 0 for nothing.
        sparsity: `multimodal.sparse.SparsityConfig` as a dict, None for a dense backbone.
        choice_calibration: of given choices, by the first of them: a temperature that divides their
            scores (Guo et al. 2017) and an offset that is then added to the first one's (Platt 1999),
            so that their probabilities come true as often as they say. Fitted on studies kept aside,
            in which a finding is as rare as it is.
        review_weights: `multimodal.review.ReviewWeights` as a dict, fitted on the same studies; None
            where a sentence is judged by what is said of it alone.
    """

    model_type = "crossread"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (transformers' own convention)

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | None = None
    audio_config: dict[str, Any] | None = None
    image_token_id: int | None = None
    region_token_id: int | None = None
    audio_token_id: int | None = None
    vision_reduction: str = "shuffle"
    vision_factor: int = 2
    audio_stack: int = 4
    view_profile: str = "crossread-ct"
    view_size: int = 96
    findings: list[Any] | None = None
    neighbours: int = 0
    sparsity: dict[str, Any] | None = None
    choice_calibration: dict[str, tuple[float, float]] | None = None
    review_weights: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            values = dict(self.text_config)
            self.text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        self.findings = [tuple(pair) for pair in self.findings or ()]
        super().__post_init__(**kwargs)

    @property
    def regions(self) -> list[tuple[str, Side | None]]:
        """(finding, side) in the order of the region tokens of a study."""
        return sided_keys(self.findings or ())

    @property
    def tokens_per_view(self) -> int:
        """Tokens that one picture takes in the prompt."""
        rows, columns = (self.vision_config or {"grid": (0, 0)})["grid"]
        return (rows // self.vision_factor) * (columns // self.vision_factor)
