"""Conversations in every form a caller may write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders.errors import InvalidMessage
from multimodal.backends import Finished, GenerateOptions, Token
from multimodal.messages import Image, Message, Study, Text, user
from pipelines.batch import Failed
from pipelines.chat import ChatPipeline
from tests.makers import FakeBackend


class Recorder(FakeBackend):
    """Keeps whole conversations."""

    def __init__(self) -> None:
        super().__init__(answers={"hello": "good day to you"})
        self.talks: list[list[Message]] = []
        self.options: list[Any] = []

    def generate(self, messages: Any, options: Any = None) -> Any:
        self.talks.append(list(messages))
        self.options.append(options)
        return super().generate(messages, options)


@pytest.mark.parametrize(
    "chat",
    [
        "hello",
        user("hello"),
        [user("hello")],
        (user("hello"),),
        {"role": "user", "content": "hello"},
        [{"role": "user", "content": "hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    ],
)
def test_every_form_of_one_conversation_is_the_same_conversation(chat: Any):
    backend = Recorder()
    answer = ChatPipeline(backend)(chat)
    assert answer.text == "good day to you"
    assert backend.talks == [[Message("user", (Text("hello"),))]]


def test_media_parts_reach_the_model_in_their_order():
    backend = Recorder()
    parts = [
        {"type": "dicom", "dicom": "scan"}, {"type": "text", "text": "and"},
        {"type": "image", "url": "a.png"},
    ]  # fmt: skip
    ChatPipeline(backend)([{"role": "user", "content": parts}])
    assert backend.talks[0][0].parts == (Study(Path("scan")), Text("and"), Image(Path("a.png")))


def test_tokens_are_streamed_and_the_end_comes_last():
    events = list(ChatPipeline(Recorder())("hello", stream=True))
    assert [type(e) for e in events] == [Token] * 4 + [Finished]
    assert "".join(e.text for e in events[:-1]).strip() == events[-1].text


def test_options_are_handed_on():
    backend = Recorder()
    options = GenerateOptions(max_new_tokens=3, temperature=0.5)
    ChatPipeline(backend)("hello", options)
    list(ChatPipeline(backend)(["hello"], options))
    assert backend.options == [options, options]


def test_many_conversations_come_one_by_one_and_a_bad_one_is_named():
    bad = [user("hello"), {"role": "teacher", "content": "x"}]
    first, second, third = ChatPipeline(FakeBackend())(["hello", bad, [user("hello")]])
    assert isinstance(first, Finished)
    assert isinstance(second, Failed)
    assert isinstance(third, Finished)
    assert "messages[1].role is 'teacher'" in second.message


def test_an_empty_conversation_is_refused():
    with pytest.raises(InvalidMessage, match="conversation is empty"):
        ChatPipeline(FakeBackend())([])


def test_many_conversations_cannot_be_streamed():
    with pytest.raises(InvalidMessage, match="one conversation at a time"):
        ChatPipeline(FakeBackend())(["a", "b"], stream=True)


@pytest.mark.parametrize("file", ["xray/dx_image.dcm", "ultrasound/US1_UNCI.dcm", "oblique"])
def test_single_images_are_answered_about_and_pointed_at(
    shared_data: Path, tiny_composite: Any, file: str
) -> None:
    """An X-ray, an ultrasound vouched for, three oblique slices; boxes touch the stored image."""
    from encoders.dicom import let_through, scan
    from multimodal.local import LocalBackend

    series = let_through(scan(shared_data / file).default(), allow_burned_in=True)
    options = GenerateOptions(max_new_tokens=3, ground=True)
    talk = ChatPipeline(LocalBackend(*tiny_composite))
    end = talk([user(Study(series), "is there a nodule")], options)
    assert isinstance(end, Finished)
    assert end.usage.encoded_media == 1
    for region in end.regions:
        assert region.box is not None
        x0, y0, x1, y1 = region.box
        assert x0 < x1
        assert y0 < y1
        assert min(x1, y1) > 0
        assert region.source.slice_index in range(len(series.files))
