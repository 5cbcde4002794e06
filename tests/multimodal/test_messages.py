"""Chat dicts to messages and back, and what is refused with its place."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from encoders.errors import InvalidMessage
from multimodal.messages import (
    Audio,
    Image,
    Message,
    Study,
    Text,
    Video,
    from_openai,
    to_openai,
    user,
)

_paths = st.text("ab/ü.", min_size=1).map(Path)
_parts = st.one_of(
    st.text(max_size=20).map(Text),
    _paths.map(Image),
    _paths.map(Video),
    st.builds(Audio, _paths, st.none() | st.integers(1, 48000)),
    st.builds(Audio, st.binary(max_size=4)),
    _paths.map(Study),
)
_messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant"]), st.lists(_parts).map(tuple)
)


@given(st.lists(_messages, max_size=4))
@settings(max_examples=100, deadline=None)
def test_messages_survive_becoming_dicts(messages: list[Message]) -> None:
    assert from_openai(to_openai(messages)) == messages


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("adefgimotuvx", max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "image", "audio", "url", "path",
                         "dicom", "image_url", "input_audio", "data", "rate_hz"]),
        inner | st.sampled_from(["user", "text", "image", "audio", "dicom", "image_url",
                                 "input_audio"]), max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(st.lists(_json, max_size=3))
@settings(max_examples=400, deadline=None)
def test_any_json_is_read_or_refused_with_its_place(values: list[Any]) -> None:
    refused = ""
    try:
        assert all(isinstance(m, Message) for m in from_openai(values))
    except InvalidMessage as error:
        refused = str(error)
    assert refused == "" or refused.startswith("messages[")


def test_a_string_is_one_text_part_and_words_leave_media_out() -> None:
    (message,) = from_openai([{"role": "user", "content": "hello"}])
    assert message == user("hello")
    assert user("is", Image(Path("a.png")), "it").text == "is it"


@pytest.mark.parametrize("key", ["image", "url", "path"])
def test_a_value_is_found_under_its_type_url_or_path(key: str) -> None:
    content = [{"type": "image", key: "a.png"}]
    assert from_openai([{"role": "user", "content": content}]) == [user(Image(Path("a.png")))]


def test_openais_own_picture_and_sound_parts_are_read() -> None:
    picture = PilImage.new("RGB", (3, 2), (10, 20, 30))
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    sound = {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": sound},
    ]
    (message,) = from_openai([{"role": "user", "content": content}])
    image, audio = message.parts
    assert isinstance(image, Image)
    assert np.array_equal(np.asarray(image.image), np.asarray(picture))
    assert audio == Audio(b"RIFF")


def test_a_recording_with_its_rate_may_be_a_pair() -> None:
    samples = np.zeros(4)
    content = [{"type": "audio", "audio": (samples, 8000)}]
    (part,) = from_openai([{"role": "user", "content": content}])[0].parts
    assert isinstance(part, Audio)
    assert part.audio is samples
    assert part.rate_hz == 8000


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hello", r"messages\[0\] must be a dict"),
        ({"content": "hi"}, r"messages\[0\]\.role is None"),
        ({"role": "tool", "content": "hi"}, r"messages\[0\]\.role is 'tool'"),
        ({"role": "user", "content": None}, r"messages\[0\]\.content .* not NoneType"),
        ({"role": "user", "content": b"hi"}, r"messages\[0\]\.content .* not bytes"),
        ({"role": "user", "content": ["hi"]}, r"content\[0\] must be a dict with a type, not str"),
        ({"role": "user", "content": [{"type": "pdf", "pdf": "a"}]}, r"content\[0\]\.type is 'pdf'"),
        ({"role": "user", "content": [{"type": ["text"]}]}, r"content\[0\]\.type is \['text'\]"),
        ({"role": "user", "content": [{"type": "image"}]}, r"type 'image' but no value"),
        ({"role": "user", "content": [{"type": "text", "text": 7}]}, r"a int, not str"),
        ({"role": "user", "content": [{"type": "image", "image": 7}]}, r"a int, not str or Path"),
        ({"role": "user", "content": [{"type": "audio", "audio": "a.wav", "rate_hz": "x"}]},
         r"a str, not int"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]},
         r"data:image"),
        ({"role": "user", "content": [{"type": "image_url", "image_url":
          {"url": "data:image/png;base64,AAAA"}}]}, r"no picture"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, r"'data'"),
    ],
)  # fmt: skip
def test_a_malformed_message_is_refused_with_its_place(message: Any, words: str) -> None:
    with pytest.raises(InvalidMessage, match=words):
        from_openai([message])
