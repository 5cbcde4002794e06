"""How surely a recording was heard, by the tokens that its words came with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import Refused
from multimodal.backends import Finished, GenerateOptions, Logprob, Token, Usage
from multimodal.heard import Piece, how_surely, write_down
from multimodal.messages import Message

_words = st.lists(
    st.tuples(st.text("ab肺 .", min_size=1, max_size=4), st.floats(-3, 0)), max_size=8
)


class Told:
    """A backend that answers with these tokens."""

    def __init__(self, *tokens: Token) -> None:
        self.tokens, self.options = tokens, GenerateOptions()

    def generate(self, messages: Sequence[Message], options: GenerateOptions) -> Iterator[Any]:
        """Ends with the text of the tokens."""
        self.options = options
        yield from self.tokens
        yield Finished("".join(t.text for t in self.tokens), "stop", Usage(1, 1, 0))


def test_a_piece_is_as_likely_as_all_tokens_that_it_waited_for() -> None:
    """A Chinese character of two tokens: the first comes without text."""
    half, rest = Logprob("\ufffd", math.log(0.5)), Logprob("\ufffd", math.log(0.4))
    backend: Any = Told(Token("No ", (Logprob("No ", math.log(0.9)),)), Token("", (half,)),
                        Token("肺", (rest,)), Token("."))  # fmt: skip
    finished, pieces = write_down(backend, np.zeros(16000, np.float32), 16000)
    assert backend.options.logprobs == 0
    assert finished.text == "No 肺."
    assert [piece.text for piece in pieces] == ["No ", "肺", "."]
    assert [p.logprob and math.exp(p.logprob) for p in pieces] == [
        pytest.approx(0.9), pytest.approx(0.2), None
    ]  # fmt: skip


def test_a_server_that_refuses_to_tell_is_asked_without() -> None:
    class Refuses(Told):
        def generate(self, messages: Sequence[Message], options: GenerateOptions) -> Iterator[Any]:
            if options.logprobs is not None:
                raise Refused("no such option")
            return super().generate(messages, options)

    finished, pieces = write_down(Refuses(Token("No.")), np.zeros(16000, np.float32), 16000)  # type: ignore[arg-type]
    assert (finished.text, pieces) == ("No.", (Piece("No."),))


@given(_words, _words)
def test_a_sentence_is_as_likely_as_its_own_words_together(
    first: list[tuple[str, float]], second: list[tuple[str, float]]
) -> None:
    parts = [[Piece(*word) for word in words if word[0].strip()] for words in (first, second)]
    sentences = [
        "".join(piece.text for piece in part) + end for part, end in zip(parts, "!?", strict=True)
    ]
    found = how_surely([*parts[0], Piece("! "), *parts[1], Piece("?")], sentences)
    for chance, part in zip(found, parts, strict=True):
        assert chance == pytest.approx(math.prod(math.exp(piece.logprob or 0.0) for piece in part))


def test_what_stands_twice_is_found_where_it_stands() -> None:
    pieces = [
        Piece("No nodule. ", math.log(0.9)),
        Piece("No ", 0.0),
        Piece("nodule.", math.log(0.3)),
    ]
    assert how_surely(pieces, ["No nodule.", "No nodule."]) == pytest.approx([0.9, 0.3])
    assert how_surely(pieces, ["No nodule.", "No mass.", "No nodule."]) == pytest.approx(
        [0.9, 1.0, 0.3]
    )
    assert how_surely(pieces, ["No nodule."]) == pytest.approx([0.3])  # dictated anew
    assert how_surely([], ["No nodule.", ""]) == [1.0, 1.0]


def test_sentences_may_have_changed_their_order() -> None:
    pieces = [Piece("No nodule.", math.log(0.9)), Piece(" No mass.", math.log(0.3))]
    assert how_surely(pieces, ["No mass.", "No nodule."]) == pytest.approx([0.3, 0.9])


@pytest.mark.parametrize(
    ("heard", "written"),
    [
        ("15 mm nodule.", "5 mm nodule."),
        ("右肺未见结节。", "未见结节。"),
        ("A nodule.", "A small nodule."),
    ],
)
def test_what_a_person_has_changed_was_not_misheard(heard: str, written: str) -> None:
    assert how_surely([Piece(heard, -2.0)], [written]) == [1.0]


def test_a_sentence_over_two_segments_is_found_whatever_the_spaces() -> None:
    pieces = [Piece(" There is a"), Piece(" nodule", math.log(0.5)), Piece(" "), Piece(" "),
              Piece(" in the"), Piece("\nright lung.", math.log(0.8))]  # fmt: skip
    assert how_surely(pieces, ["There is a nodule in the right lung."]) == pytest.approx([0.4])


def test_a_word_that_two_sentences_share_is_counted_for_both() -> None:
    pieces = [Piece("No", 0.0), Piece(" mass. No", math.log(0.5)), Piece(" nodule.", math.log(0.8))]
    assert how_surely(pieces, ["No mass.", "No nodule."]) == pytest.approx([0.5, 0.4])
