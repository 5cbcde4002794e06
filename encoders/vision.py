"""Vision towers: pictures in, patch features out.

One class, `VisionTower`, holds a ViT of open_clip or of transformers: `[N, channels, H, W]` pixels become
`[N, tokens, width]` features on a row-major grid of patches, class and pooling tokens left out.
How pixels are prepared is read from the tower's own configuration. Knows no projector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from encoders.errors import IncompatibleModel, InvalidPixels, ModelNotFound, UnknownSpec
from encoders.stem import GROUP, ConvStem

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_SPEC_HELP = "use 'open_clip:ARCHITECTURE/WEIGHTS', 'hf:NAME' or a local folder"


@dataclass(frozen=True)
class Preprocess:
    """How a tower wants its pixels: square `size`, channel `mean` and `std`, `interpolation`.

    Where `beside`, a study's picture comes with the first channel of the one before it and of the one
    after: what is round in one slab is a vessel if the next ones show it too.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    beside: bool = False

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Preprocess:
        """From a configuration's JSON types."""
        mean, std = tuple(values["mean"]), tuple(values["std"])
        return cls(values["size"], mean, std, values["interpolation"], values.get("beside", False))

    @property
    def channels(self) -> int:
        """Of a picture as the tower takes it."""
        return 5 if self.beside else 3

    def from_images(self, images: Sequence[PilImage]) -> torch.Tensor:
        """PIL pictures as normalised `[n, channels, size, size]`, each with nothing beside it but itself.

        A picture is padded to a square with black, never cropped: what a finding touches at the
        border must reach the tower.
        """
        from torchvision.transforms.v2 import functional as F

        squares = []
        for image in images:
            pixels = F.pil_to_tensor(image.convert("RGB"))
            height, width = pixels.shape[-2:]
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            padded = F.pad(pixels, [left, top, side - width - left, side - height - top])
            squares.append(self._resize(padded))
        return self.normalise_apart(torch.stack(squares))

    def normalise_apart(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures that are no slices of one study `[n, 3, h, w]`, as `normalise` does each alone.

        Raises:
            InvalidPixels: not 8-bit pictures of so many channels.
        """
        return torch.cat([self.normalise(one[None]) for one in pixels])

    def _resize(self, pixels: torch.Tensor) -> torch.Tensor:
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        if pixels.shape[-2:] == (self.size, self.size):
            return pixels
        mode = InterpolationMode(self.interpolation)
        return F.resize(pixels, [self.size, self.size], interpolation=mode, antialias=True)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """One study's pictures in order, uint8 `[n, 3, h, w]`, or pictures `with_beside` already, as float
        `[n, channels, size, size]`, scaled to 0..1, mean 0, std 1.

        Raises:
            InvalidPixels: not 8-bit pictures of so many channels.
        """
        if (
            pixels.dtype != torch.uint8
            or pixels.ndim != 4
            or pixels.shape[1] not in (3, self.channels)
        ):
            raise InvalidPixels(
                f"pictures must be uint8 [n, 3, height, width], not {pixels.dtype}"
                f" {list(pixels.shape)}"
            )
        if pixels.shape[1] < self.channels:
            pixels = with_beside(pixels)
        scaled = self._resize(pixels).float() / 255.0
        first = [0, 1, 2, 0, 0][: self.channels]
        mean, std = (
            torch.tensor([of[c] for c in first], device=pixels.device).view(1, -1, 1, 1)
            for of in (self.mean, self.std)
        )
        return (scaled - mean) / std


def with_beside(pixels: torch.Tensor) -> torch.Tensor:
    """One study's pictures `[n, 3, h, w]`, each with the first channel of the one before it and of the
    one after; at either end its own: `[n, 5, h, w]`.
    """
    first = pixels[:, :1]
    before, after = torch.cat([first[:1], first[:-1]]), torch.cat([first[1:], first[-1:]])
    return torch.cat([pixels, before, after], 1)


class VisionTower(nn.Module):
    """A ViT and what it takes to feed it.

    Attributes:
        width: features per token.
        grid: rows and columns of patches; tokens are row-major.
        preprocess: how its pixels are prepared.
    """

    def __init__(self, vit: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.vit = vit
        self._config = dict(config)
        self.width: int = config["width"]
        self.grid: tuple[int, int] = (config["grid"][0], config["grid"][1])
        self.preprocess = Preprocess.read(config["preprocess"])
        for name, parameter in vit.named_parameters():
            if name.endswith("mask_token"):  # DINOv2: only masked pre-training reaches it
                parameter.requires_grad_(False)

    def to_dict(self) -> dict[str, Any]:
        """All that `tower_from_config` needs to rebuild this tower without weights (JSON types)."""
        return dict(self._config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[N, channels, H, W]` normalised pixels -> `[N, tokens, width]`."""
        if self._config["library"] == "open_clip":
            return _open_clip_tokens(self.vit, pixels)
        hidden = self.vit(pixel_values=pixels).last_hidden_state
        return hidden[:, hidden.shape[1] - self.grid[0] * self.grid[1] :]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, batch_size: int = 32) -> torch.Tensor:
        """`forward` without gradients, a batch of slices at a time, to bound memory."""
        return torch.cat([self(batch) for batch in pixels.split(batch_size)])


