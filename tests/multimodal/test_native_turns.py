"""Answers in turns of a token: what the engine cannot pack honours the same options all the same.

And one request that fails hurts no other.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image as Pictures

from encoders.errors import InvalidPixels
from multimodal.backends import Finished, GenerateOptions, Token, collect
from multimodal.messages import Image, user
from multimodal.native import NativeBackend
from tests.multimodal.test_native_answers import SHORT, reference

# each has its reason not to be packed
IN_TURNS = ("gemma3", "gemma4", "qwen3_vl", "phi4_multimodal")


@pytest.mark.parametrize("family", [*IN_TURNS, "qwen2_5_vl", "voxtral"])
def test_an_answer_fulfils_its_json_schema(
    native: Callable[[str], NativeBackend], family: str
) -> None:
    """A random model's answers, parsed and checked by jsonschema; with Mistral's tokenizer too."""
    import jsonschema

    side = {"enum": ["left", "right"]}
    wanted = {"side": side, "size": {"type": "integer", "minimum": 1, "maximum": 99}}
    schema = {"type": "object", "properties": wanted, "required": ["side", "size"],
              "additionalProperties": False}  # fmt: skip
    options = GenerateOptions(max_new_tokens=64, json_schema=json.dumps(schema))
    finished = collect(native(family).generate([user("Where is it?")], options))
    assert finished.reason == "stop"
    jsonschema.validate(json.loads(finished.text), schema)


@pytest.mark.parametrize("family", IN_TURNS)
def test_a_stop_string_ends_the_answer(native: Callable[[str], NativeBackend], family: str) -> None:
    backend, turns = native(family), [user("Is there a nodule?")]
    whole = collect(backend.generate(turns, GenerateOptions(max_new_tokens=12))).text
    stop = whole[3:6]
    finished = collect(backend.generate(turns, GenerateOptions(max_new_tokens=12, stop=(stop,))))
    assert finished.text == whole[: whole.index(stop)].strip()
    assert finished.reason == "stop"


@pytest.mark.parametrize("family", IN_TURNS)
def test_time_limits_end_an_answer(native: Callable[[str], NativeBackend], family: str) -> None:
    backend, turns = native(family), [user("Is there a nodule?")]
    for option in ({"deadline_s": 1e-9}, {"queue_s": 1e-9}):
        finished = collect(backend.generate(turns, GenerateOptions(**option)))  # type: ignore[arg-type]
        assert (finished.text, finished.reason) == ("", "timeout")


@pytest.mark.parametrize("family", IN_TURNS)
def test_an_answer_in_turns_streams_is_cancelled_and_tells_log_probabilities(
    native: Callable[[str], NativeBackend], picture: Pictures.Image, family: str
) -> None:
    """One is read to its end while another is begun and left; a third is scored by the model itself."""
    backend, turns = native(family), [user(Image(picture), "What is it?")]
    left = backend.generate([user("Say more.")], GenerateOptions(max_new_tokens=200))
    next(left)
    *pieces, finished = backend.generate(turns, GenerateOptions(max_new_tokens=6, logprobs=1))
    assert isinstance(finished, Finished)
    assert "".join(piece.text for piece in pieces).strip() == finished.text
    assert finished.text == reference(backend, turns)
    told = [lp for piece in pieces if isinstance(piece, Token) for lp in piece.logprobs]
    with torch.inference_mode():
        first = backend.model(**backend.prompter.write(turns).tensors).logits[0, -1].log_softmax(-1)
    assert len(told) == finished.usage.new_tokens
    assert told[0].logprob == pytest.approx(float(first.max()), abs=1e-3)
    left.close()  # type: ignore[attr-defined]
    assert backend.load().running == backend.load().waiting == 0


@pytest.mark.parametrize("broken", ["raises", "nan"])
@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_one_that_fails_half_way_fails_alone_and_leaves_nothing_behind(
    native: Callable[[str], NativeBackend], picture: Pictures.Image,
    family: str, broken: str,
) -> None:  # fmt: skip
    """Its last layer fails in the third step, when the layers before it have kept their keys."""
    backend, asked = native(family), [user(Image(picture), "What is it?")]
    other = [user("Is there a nodule?")]
    alone = [reference(backend, turns) for turns in (asked, other)]
    each = GenerateOptions(max_new_tokens=6, logprobs=0)  # an event for each token
    poisoned, neighbour = (backend.generate(turns, each) for turns in (asked, other))
    begun = [next(poisoned), next(poisoned), next(neighbour)]
    layer = backend.model.get_decoder().layers[-1]

    def fail(module: Any, args: Any, output: Any) -> Any:
        if broken == "raises":
            raise RuntimeError("out of memory")
        return torch.full_like(output, torch.nan) if isinstance(output, torch.Tensor) else (
            torch.full_like(output[0], torch.nan), *output[1:]
        )  # fmt: skip

    with layer.register_forward_hook(fail), pytest.raises((RuntimeError, InvalidPixels)):
        next(poisoned)
    told = collect(itertools.chain(begun[2:], neighbour))
    again = collect(backend.generate(asked, SHORT))
    assert [again.text, told.text] == alone
    assert again.usage.encoded_media == 1  # nothing was kept of the one that failed
