"""The pipelines and the command line with a native checkpoint as their model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures
from typer.testing import CliRunner

from encoders.errors import IncompatibleModel
from multimodal import prompts
from multimodal.backends import GenerateOptions, load_backend
from multimodal.messages import Image, Message, Text, user
from pipelines import pipeline
from pipelines.cli import app
from tests.multimodal import native_zoo as zoo

REPORT = "There is a nodule in the left lung. The heart is normal in size."


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny checkpoint, made when it is first asked for."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = getattr(zoo, f"save_{family}")(tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_a_report_is_read_by_a_native_checkpoint(
    folder_of: Callable[[str], Path], phantom_series: Path, family: str
) -> None:
    """A random model says nothing of worth: what is asked, told, read and not claimed counts."""
    backend = load_backend(folder_of(family))
    reading = pipeline("ct-report", backend)(phantom_series, REPORT, question="Why?")
    assert reading.model == folder_of(family).name
    assert reading.report == REPORT
    codes = [warning.code for warning in reading.warnings]
    assert "RANGE_UNKNOWN" in codes
    assert "NOT_UNDERSTOOD" not in codes  # held to the forms, so even a random model is parsed
    assert reading.usage["encoded_media"] == 1
    assert reading.usage["questions"] >= 5
    assert reading.provenance["weights_sha256"] == backend.capabilities().weights_sha256
    json.loads(reading.to_json())
    assert "<html" in reading.to_html()


def test_the_forms_are_told_before_the_question(folder_of: Callable[[str], Path]) -> None:
    backend = load_backend(folder_of("gemma3"))
    forms = Message("system", (Text(prompts.FORMS),))
    text = backend.prompter.write([forms, user(prompts.LIST_FINDINGS)]).text  # type: ignore[attr-defined]
    assert text == (
        f"<bos><start_of_turn>user\n{prompts.FORMS}\n\n{prompts.LIST_FINDINGS}<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_a_conversation_goes_on_over_a_native_checkpoint(
    folder_of: Callable[[str], Path], family: str
) -> None:
    talk = pipeline("chat", folder_of(family))
    picture = Pictures.fromarray(np.full((40, 60, 3), 90, np.uint8))
    options = GenerateOptions(max_new_tokens=4)
    first = talk([user(Image(picture), "What is it?")], options)
    answer = Message("assistant", (Text(first.text or "Nothing."),))
    second = talk([user(Image(picture), "What is it?"), answer, user("Sure?")], options)
    assert (first.usage.encoded_media, second.usage.encoded_media) == (1, 0)
    pieces = list(talk("Hello?", options, stream=True))
    assert pieces[-1].text == "".join(getattr(e, "text", "") for e in pieces[:-1]).strip()


@pytest.mark.parametrize("family", ["voxtral", "qwen2_5_omni"])
def test_a_dictation_is_heard_by_a_native_checkpoint(
    folder_of: Callable[[str], Path], speech: np.ndarray, family: str
) -> None:
    transcript = pipeline("dictation", folder_of(family))((speech, 16000))
    assert transcript.spent[0].encoded_media == 1
    assert transcript.spent[0].new_tokens > 0


def test_a_model_that_only_reads_chats_and_is_refused_for_a_study(
    folder_of: Callable[[str], Path], phantom_series: Path
) -> None:
    task = pipeline("ct-report", folder_of("deepseek_llm"))
    with pytest.raises(IncompatibleModel, match="cannot see; choose a model with a vision tower"):
        task(phantom_series)
    with pytest.raises(IncompatibleModel, match="cannot hear"):
        pipeline("dictation", folder_of("deepseek_llm"))("said.wav")


def test_the_command_line_takes_a_native_checkpoint(folder_of: Callable[[str], Path]) -> None:
    command = ["chat", "Well?", "--model", str(folder_of("deepseek_llm")), "--max-new-tokens", "3"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["new_tokens"] == 3
