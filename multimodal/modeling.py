"""The composite: towers, projectors and a causal language model as one transformers model.

Media become embeddings once (`embed`), in place of their placeholder tokens; from there on it is
the backbone's own forward and `generate`. Knows no text and no files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from encoders.audio import AudioTower
from encoders.audio import tower_from_config as audio_tower_from_config
from encoders.errors import (
    ContextOverflow,
    IncompatibleModel,
    InputError,
    InvalidPixels,
    PlaceholderMismatch,
    UnreadableAudio,
)
from encoders.vision import VisionTower
from encoders.vision import tower_from_config as vision_tower_from_config
from multimodal.configuration import MultimodalConfig
from multimodal.projectors import (
    AudioProjector,
    FindingHead,
    Neighbours,
    RegionHead,
    RegionProjector,
    Regions,
    SliceProjector,
    gather_regions,
    patch_volumes_mm3,
    token_centres_mm,
)
from multimodal.sparse import SparsityConfig, sparsify

_SIGNS = {"right": -1, "left": 1, None: 0}
_MEDIA = ("pixel_values", "image_geometry", "image_study", "input_features", "feature_lengths")


@dataclass(frozen=True)
class Parts:
    """Parts with weights that a new composite takes over."""

    language_model: PreTrainedModel | None = None
    vision_tower: VisionTower | None = None
    audio_tower: AudioTower | None = None


class MultimodalForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A language model that reads pictures, volumes and speech between its words.

    Media arguments, of `forward` as of `generate`:
        pixel_values: `[n, channels, H, W]`, every picture of the batch in prompt order.
        image_geometry: `[n, 11]` as `encoders.dicom.views.make_views` writes it; zeros for
            pictures that are not slices.
        image_study: `[n]`, which study of the batch a picture belongs to; -1 for none.
        input_features: `[m, mel, frames]` log-mel stretches in prompt order, zero-padded.
        feature_lengths: `[m]`, frames of each that are sound.
    """

    config_class = MultimodalConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MultimodalConfig, parts: Parts | None = None) -> None:
        """`parts` bring weights of their own; without them everything is drawn from `config`."""
        super().__init__(config)
        given = parts or Parts()
        text: Any = config.text_config
        hidden = text.hidden_size
        self.language_model = given.language_model or AutoModelForCausalLM.from_config(
            config.text_config
        )
        if config.sparsity is not None:
            sparsify(self.language_model, SparsityConfig.from_dict(config.sparsity))
        if config.vision_config is not None:
            tower = given.vision_tower or vision_tower_from_config(config.vision_config)
            self.vision_tower = tower
            self.vision_projector = SliceProjector(
                tower.width,
                hidden,
                tower.grid,
                factor=config.vision_factor,
                reduction=config.vision_reduction,
            )
            if config.findings:
                names = [name for name, _ in config.findings]
                # no buffer: from_pretrained builds modules without storage
                self.regions = [(names.index(name), _SIGNS[side]) for name, side in config.regions]
                if config.neighbours:
                    self.neighbours = Neighbours(tower.width, config.neighbours)
                self.finding_head = FindingHead(tower.width, len(names))
                self.region_head = RegionHead(tower.width, len(self.regions))
                self.region_projector = RegionProjector(tower.width, hidden, len(self.regions))
        if config.audio_config is not None:
            self.audio_tower = given.audio_tower or audio_tower_from_config(config.audio_config)
            self.audio_projector = AudioProjector(
                self.audio_tower.width, hidden, config.audio_stack
            )
        for part in (given.language_model, given.vision_tower, given.audio_tower):
            if part is not None:
                _keep_weights(part)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The backbone's head."""
        return self.language_model.get_output_embeddings()

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[n, channels, H, W]` -> tower features `[n, patches, width]`.

        Raises:
            IncompatibleModel: the composite has no vision tower.
        """
        if not hasattr(self, "vision_tower"):
            raise IncompatibleModel("this model has no vision tower; compose one with vision=…")
        return self.vision_tower(pixel_values.to(self._dtype_of(self.vision_tower)))

    def encode_audio(
        self, input_features: torch.Tensor, feature_lengths: torch.Tensor
    ) -> list[torch.Tensor]:
        """`[m, mel, frames]` -> one `[ceil(frames / 2), width]` per stretch, padding cut.

        Raises:
            IncompatibleModel: the composite has no audio tower.
        """
        if not hasattr(self, "audio_tower"):
            raise IncompatibleModel("this model has no audio tower; compose one with audio=…")
        features = self.audio_tower(
            input_features.to(self._dtype_of(self.audio_tower)), feature_lengths
        )
        return [f[: (int(n) + 1) // 2] for f, n in zip(features, feature_lengths, strict=True)]

    def project_images(
        self, features: torch.Tensor, geometry: torch.Tensor, study: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tower features -> embeddings of the views and of the studies' region tokens.

        Returns `[n * tokens_per_view, hidden]` and `[studies * regions, hidden]`.
        """
        views = self.vision_projector(features, geometry, self.config.view_size)
        regions = [
            self.project_regions(features[study == index], geometry[study == index])
            for index in study.unique(sorted=True)
            if index >= 0 and self.config.findings
        ]
        empty = views.new_zeros(0, views.shape[-1])
        return views.flatten(0, 1), torch.cat(regions) if regions else empty

    def project_regions(self, features: torch.Tensor, geometry: torch.Tensor) -> torch.Tensor:
        """One study's tower features -> `[regions, hidden]`."""
        seen = self.see_regions(features, geometry)
        return self.region_projector(seen, *self.region_head(seen))

    def see_regions(self, features: torch.Tensor, geometry: torch.Tensor) -> Regions:
        """What one study's patches say of every region."""
        return self.gather(*self.see_patches(features), geometry)

    def see_patches(
        self, features: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """A study's tower features `[..., views, patches, width]` -> the same among their neighbours, and
        what they show.
        """
        if self.config.neighbours:
            features = self.neighbours(features, self.vision_tower.grid)
        return features, self.finding_head(features)

    def gather(
        self,
        features: torch.Tensor,
        patches: tuple[torch.Tensor, torch.Tensor],
        geometry: torch.Tensor,
    ) -> Regions:
        """One study's patches, as `see_patches` sees them, as its regions."""
        frame = (geometry, self.vision_tower.grid, self.config.view_size)
        return gather_regions(
            features, patches, token_centres_mm(*frame), patch_volumes_mm3(*frame),
            regions=self.regions,
        )  # fmt: skip

    def embed(
        self,
        input_ids: torch.Tensor,
        *,
        pixel_values: torch.Tensor | None = None,
        image_geometry: torch.Tensor | None = None,
        image_study: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        feature_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids `[batch, length]` and media -> embeddings `[batch, length, hidden]`.

        Raises:
            PlaceholderMismatch: placeholders and features differ in number.
            InvalidPixels, UnreadableAudio: NaN or infinite values, by their place in the batch.
        """
        embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            _check_finite(pixel_values, InvalidPixels, "pixel_values")
            n = pixel_values.shape[0]
            if image_geometry is None:
                image_geometry = pixel_values.new_zeros(n, 11)
            if image_study is None:
                image_study = torch.full((n,), -1, device=pixel_values.device)
            views, regions = self.project_images(
                self.encode_images(pixel_values), image_geometry, image_study
            )
            embeds = self.splice(embeds, input_ids == self.config.image_token_id, views, "image")
            region_mask = input_ids == self.config.region_token_id
            embeds = self.splice(embeds, region_mask, regions, "region")
        if input_features is not None:
            _check_finite(input_features, UnreadableAudio, "input_features")
            if feature_lengths is None:
                feature_lengths = torch.full(input_features.shape[:1], input_features.shape[-1])
            frames = self.encode_audio(input_features, feature_lengths)
            heard = torch.cat([self.audio_projector(f) for f in frames])
            embeds = self.splice(embeds, input_ids == self.config.audio_token_id, heard, "audio")
        return embeds

    @staticmethod
    def splice(
        embeds: torch.Tensor, mask: torch.Tensor, features: torch.Tensor, kind: str
    ) -> torch.Tensor:
        """Put `features [k, hidden]` in place of the embeddings under `mask [batch, length]`.

        Raises:
            PlaceholderMismatch: `mask` does not hold exactly k places.
        """
        places = int(mask.sum())
        if places != features.shape[0]:
            raise PlaceholderMismatch(
                f"the prompt holds {places} {kind} placeholder tokens but {features.shape[0]}"
                f" {kind} features were given; build prompt and media with the same processor"
            )
        return embeds.masked_scatter(mask.unsqueeze(-1), features.to(embeds.dtype))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The backbone's output (with its loss where `labels` are given) on text and media.

        Other keyword arguments are the media listed on the class and the backbone's own.
        """
        media = {name: kwargs.pop(name, None) for name in _MEDIA}
        if inputs_embeds is None:
            assert input_ids is not None
            past = kwargs.get("past_key_values")
            if past is None or past.get_seq_length() == 0:  # a prompt, not an answer's next token
                self._check_media_given(input_ids, media)
            inputs_embeds = self.embed(input_ids, **media)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            position_ids = position_ids[:, -inputs_embeds.shape[1] :]
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' `generate`; media are embedded once, before the first step.

        Raises:
            ContextOverflow: the prompt alone is longer than the backbone's context.
        """
        media = {name: kwargs.pop(name, None) for name in _MEDIA}
        if input_ids is None:
            input_ids = kwargs.pop("inputs", None)
        if input_ids is not None:
            self._check_media_given(input_ids, media)
            text: Any = self.config.text_config
            most = getattr(text, "max_position_embeddings", None)
            if most and input_ids.shape[1] > most:
                raise ContextOverflow(
                    f"the prompt takes {input_ids.shape[1]} tokens, but this model's context holds"
                    f" {most}; shorten the text or give fewer pictures"
                )
        if any(value is not None for value in media.values()):
            kwargs["inputs_embeds"] = self.embed(input_ids, **media)
        return super().generate(input_ids, **kwargs)

    def _check_media_given(self, input_ids: torch.Tensor, media: dict[str, Any]) -> None:
        """Refuse placeholder tokens whose media were forgotten: they would be read as words."""
        for name, token in (("pixel_values", self.config.image_token_id),
                            ("input_features", self.config.audio_token_id)):  # fmt: skip
            if media[name] is None and token is not None:
                places = int((input_ids == token).sum())
                if places:
                    raise PlaceholderMismatch(
                        f"the prompt holds {places} placeholder tokens for {name}, which were not"
                        " given; pass everything the processor returned"
                    )

    @staticmethod
    def _dtype_of(module: nn.Module) -> torch.dtype:
        return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _keep_weights(part: nn.Module) -> None:
    """Tell transformers' `post_init` that this part's weights are not its to draw anew."""
    marked: Any
    for marked in (*part.modules(), *part.parameters(), *part.buffers()):
        marked._is_hf_initialized = True


def _check_finite(values: torch.Tensor, error: type[InputError], name: str) -> None:
    good = values.isfinite().flatten(1).all(1)
    if not good.all():
        raise error(
            f"{name}[{int(good.long().argmin())}] holds NaN or infinite values; export it again"
        )


def trainable(model: MultimodalForConditionalGeneration, wanted: Callable[[str], bool]) -> None:
    """Let exactly the parameters whose name `wanted` accepts receive gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
