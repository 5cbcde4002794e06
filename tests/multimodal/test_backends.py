"""The protocol: what every backend gives, and that nothing heavy is loaded to speak it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from encoders.errors import InvalidMessage, ModelNotFound
from multimodal.backends import Finished, GenerateOptions, Token, Usage, collect, load_backend
from multimodal.messages import user
from tests import makers
from tests.waiting import PATIENCE_S

FINISHED = Finished("done", "stop", Usage(1, 1, 0))


def test_collect_returns_the_last_event() -> None:
    assert collect(iter([Token("do"), Token("ne"), FINISHED])) is FINISHED


def test_a_backend_that_never_finishes_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="must end with Finished"):
        collect(iter([Token("do")]))


def test_the_fake_of_the_tests_keeps_the_protocol() -> None:
    fake = makers.FakeBackend(answers={"nodule": "right nodule"})
    assert collect(fake.generate([user("a nodule?")])).text == "right nodule"


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="missing"):
        load_backend(tmp_path / "missing")


def test_protocol_messages_and_prompts_load_nothing_heavy() -> None:
    script = (
        "import sys, multimodal, multimodal.backends, multimodal.messages, multimodal.prompts\n"
        "print([m for m in ('torch', 'transformers', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True,
        text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3.0"),
        ({"frequency_penalty": -3.0}, "frequency_penalty is -3.0"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"json_schema": "[1]"}, "json_schema is .* a JSON object"),
        ({"json_schema": "{"}, "json_schema is .* a JSON object"),
        ({"queue_s": 0.0}, "queue_s is 0.0"),
        ({"deadline_s": -1.0}, "deadline_s is -1.0"),
        ({"choices": ("a", "b"), "json_schema": "{}"}, "exclude each other"),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidMessage, match=words):
        GenerateOptions(**options)