def build_vision_tower(spec: str) -> VisionTower:
    """A tower with its weights from `open_clip:ARCH/WEIGHTS`, `hf:NAME` or a local folder.

    `open_clip:ARCH/random` gives random weights. A local folder holds either an open_clip export
    (`open_clip_config.json`) or a transformers model (`config.json`).

    Raises:
        UnknownSpec: the spec is none of these, or open_clip knows no such architecture.
        ModelNotFound: the weights cannot be had.
        IncompatibleModel: the model is no ViT.
    """
    folder = Path(spec)
    if folder.is_dir():
        if (folder / "open_clip_config.json").is_file():
            return _load_open_clip(f"local-dir:{spec}", None)
        return _load_hf(spec)
    library, _, name = spec.partition(":")
    if library == "hf" and name:
        return _load_hf(name)
    if library == "open_clip" and "/" in name:
        architecture, _, weights = name.partition("/")
        return _load_open_clip(architecture, None if weights == "random" else weights)
    raise UnknownSpec(f"unknown vision spec {spec!r}; {_SPEC_HELP}")


def tower_from_config(config: Mapping[str, Any]) -> VisionTower:
    """A tower with random weights from what `VisionTower.to_dict` wrote."""
    if config["library"] == "open_clip":
        vit = _open_clip_vit(config["arch"])
        if stem := config.get("stem"):
            any_vit: Any = vit
            patch = config["arch"]["vision_cfg"]["patch_size"]
            channels = Preprocess.read(config["preprocess"]).channels
            any_vit.conv1 = ConvStem(stem, config["width"], patch, config.get("fine", 0), channels)
    else:
        from transformers import AutoConfig, AutoModel

        arch = dict(config["arch"])
        vit = AutoModel.from_config(AutoConfig.for_model(arch.pop("model_type"), **arch))
    return VisionTower(_without_pooling(vit), config)


def open_clip_config(
    vision_cfg: Mapping[str, Any],
    embed_dim: int,
    preprocess: Preprocess,
    *,
    stem: Sequence[tuple[int, int]] = (),
    fine: int = 0,
) -> dict[str, Any]:
    """The tower config of an open_clip ViT given by its `vision_cfg` (for towers made here).

    `stem` lists the levels of a `ConvStem`, which together divide a side by the patch size; `fine` are
    its channels that look at every two pixels.
    """
    grid = vision_cfg["image_size"] // vision_cfg["patch_size"]
    if any(width % GROUP for width in (*(width for width, _ in stem), fine)):
        raise IncompatibleModel(f"channels of a stem come in groups of {GROUP}; choose multiples")
    if preprocess.beside and not stem:
        raise IncompatibleModel("only a stem takes what is beside a picture; give it levels")
    if stem and vision_cfg["patch_size"] % 2 ** len(stem):
        raise IncompatibleModel(
            f"{len(stem)} levels of convolutions make patches of a multiple of {2 ** len(stem)}"
            f" pixels, not of {vision_cfg['patch_size']}"
        )
    return {
        "stem": [list(level) for level in stem],
        "fine": fine,
        "library": "open_clip",
        "arch": {"embed_dim": embed_dim, "vision_cfg": dict(vision_cfg)},
        "width": vision_cfg["width"],
        "grid": [grid, grid],
        "preprocess": asdict(preprocess),
    }


def _open_clip_vit(arch: Mapping[str, Any]) -> nn.Module:
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    cfg = CLIPVisionCfg(**arch["vision_cfg"])
    cfg.timm_model_pretrained = False
    return _build_vision_tower(arch["embed_dim"], cfg, arch.get("quick_gelu", False))


