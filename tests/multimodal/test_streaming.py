"""Streamed pieces against the text decoded at once, for stop strings and characters of many bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.streaming import TextStream

_KNOWN: dict[str, Any] = {}


class _Bytes:
    """A tokenizer whose tokens are UTF-8 bytes, the hardest case of byte-level BPE."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


def _run(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream, pieces = TextStream(_Bytes(), stops), []
    for token in text.encode():
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.close()], stream


@given(text=st.text(alphabet="aE ND右肺结节é🫁", max_size=24))
@settings(max_examples=150, deadline=None)
def test_pieces_joined_are_the_text_and_hold_whole_characters(text: str) -> None:
    pieces, stream = _run(text)
    assert "".join(pieces) == text == stream.text
    assert not any("�" in piece for piece in pieces)


@given(text=st.text(alphabet="aE ND右肺结节é🫁", min_size=60, max_size=400))
@settings(max_examples=40, deadline=None)
def test_a_long_text_streams_as_it_would_be_decoded_at_once(text: str) -> None:
    pieces, _ = _run(text)
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


@given(words=st.lists(st.sampled_from(["nodule", "the", " right", "14", "mm", "; ", "肺", "é"])))
@settings(max_examples=30, deadline=None)
def test_the_demo_tokenizers_answers_stream_as_decoded_at_once(words: list[str]) -> None:
    from transformers import AutoTokenizer

    from multimodal.backends import DEMO

    tokenizer = _KNOWN.setdefault("demo", AutoTokenizer.from_pretrained(DEMO))
    tokens = tokenizer.encode(" ".join(words) * 8, add_special_tokens=False)
    stream = TextStream(tokenizer)
    told = "".join([*(stream.push(token) for token in tokens), stream.close()])
    assert told == tokenizer.decode(tokens, skip_special_tokens=True)


@given(
    text=st.text(alphabet="abEND。 ", max_size=24),
    stops=st.lists(st.sampled_from(["END", "ab", "。", "DD", "a"]), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_no_piece_holds_any_of_a_stop_string(text: str, stops: list[str]) -> None:
    pieces, stream = _run(text, tuple(stops))
    places = [text.find(stop) for stop in stops if stop in text]
    if not places:
        assert "".join(pieces) == text
        return
    assert stream.stopped
    first_end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
    cut = min(text.find(stop) for stop in stops if 0 <= text.find(stop) <= first_end - len(stop))
    assert "".join(pieces) == text[:cut]


def test_a_stop_string_is_held_back_until_it_is_decided() -> None:
    assert _run("ok EN!", ("END",))[0] == ["o", "k", " ", "", "", "EN!", ""]
    assert _run("ok END!", ("END",))[0] == ["o", "k", " ", "", "", "", ""]


def test_unfinished_bytes_at_the_end_are_not_lost() -> None:
    stream = TextStream(_Bytes())
    assert stream.push("肺".encode()[0]) == ""
    assert stream.close() == "�"
