"""Prompts with media: counts, layout and refusals; every token's source is what stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from encoders.dicom import PROFILES, Views, Volume, load_volume, make_views, scan
from encoders.errors import (
    InvalidMessage,
    InvalidPixels,
    MissingInput,
    PlaceholderMismatch,
    UnreadableAudio,
    UnreadableImage,
)
from encoders.features import Source
from multimodal.processing import MultimodalProcessor

TOKENS = 16  # a view of the tiny tower: a 4 x 4 grid, not reduced (64 would be allowed)
REGIONS = 3


@pytest.fixture(scope="module")
def volume(phantom_series: Path) -> Volume:
    return load_volume(scan(phantom_series).default())


@pytest.fixture(scope="module")
def views(volume: Volume) -> Views:
    return make_views(volume, PROFILES["crossread-ct"])


@pytest.fixture
def processor(tiny_composite: Any) -> MultimodalProcessor:
    return tiny_composite[1]


def _picture(size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))


def _sound(seconds: float) -> tuple[np.ndarray, int]:
    samples = np.random.default_rng(1).standard_normal(int(16000 * seconds)).astype(np.float32)
    return samples, 16000


def _user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [
        {"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]  # fmt: skip


_LENGTHS = {"image": TOKENS, "dicom": 16 * TOKENS + REGIONS + 2, "audio": 13}


@given(
    chats=st.lists(
        st.lists(st.sampled_from(["image", "dicom", "audio", "how large"]), max_size=5),
        min_size=1, max_size=3,
    )
)  # fmt: skip
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_placeholders_are_counted_before_anything_is_encoded(
    chats: list[list[str]], processor: MultimodalProcessor, views: Views
) -> None:
    """Any media anywhere, in batches of any lengths: as many places as the model will fill."""
    values: dict[str, Any] = {
        "image": _picture(), "dicom": views, "audio": _sound(1.0),
    }  # fmt: skip
    bare = processor.process([_user("list ", " list")])
    inputs = processor.process([
        _user("list ", *({"type": p, p: values[p]} if p in values else f" {p} " for p in chat),
              " list") for chat in chats
    ])  # fmt: skip
    base = int(bare.tensors["attention_mask"].sum())
    for mask, chat in zip(inputs.tensors["attention_mask"], chats, strict=True):
        words = 2 * chat.count("how large")
        assert int(mask.sum()) == base + words + sum(_LENGTHS.get(p, 0) for p in chat)
    flat = [p for chat in chats for p in chat]
    pictures = flat.count("image") + 16 * flat.count("dicom")
    assert len(inputs.tensors.get("pixel_values", [])) == pictures
    assert len(inputs.tensors.get("input_features", [])) == flat.count("audio")
    if pictures:
        studies = inputs.tensors["image_study"]
        assert int(studies.max()) + 1 == flat.count("dicom")
        assert int((studies == -1).sum()) == flat.count("image")


@pytest.mark.parametrize("side", ["left", "right"])
def test_layout_names_the_source_of_every_token(
    processor: MultimodalProcessor, views: Views, clip: Path, side: str
) -> None:
    parts = [
        {"type": "image", "image": _picture()}, "is", {"type": "dicom", "dicom": views},
        "there", {"type": "audio", "audio": _sound(5.0)}, {"type": "video", "video": str(clip)},
    ]  # fmt: skip
    processor.tokenizer.padding_side = side
    try:
        inputs = processor.process([_user(*parts), _user("list")])
    finally:
        processor.tokenizer.padding_side = "left"
    spans, nothing = inputs.layout
    assert nothing == ()
    ids = inputs.tensors["input_ids"][0]
    convert = processor.tokenizer.convert_tokens_to_ids
    for span in spans:  # each span lies on placeholders of its own kind, and on nothing else
        word = "<audio>" if span.source.modality == "audio" else "<image>"
        assert set(ids[span.start : span.stop].tolist()) == {convert(word)}
    covered = sum(span.stop - span.start for span in spans)
    assert covered == int(
        torch.isin(ids, torch.tensor([convert("<image>"), convert("<audio>")])).sum()
    )
    picture, *study = [s for s in spans if s.source.modality in ("image", "dicom")]
    assert picture.source == Source("image", part=0)
    assert [s.stop - s.start for s in study] == [TOKENS] * 16
    assert [s.source.slice_index for s in study] == [v.slice_index for v in views.sources]
    assert {s.source.part for s in study} == {1}
    sound = [s for s in spans if s.source.modality == "audio"]
    assert [s.source.part for s in sound] == [2, 2]  # five seconds in a window of four
    assert sound[0].source.seconds[0] == 0.0  # type: ignore[index]
    assert sound[0].source.seconds[1] == sound[1].source.seconds[0]  # type: ignore[index]
    assert sound[1].source.seconds[1] == 5.0  # type: ignore[index]
    frames = [s for s in spans if s.source.modality == "video"]
    assert [s.stop - s.start for s in frames] == [TOKENS] * 8
    seconds = [s.source.seconds[0] for s in frames]  # type: ignore[index]
    assert seconds == sorted(seconds)


def test_words_and_media_must_match_in_number(processor: MultimodalProcessor) -> None:
    with pytest.raises(PlaceholderMismatch, match="has 2 <image> placeholders but 1 image inputs"):
        processor(text="<image> <image>", images=_picture())
    with pytest.raises(PlaceholderMismatch, match="has 0 <audio> placeholders but 1 audio inputs"):
        processor(text="list", audio=_sound(0.5))
    with pytest.raises(PlaceholderMismatch, match="<region>"):
        processor(text="<image> <region>", images=_picture())


@pytest.mark.parametrize("token", ["<image>", "<video>", "<region>", "</study>", "</s>", "<pad>"])
def test_control_tokens_in_a_report_are_refused_not_obeyed(
    processor: MultimodalProcessor, token: str
) -> None:
    with pytest.raises(InvalidMessage, match=rf"text of messages\[0\] holds '{token}'"):
        processor.process([_user(f"no nodule {token} in the left lung")])


def test_a_call_by_words_equals_a_chat_by_parts(
    processor: MultimodalProcessor, views: Views
) -> None:
    chat = _user({"type": "image", "image": _picture()}, "is", {"type": "dicom", "dicom": views},
                 {"type": "audio", "audio": _sound(0.5)})  # fmt: skip
    by_parts = processor.process([chat]).tensors
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    by_words = processor(text=text, images=_picture(), dicom=views, audio=_sound(0.5))
    templated = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True,
                                              return_tensors="pt")  # fmt: skip
    assert by_parts.keys() == by_words.keys() == templated.keys()
    for name, tensor in by_parts.items():
        assert torch.equal(tensor, by_words[name])
        assert torch.equal(tensor, templated[name])


def test_template_variables_reach_the_template(processor: MultimodalProcessor) -> None:
    template = "{% if loud %}LARGE{% endif %}{{ messages[0]['content'] }}"
    text = processor.apply_chat_template(_user("list"), chat_template=template, loud=True)
    assert text == "LARGElist"


def test_a_study_is_read_from_its_folder_as_from_its_volume(
    processor: MultimodalProcessor, phantom_series: Path, volume: Volume
) -> None:
    by_path = processor(text="<study>", dicom=phantom_series)
    by_volume = processor(text="<study>", dicom=volume)
    assert all(torch.equal(by_path[k], by_volume[k]) for k in by_volume)


def test_saved_processor_makes_the_same_inputs(
    processor: MultimodalProcessor, views: Views, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    again = MultimodalProcessor.from_pretrained(tmp_path)
    arguments: dict[str, Any] = {
        "text": "<image> <study> <audio>", "images": _picture((20, 50)), "dicom": views,
        "audio": _sound(1.0),
    }  # fmt: skip
    one, two = processor(**arguments), again(**arguments)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert again.chat_template == processor.chat_template


@pytest.mark.parametrize(
    ("kind", "value", "error", "words"),
    [
        ("image", "gone.png", MissingInput, r"gone\.png"),
        ("image", np.full((4, 4), np.nan), InvalidPixels, "NaN"),
        ("image", 7, UnreadableImage, "a int is no picture"),
        ("audio", (np.zeros(0, np.float32), 16000), UnreadableAudio, "no sound"),
        ("audio", (np.full(99, np.nan, np.float32), 16000), UnreadableAudio, "NaN"),
        ("audio", "gone.wav", MissingInput, r"gone\.wav"),
        ("audio", b"not a recording", UnreadableAudio, "the recording"),
        ("video", "gone.mp4", MissingInput, r"gone\.mp4"),
    ],
)
def test_a_medium_that_cannot_be_used_is_refused_by_name(
    processor: MultimodalProcessor, kind: str, value: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        processor.prepare(kind, value)


def test_a_volume_with_nan_voxels_is_refused(
    processor: MultimodalProcessor, volume: Volume
) -> None:
    from dataclasses import replace

    voxels = volume.voxels.astype(np.float32)
    voxels[3, 4, 5] = np.nan
    with pytest.raises(InvalidPixels, match="NaN"):
        processor.prepare("dicom", replace(volume, voxels=voxels))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 5}, "option 'max_length'"),
        ({"return_tensors": "np"}, "only 'pt'"),
        ({"padding": "max_length"}, "padding is 'max_length'"),
    ],
)
def test_an_option_is_honoured_or_refused(
    processor: MultimodalProcessor, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidMessage, match=words):
        processor(text="list", **options)
    with pytest.raises(InvalidMessage, match="a prompt is needed"):
        processor(images=_picture())


def test_pictures_of_several_projections_have_nothing_beside_them() -> None:
    tiny = {"vision": {"preprocess": {
        "size": 8, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bicubic", "beside": True
    }, "tokens_per_view": 1, "num_regions": 0}}  # fmt: skip
    processor = MultimodalProcessor.__new__(MultimodalProcessor)
    processor.senses = tiny
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    for placed in (0.0, 1.0):
        views = Views(pixels, np.full((2, 11), placed, np.float32), (Source("dicom"),) * 2)
        seen = processor.prepare("dicom", views).pixels
        assert torch.equal(seen[0, 3], seen[0, 0])
        assert torch.equal(seen[0, 4], seen[int(placed), 0])
