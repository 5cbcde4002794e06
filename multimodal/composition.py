"""Build a composite from parts: `compose(vision=…, audio=…, backbone=…)`.

The parts keep their weights, the joints start random: align them by training before use.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoders.errors import IncompatibleModel, InvalidMessage, ModelNotFound

if TYPE_CHECKING:
    from encoders.vision import VisionTower
    from multimodal.modeling import MultimodalForConditionalGeneration
    from multimodal.processing import MultimodalProcessor
    from multimodal.sparse import SparsityConfig

logger = logging.getLogger(__name__)

_TOKENS_PER_VIEW = 64
_FAR = 4  # times more or fewer


@dataclass(frozen=True)
class Joints:
    """How features become tokens of the backbone.

    `vision_factor` squared patches become one token, joined ("shuffle") or averaged ("pool"); None
    takes the factor that leaves about 64 tokens a picture, and averages where joining cannot.
    `audio_stack` frames become one token.
    """

    vision_factor: int | None = None
    vision_reduction: Literal["shuffle", "pool"] = "shuffle"
    audio_stack: int = 4

    def __post_init__(self) -> None:
        if self.vision_reduction not in ("shuffle", "pool"):
            raise InvalidMessage(
                f"vision_reduction is {self.vision_reduction!r}; use 'shuffle' or 'pool'"
            )
        for name, value in (
            ("vision_factor", self.vision_factor),
            ("audio_stack", self.audio_stack),
        ):
            if value is not None and value < 1:
                raise InvalidMessage(f"{name} is {value}; use 1 or more")


def compose(
    vision: str | None = None,
    audio: str | None = None,
    backbone: str | Path = "",
    *,
    findings: Sequence[tuple[str, bool]] = (),
    sparsity: SparsityConfig | None = None,
    view_profile: str = "crossread-ct",
    joints: Joints | None = None,
) -> tuple[MultimodalForConditionalGeneration, MultimodalProcessor]:
    """A composite of a causal language model and the towers named, and its processor.

    Args:
        vision: tower spec, see `encoders.vision.build_vision_tower`; None for no sight.
        audio: tower spec, see `encoders.audio.build_audio_tower`; None for no hearing.
        backbone: folder or Hub id of any causal LM of transformers, dense or MoE.
        findings: (name, has sides) pairs for a finding head; none by default.
        sparsity: dynamic sparse activation for a dense backbone.
        view_profile: how a DICOM volume becomes pictures.
        joints: token reduction of the projectors.

    Raises:
        UnknownSpec, ModelNotFound, IncompatibleModel: naming the part that failed.
    """
    from encoders.audio import build_audio_tower
    from encoders.dicom.views import PROFILES
    from encoders.vision import build_vision_tower
    from multimodal.configuration import MultimodalConfig
    from multimodal.modeling import MultimodalForConditionalGeneration, Parts
    from multimodal.processing import MultimodalProcessor, senses_of
    from multimodal.sparse import sparse_mlps

    joints = joints or Joints()
    language_model, tokenizer = _load_backbone(backbone)
    ids = _add_special_tokens(language_model, tokenizer)
    vision_tower = build_vision_tower(vision) if vision else None
    audio_tower = build_audio_tower(audio) if audio else None
    if view_profile not in PROFILES:
        raise IncompatibleModel(f"no view profile {view_profile!r}; there are {sorted(PROFILES)}")
    attention = language_model.config._attn_implementation
    view_size = PROFILES[view_profile].size
    if view_size is None:
        raise IncompatibleModel(
            f"view profile {view_profile!r} keeps each slice's own size; a composite needs one size"
        )
    factor, reduction = joints.vision_factor or 1, str(joints.vision_reduction)
    if vision_tower is not None and joints.vision_factor is None:
        factor, reduction = _reduction(vision_tower, reduction)
    config = MultimodalConfig(
        text_config=language_model.config,
        vision_config=vision_tower.to_dict() if vision_tower else None,
        audio_config=audio_tower.to_dict() if audio_tower else None,
        vision_factor=factor if vision_tower else 1,
        vision_reduction=reduction,
        audio_stack=joints.audio_stack,
        findings=list(findings) if vision_tower else None,
        sparsity=sparsity.to_dict() if sparsity else None,
        view_profile=view_profile,
        view_size=view_size,
        **ids,
    )
    parts = Parts(language_model, vision_tower, audio_tower)
    model = MultimodalForConditionalGeneration(config, parts)
    # becoming part of another config unset it, and attention unset is attention without a mask
    language_model.set_attn_implementation(attention)
    model.generation_config = language_model.generation_config
    model.to(language_model.dtype)
    if sparsity is not None and not sparse_mlps(model):
        logger.info("the backbone's experts are sparse already: sparsity is not applied")
        config.sparsity = None
    logger.info("the projectors start random: align this composite before relying on it")
    return model.eval(), MultimodalProcessor(tokenizer, senses_of(config))


def _load_backbone(backbone: str | Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(backbone, dtype="auto")
        return model, AutoTokenizer.from_pretrained(backbone)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"backbone {str(backbone)!r} cannot be loaded ({str(error).splitlines()[0]});"
            " give a folder with a causal language model and its tokenizer, or a Hub id"
        ) from error


def _add_special_tokens(model: Any, tokenizer: Any) -> dict[str, int]:
    """Make room for the placeholder tokens; returns their ids under the config's names."""
    from multimodal.processing import AUDIO, IMAGE, REGION, SPECIAL_TOKENS

    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(SPECIAL_TOKENS)}, replace_extra_special_tokens=False
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    convert = tokenizer.convert_tokens_to_ids
    names = {"image_token_id": IMAGE, "region_token_id": REGION, "audio_token_id": AUDIO}
    return {name: convert(token) for name, token in names.items()}


def _reduction(tower: VisionTower, wanted: str) -> tuple[int, str]:
    """Factor and kind of the reduction that comes nearest to 64 tokens a picture, by ratio.

    Patches are joined where a factor divides the grid; of a grid that no factor brings near, such
    as the 37 x 37 of DINOv2 at 518 pixels, their mean is taken.
    """
    rows, columns = tower.grid

    def distance(k: int) -> float:
        return abs(log((rows // k) * (columns // k) / _TOKENS_PER_VIEW))

    factors = range(1, min(rows, columns) + 1)
    dividing = min((k for k in factors if rows % k == columns % k == 0), key=distance)
    if wanted == "shuffle" and distance(dividing) <= log(_FAR):
        return dividing, wanted
    return min(factors, key=distance), "pool"
