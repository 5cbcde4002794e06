"""A checkpoint whose modules lie on several devices: the same answers, told by the doctor, or refused.

The CPU and the disk stand for two devices here; maps over GPUs go the same way and were never run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pictures

from encoders.errors import CrossReadError
from multimodal.backends import DEMO, collect, load_backend
from multimodal.messages import Image, user
from multimodal.native import NativeBackend
from tests.multimodal.test_native_answers import SHORT, reference

pytest.importorskip("accelerate", reason="needs the extra 'devices'")


def told(backend: NativeBackend) -> dict[str, Any]:
    return {choice.what: choice for choice in backend.diagnose().choices}


def saved(folder: Path, places: dict[str, Any]) -> str:
    file = folder / "map.json"
    file.write_text(json.dumps(places))
    return str(file)


def test_a_plan_that_needs_one_device_only_changes_nothing(
    checkpoint: Callable[[str], Path], native: Callable[[str], NativeBackend],
    picture: Pictures.Image,
) -> None:  # fmt: skip
    asked = [user(Image(picture), "What is it?")]
    backend = load_backend(checkpoint("deepseek_vl"), device_map="auto")
    assert isinstance(backend, NativeBackend)
    assert collect(backend.generate(asked, SHORT)).text == reference(native("deepseek_vl"), asked)
    assert backend.capabilities().one_by_one == ""
    choice = told(backend)["device map"]
    assert choice.value == "modules on cpu: 1"
    assert "one holds it all" in choice.why
    backend.close()


@pytest.mark.parametrize(
    ("family", "places"),
    [("gemma3", {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu",
                 "model.language_model.embed_tokens": "cpu", "lm_head": "cpu",
                 "model.language_model.layers.0": "cpu", "model.language_model.layers.1": "disk",
                 "model.language_model.norm": "cpu", "model.language_model.rotary_emb": "cpu"}),
     ("deepseek_llm", {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu",
                       "model.rotary_emb": "cpu", "lm_head": "disk"})],
)  # fmt: skip
def test_modules_on_several_devices_answer_as_on_one_and_the_doctor_says_where_they_are(
    checkpoint: Callable[[str], Path], native: Callable[[str], NativeBackend], tmp_path: Path,
    picture: Pictures.Image, family: str, places: dict[str, str],
) -> None:  # fmt: skip
    asked = [user(*([Image(picture)] if family == "gemma3" else []), "Is there a nodule?")]
    backend = load_backend(checkpoint(family), device_map=saved(tmp_path, places))
    assert isinstance(backend, NativeBackend)
    wanted = reference(native(family), asked)
    assert [collect(backend.generate(asked, SHORT)).text for _ in range(2)] == [wanted] * 2
    assert "several devices" in backend.capabilities().one_by_one
    choices = told(backend)
    counts = [sum(where == name for where in places.values()) for name in ("cpu", "disk")]
    assert choices["device map"].value == f"modules on cpu: {counts[0]}, disk: {counts[1]}"
    assert (choices["batching"].value, choices["device"].value) == ("one by one", "cpu")
    assert any(weight.is_meta for weight in backend.model.parameters())  # it does lie on the disk
    backend.close()


@pytest.mark.parametrize(
    ("model", "places", "more", "why"),
    [("deepseek_llm", "anywhere", {}, "device_map is 'anywhere'; use auto, balanced"),
     ("deepseek_llm", {"model": "cpu"}, {}, "device_map does not fit .*lm_head"),
     ("deepseek_llm", {"model": "cpu", "": "disk"}, {}, "name modules only"),
     ("deepseek_llm", {"": "disk"}, {}, "leaves all on the disk"),
     ("deepseek_llm", {"": "cuda:7"}, {}, "device 'cuda:7' cannot be used here"),
     ("deepseek_llm", "auto", {"device": "cpu"}, "leave device out"),
     ("deepseek_llm", "auto", {"tensor_parallel": 2}, "exclude each other"),
     (None, "auto", {}, "a composite lies on one device"),
     ("http://127.0.0.1:9/v1", "auto", {}, "leave out device, .* device_map")],
)  # fmt: skip
def test_a_map_that_cannot_be_honoured_is_refused_by_name(
    checkpoint: Callable[[str], Path], tmp_path: Path, model: str | None, places: Any,
    more: dict[str, Any], why: str,
) -> None:  # fmt: skip
    named = model if model is None or model.startswith("http") else checkpoint(model)
    wanted = saved(tmp_path, places) if isinstance(places, dict) else places
    with pytest.raises(CrossReadError, match=why):
        load_backend(named or DEMO, device_map=wanted, **more)