def _open_clip_tokens(vit: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    trunk: Any = getattr(vit, "trunk", None)
    if trunk is not None:  # timm towers inside open_clip (SigLIP, EVA)
        return trunk.forward_features(pixels)[:, trunk.num_prefix_tokens :]
    any_vit: Any = vit
    embedded = any_vit.transformer(any_vit._embeds(pixels))
    return any_vit.ln_post(embedded)[:, 1:]


def _load_open_clip(architecture: str, weights: str | None) -> VisionTower:
    import open_clip

    is_folder = architecture.startswith("local-dir:")
    if not is_folder and open_clip.get_model_config(architecture) is None:
        raise UnknownSpec(
            f"open_clip knows no architecture {architecture!r};"
            " see open_clip.list_models() for those it knows"
        )
    try:
        model = open_clip.create_model(architecture, pretrained=weights)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelNotFound(
            f"open_clip weights {weights!r} of {architecture!r} cannot be loaded ({error});"
            " with no network name a local file or folder"
        ) from error
    arch = _arch_of(architecture)
    cfg = arch["vision_cfg"]
    if isinstance(cfg.get("layers"), list) or not _is_vit(model.visual):
        raise IncompatibleModel(f"open_clip {architecture!r} is not a ViT; choose a ViT tower")
    prepare = getattr(model.visual, "preprocess_cfg", {})
    size = getattr(model.visual, "image_size", 224)
    size = size[0] if isinstance(size, tuple | list) else size
    preprocess = Preprocess(
        size,
        tuple(prepare.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        tuple(prepare.get("std", open_clip.OPENAI_DATASET_STD)),
        prepare.get("interpolation", "bicubic"),
    )
    return _measured_tower(
        _without_pooling(model.visual), {"library": "open_clip", "arch": arch}, preprocess
    )


def _arch_of(architecture: str) -> dict[str, Any]:
    """embed_dim, vision_cfg and quick_gelu of an open_clip architecture or local export."""
    import json

    import open_clip

    if architecture.startswith("local-dir:"):
        text = (Path(architecture.removeprefix("local-dir:")) / "open_clip_config.json").read_text()
        config = json.loads(text)["model_cfg"]
    else:
        config = open_clip.get_model_config(architecture)
    return {k: config[k] for k in ("embed_dim", "vision_cfg", "quick_gelu") if k in config}


def _is_vit(visual: nn.Module) -> bool:
    return hasattr(visual, "_embeds") or hasattr(
        getattr(visual, "trunk", None), "num_prefix_tokens"
    )


def _load_hf(name: str) -> VisionTower:
    from transformers import AutoImageProcessor, AutoModel

    try:
        model = AutoModel.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"vision model {name!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    vit = model
    if hasattr(model.config, "vision_config"):  # CLIP, SigLIP: keep the picture half only
        vit = AutoModel.from_config(model.config.vision_config)
        missing = vit.load_state_dict(_vision_half(model, vit), strict=False).missing_keys
        if missing:
            raise IncompatibleModel(f"{name!r} lacks vision weights such as {missing[0]}")
    if not hasattr(vit.config, "patch_size"):
        raise IncompatibleModel(f"{name!r} is a {vit.config.model_type}, not a ViT")
    size = processor.size.get("height") or processor.size.get("shortest_edge")
    interpolation = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(int(processor.resample or 2))
    preprocess = Preprocess(
        int(size),
        tuple(processor.image_mean),
        tuple(processor.image_std),
        interpolation or "bilinear",
    )
    config = {"library": "transformers", "arch": vit.config.to_dict()}
    return _measured_tower(_without_pooling(vit), config, preprocess)


def _vision_half(model: nn.Module, vit: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of `model` under the names of its vision model built alone."""
    whole = model.state_dict()
    wanted = vit.state_dict()
    prefixes = ("", "vision_model.", "vision_model.vision_model.", "model.vision_model.")
    return {
        key: whole[prefix + trimmed]
        for key in wanted
        for prefix in prefixes
        for trimmed in {key, key.removeprefix("vision_model.")}
        if prefix + trimmed in whole
    }


def _without_pooling(vit: nn.Module) -> nn.Module:
    """Drop pooling heads: their output is not used, so they would never get a gradient."""
    any_vit: Any = vit
    inner: Any = getattr(vit, "vision_model", vit)
    if getattr(any_vit, "proj", None) is not None:
        any_vit.proj = None
    if getattr(inner, "pooler", None) is not None:
        inner.pooler = None
    if hasattr(inner, "head") and hasattr(inner, "use_head"):  # SigLIP
        inner.use_head = False
        del inner.head
    trunk: Any = getattr(vit, "trunk", None)
    for unused in ("attn_pool", "head", "fc_norm"):
        if trunk is not None and isinstance(getattr(trunk, unused, None), nn.Module):
            setattr(trunk, unused, nn.Identity())
    if hasattr(vit, "trunk") and hasattr(vit, "head"):
        any_vit.head = nn.Identity()
    if hasattr(inner, "post_layernorm") and not hasattr(inner, "use_head"):  # CLIP: pooled only
        inner.post_layernorm.requires_grad_(False)
    return vit


def _measured_tower(vit: nn.Module, config: dict[str, Any], prepare: Preprocess) -> VisionTower:
    """Fill in width and grid by running the tower once on a blank picture."""
    probe = VisionTower(
        vit, {**config, "width": 0, "grid": [0, 0], "preprocess": asdict(prepare)}
    ).eval()
    with torch.no_grad():
        hidden = probe(torch.zeros(1, 3, prepare.size, prepare.size))
    patch = getattr(getattr(vit, "config", None), "patch_size", None)
    side = prepare.size // patch if isinstance(patch, int) else math.isqrt(hidden.shape[1])
    full = {**config, "width": hidden.shape[2], "grid": [side, side]}
    return VisionTower(vit, {**full, "preprocess": asdict(prepare)})
