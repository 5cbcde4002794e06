"""A checkpoint that transformers implements, from a folder or the Hub: network and processor.

A multimodal one comes with its processor, one that only reads with its tokenizer. Knows no message.
"""

from __future__ import annotations

import warnings
import weakref
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from encoders.errors import IncompatibleModel, InvalidOption
from multimodal.loading import device_map_of, device_of, dtype_of, read_config
from multimodal.native_families import ADAPTERS


def load_native(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    num_ranks: int = 1,
    device_map: str | None = None,
) -> tuple[Any, Any]:
    """Network and processor, on their device; "auto" is a GPU where there is one.

    Of an omni checkpoint the part that answers in words is loaded, not the one that speaks. `dtype`
    "auto" keeps the checkpoint's, on a CPU float32. Of several ranks of `torch.distributed` this one
    gets its share, on its own device. With `device_map` its modules lie on several devices, the CPU
    and the disk among them; see `device_map_of`.

    Raises:
        ModelNotFound: no model there.
        IncompatibleModel: not a model that answers in words, or one that is incomplete.
        InvalidOption: a device map that cannot be, or together with a device.
        InvalidMessage: an unknown device or dtype.
    """
    if device_map is None:
        network, processor = _load(model, device, dtype, num_ranks, {})
        where = device_of(device)
        if dtype == "auto" and where == "cpu":
            network = network.float()
        return (network if num_ranks > 1 else network.to(where)).eval(), processor
    if device != "auto":
        raise InvalidOption("device_map says where each module lies; leave device out")
    if find_spec("accelerate") is None:
        raise InvalidOption("device_map needs accelerate: pip install 'crossread[devices]'")
    # weights that stay on a disk cannot be changed afterwards
    dtype = "float32" if dtype == "auto" and device_of("auto") == "cpu" else dtype
    with ExitStack() as held:
        folder = held.enter_context(TemporaryDirectory(prefix="crossread-"))  # for converted ones
        spread = {"device_map": device_map_of(device_map), "offload_folder": folder}
        network, processor = _load(model, device, dtype, num_ranks, spread)
        weakref.finalize(network, held.pop_all().close)
    if not hasattr(network, "hf_device_map"):  # where one device holds it all
        network.hf_device_map = {"": str(network.device)}
    return network.eval(), processor


def _load(
    model: str | Path, device: str, dtype: str, num_ranks: int, spread: dict[str, Any]
) -> tuple[Any, Any]:
    """Network and processor, complete; where they lie is still to be seen to, unless `spread` says."""
    from safetensors import SafetensorError

    name, config = Path(model).name, read_config(model)
    device_of(device)  # before the work
    options = {"dtype": dtype_of(dtype), "output_loading_info": True, **spread}
    try:
        network, info, processor = _load_parts(model, config, options, num_ranks)
        if isinstance(places := spread.get("device_map"), dict):
            from accelerate.utils import check_device_map

            check_device_map(network, places)  # transformers does where there are several devices
    except ImportError as error:
        raise IncompatibleModel(
            f"{name!r} needs a library that is missing: {_first_line(error)}"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if spread and isinstance(error, ValueError):
            raise InvalidOption(
                f"device_map does not fit {name!r}: {_first_line(error)}"
            ) from error
        raise IncompatibleModel(
            f"{name!r} cannot be loaded ({_first_line(error)}); download it again, whole"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise IncompatibleModel(
            f"{name!r} lacks {len(missing)} weights, {missing[0]} first; download it again, whole"
        )
    _load_adapters(network, model, config.model_type)
    return network, processor


def _load_parts(
    model: str | Path, config: Any, options: dict[str, Any], num_ranks: int
) -> tuple[Any, dict[str, Any], Any]:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMultimodalLM,
        AutoProcessor,
        AutoTokenizer,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )

    if num_ranks > 1:
        from transformers.distributed import DistributedConfig

        options = {**options, "distributed_config": DistributedConfig(tp_size=num_ranks)}
    if (thinker := getattr(config, "thinker_config", None)) is not None:
        options |= {"config": thinker, "key_mapping": {r"^thinker\.": ""}}
    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        network, info = AutoModelForMultimodalLM.from_pretrained(model, **options)
        special = _voxtral_processor if config.model_type == "voxtral" else None
        return network, info, (special or AutoProcessor.from_pretrained)(model)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        network, info = AutoModelForCausalLM.from_pretrained(model, **options)
        return network, info, AutoTokenizer.from_pretrained(model)
    raise IncompatibleModel(
        f"{Path(model).name!r} is a {config.model_type} checkpoint, which does not answer in words;"
        " choose a language model, or one that transformers lists as image-text-to-text"
    )


def _load_adapters(network: Any, model: str | Path, model_type: str) -> None:
    """Those that the checkpoint brings, under the names of their folders; none active.

    Raises:
        IncompatibleModel: there are some, and the library that knows them is missing.
    """
    from transformers.utils import find_adapter_config_file, is_peft_available

    for folder in ADAPTERS.get(model_type, {}).values():
        if find_adapter_config_file(str(model), subfolder=folder) is None:
            continue
        if not is_peft_available():
            raise IncompatibleModel(
                f"{Path(model).name!r} brings adapters, without which it answers nonsense of"
                " pictures and sound: install peft (the extra 'adapters')"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
            network.load_adapter(str(model), folder, adapter_kwargs={"subfolder": folder})
        network.disable_adapters()


def _voxtral_processor(model: str | Path) -> Any:
    """With transformers' own reader of `tekken.json`: the other one takes no text with sound in it."""
    from transformers import AutoFeatureExtractor, AutoTokenizer, VoxtralProcessor

    tokenizer = AutoTokenizer.from_pretrained(model, mistral_format=False)
    return VoxtralProcessor(AutoFeatureExtractor.from_pretrained(model), tokenizer)


def _first_line(error: Exception) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), "no reason told"
    )
