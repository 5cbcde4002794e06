"""The pipelines with a server as their model: what it is told, and what is honest to say after it."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from multimodal import prompts
from pipelines import pipeline
from pipelines.cli import app, main
from pipelines.evidence import Reading
from pipelines.terminal import describe_reading
from tests.encoders.dicom.planting import NEEDLES, plant_study
from tests.scripted_server import ScriptedServer, fails, says, words_of

REPORT = "There is a 14 mm nodule in the left lung. The heart is normal in size."
RIGHT = "There is a 14 mm nodule in the right lung."
ANSWERS = {
    "leave out?": "nothing",
    prompts.LIST_FINDINGS: "Right nodule 14 mm; pleural effusion.",
    "nodule in the left lung": f"direction: {RIGHT}",
    "The heart is": "agrees",
    "Transcribe": "The heart is normal in size.",
    "Why?": "Because of the picture.",
}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSREAD_API_KEY", raising=False)


def follows(answers: dict[str, str], *, logprobs: bool) -> Any:
    """A model that answers by the words asked; the first fitting entry counts."""

    def play(handler: Any, body: dict[str, Any]) -> None:
        asked = words_of(body["messages"][-1]["content"])
        answer = next(a for words, a in answers.items() if words in asked)
        start = answer.partition(":")[0]
        top = {start: math.log(0.9), "maybe": math.log(0.1)} if logprobs else None
        says(start if "one of these" in asked else answer, top=top)(handler, body)

    return play


def read(server: ScriptedServer, study: Path, **more: Any) -> Reading:
    return pipeline("ct-report", server.url)(study, REPORT, **more)


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_report_is_read_over_a_server(
    model_server: ScriptedServer, phantom_series: Path, logprobs: bool
) -> None:
    model_server.script = [follows(ANSWERS, logprobs=logprobs)]
    reading = read(model_server, phantom_series, question="Why?")
    assert [(f.name, f.side, f.size_mm, f.probability) for f in reading.findings] == [
        ("nodule", "right", 14.0, None), ("pleural effusion", None, None, None),
    ]  # fmt: skip
    (point,) = reading.discrepancies
    assert (point.type, point.correction) == ("direction", RIGHT)
    assert point.probability == (pytest.approx(1.0) if logprobs else None)
    assert (reading.agreement, reading.answer) == ("disagrees", "Because of the picture.")
    assert (reading.model, reading.usage["questions"]) == ("tiny", len(model_server.seen))
    assert reading.usage["encoded_media"] == 1
    told = {body["messages"][0]["content"] for body in model_server.seen}
    assert told == {prompts.FORMS}


def test_a_model_that_tells_no_probability_gets_none_made_up(
    model_server: ScriptedServer, phantom_series: Path
) -> None:
    model_server.script = [follows(ANSWERS, logprobs=False)]
    reading = read(model_server, phantom_series)
    assert json.loads(reading.to_json())["discrepancies"][0]["probability"] is None
    assert "sure" not in describe_reading(reading)
    page = reading.to_html()
    assert "direction –" in page
    assert "None" not in page
    assert " %" not in page.partition("<body")[2]


def test_nothing_is_claimed_of_the_range_a_model_was_validated_on(
    model_server: ScriptedServer, phantom_series: Path
) -> None:
    model_server.script = [follows(ANSWERS, logprobs=True)]
    (warning,) = read(model_server, phantom_series).warnings
    assert warning.code == "RANGE_UNKNOWN"
    assert "nothing is known of the studies that tiny was validated on" in warning.message


def test_prose_for_findings_is_told_and_not_taken_for_a_normal_study(
    model_server: ScriptedServer, phantom_series: Path
) -> None:
    prose = {prompts.LIST_FINDINGS: "I see: a nodule (14 mm), perhaps more; cardiomegaly"}
    model_server.script = [follows(ANSWERS | prose, logprobs=True)]
    reading = read(model_server, phantom_series)
    assert [f.name for f in reading.findings] == ["cardiomegaly"]
    assert [w.code for w in reading.warnings] == ["RANGE_UNKNOWN", "NOT_UNDERSTOOD"]
    assert reading.warnings[1].message.startswith("1 of the findings")


def test_a_sentence_without_a_verdict_is_not_said_to_agree(
    model_server: ScriptedServer, phantom_series: Path
) -> None:
    chatty = ANSWERS | {"nodule in the left lung": "I cannot see that well"}
    model_server.script = [follows(chatty, logprobs=False)]
    reading = read(model_server, phantom_series)
    assert [(w.code, w.subject) for w in reading.warnings][1:] == [("NOT_JUDGED", "sentence 1")]
    assert (reading.agreement, reading.discrepancies) == ("abstained", ())


def test_no_identifier_of_a_study_is_sent(
    model_server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    model_server.script = [follows(ANSWERS, logprobs=True)]
    read(model_server, plant_study(tmp_path))
    sent = [f"{caplog.text} {[list(h.items()) for h in model_server.headers]}"]
    for body in model_server.seen:
        content = body["messages"][-1]["content"]
        pictures = [part.pop("image_url")["url"] for part in content if part["type"] == "image_url"]
        assert pictures
        raw = [base64.b64decode(url.partition(",")[2]).decode("latin-1") for url in pictures]
        sent += [json.dumps(body), *raw]
    assert not [needle for needle in NEEDLES for text in sent if needle in text]


def test_a_dictation_is_heard_by_a_server(model_server: ScriptedServer, speech: np.ndarray) -> None:
    model_server.script = [follows(ANSWERS, logprobs=False)]
    assert pipeline("dictation", model_server.url)((speech, 16000)).text == ANSWERS["Transcribe"]


def test_the_command_line_takes_a_server(model_server: ScriptedServer) -> None:
    model_server.script = [says("well|, yes")]
    done = CliRunner().invoke(app, ["chat", "Well?", "--model", model_server.url])
    assert (done.exit_code, done.stdout) == (0, "well, yes\n")


def test_trouble_with_a_server_is_a_line_and_exit_code_5(
    model_server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model_server.script = [fails(401)]
    monkeypatch.setattr("sys.argv", ["crossread", "chat", "Well?", "--model", model_server.url])
    with pytest.raises(SystemExit, match="5"):
        main()
    assert "refuses access (401); check CROSSREAD_API_KEY" in capsys.readouterr().err
