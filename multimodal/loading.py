"""A saved composite from a folder or the Hub, complete or refused with the reason.

Knows no message and no request.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from encoders.errors import IncompatibleModel, InvalidMessage, InvalidOption, ModelNotFound
from multimodal.configuration import MultimodalConfig
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.processing import MultimodalProcessor

PLANS = ("auto", "balanced", "balanced_low_0", "sequential")


def load_composite(
    model: str | Path, *, device: str = "auto", dtype: str = "auto"
) -> tuple[MultimodalForConditionalGeneration, MultimodalProcessor]:
    """Model and processor, on their device; "auto" is a GPU where there is one.

    `dtype` "auto" keeps the checkpoint's, on a CPU float32.

    Raises:
        ModelNotFound: no model there.
        IncompatibleModel: not a composite, or one whose files are damaged or incomplete.
        InvalidMessage: an unknown device or dtype.
    """
    config = read_config(model)
    if not isinstance(config, MultimodalConfig):
        raise IncompatibleModel(
            f"{Path(model).name!r} is a {config.model_type} checkpoint, not a CrossRead"
            " composite; join it with towers by multimodal.compose(backbone=…)"
        )
    where = device_of(device)
    network, processor = _load_parts(model, dtype_of(dtype))
    if dtype == "auto" and where == "cpu":
        network = network.float()
    return network.to(where), processor


def read_config(model: str | Path) -> Any:
    """The configuration of a folder or Hub id, of whatever model it is.

    Raises:
        ModelNotFound: no model there, or one that transformers does not know.
    """
    from transformers import AutoConfig

    from multimodal import register

    register()
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"no model at {Path(model).name!r}: give a folder with a config.json, or a Hub id"
            " while the network is reachable"
        ) from error


def weights_sha256(folder: Path | None) -> str:
    """Of a checkpoint's weight files in the order of their names; "" without a folder or files."""
    files = sorted(folder.glob("*.safetensors")) if folder else []
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as weights:
            while block := weights.read(2**24):
                digest.update(block)
    return digest.hexdigest() if files else ""


def device_of(name: str) -> str:
    """The device of a name; "auto" is a GPU where there is one.

    Raises:
        InvalidMessage: a device that cannot be used here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch's answer to a CPU-only build
        raise InvalidMessage(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); use 'cpu' or 'auto'"
        ) from error
    return name


def device_map_of(wanted: str) -> str | dict[str, Any]:
    """One of accelerate's plans by its name, or the devices of modules by a JSON file.

    Raises:
        InvalidOption: neither of them.
        InvalidMessage: a device that cannot be used here.
    """
    if wanted in PLANS:
        return wanted
    try:
        found = json.loads(Path(wanted).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not found:
        raise InvalidOption(
            f"device_map is {Path(wanted).name!r}; use {', '.join(PLANS)}, or a JSON file that gives"
            ' each module its device, as {"model.layers.0": "cuda:0", "lm_head": "cpu", ...}'
        )
    if "" in found and len(found) > 1:
        raise InvalidOption(
            'device_map gives "", the whole model, a device beside its modules; name modules only'
        )
    devices = set(found.values()) - {"disk"}
    if not devices:
        raise InvalidOption("device_map leaves all on the disk; give the model a device to run on")
    for device in devices:
        device_of(device)
    return found


def devices_of(model: Any) -> dict[str, int]:
    """How many modules of a model lie where; empty where nobody mapped it to devices."""
    found = getattr(model, "hf_device_map", {}).values()
    return dict(Counter("cuda:" + str(d) if isinstance(d, int) else str(d) for d in found))


def entrance_of(model: Any) -> Any:
    """Where a model takes its input; of one that lies on several devices, where it computes first."""
    devices = devices_of(model)
    if len(devices) < 2:
        return model.device
    return torch.device(next((name for name in devices if name not in ("cpu", "disk")), "cpu"))


def dtype_of(name: str) -> Any:
    """torch's dtype of a name; "auto" stays as it is.

    Raises:
        InvalidMessage: not a floating-point dtype.
    """
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidMessage(
            f"dtype is {name!r}; use 'auto', 'fastest', 'float32', 'bfloat16' or 'float16'"
        )
    return dtype


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; others emulate it, many times slower."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _load_parts(
    model: str | Path, dtype: Any
) -> tuple[MultimodalForConditionalGeneration, MultimodalProcessor]:
    """Weights and processor of a folder or Hub id, complete or refused."""
    from safetensors import SafetensorError

    name = Path(model).name
    try:
        network, info = MultimodalForConditionalGeneration.from_pretrained(
            model, dtype=dtype, output_loading_info=True
        )
        processor = MultimodalProcessor.from_pretrained(model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise IncompatibleModel(
            f"{name!r} cannot be loaded ({str(error).strip().splitlines()[0]}); save it again with"
            " save_pretrained of model and processor"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise IncompatibleModel(
            f"{name!r} lacks {len(missing)} weights, {missing[0]} first; save it again"
        )
    return network, processor
