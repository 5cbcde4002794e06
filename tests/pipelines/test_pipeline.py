"""`pipeline(task, model=…)`: what is asked of it is honoured or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders.errors import InvalidMessage, ModelNotFound
from pipelines import pipeline
from pipelines.chat import ChatPipeline
from pipelines.ct_report import CtReportPipeline
from pipelines.dictation import DictationPipeline
from tests.makers import FakeBackend


@pytest.mark.parametrize(
    ("task", "kind"),
    [("ct-report", CtReportPipeline), ("chat", ChatPipeline), ("dictation", DictationPipeline)],
)
def test_every_task_has_its_pipeline(task: Any, kind: type):
    backend = FakeBackend()
    made = pipeline(task, backend)
    assert type(made) is kind
    assert made.backend is backend


def test_an_unknown_task_is_refused_before_a_model_is_loaded():
    with pytest.raises(InvalidMessage, match="unknown task 'ct_report'; there are 'ct-report'"):
        pipeline("ct_report", "nowhere")  # type: ignore[call-overload]


def test_a_model_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(ModelNotFound, match="no model at 'nowhere'"):
        pipeline("chat", tmp_path / "nowhere")


def test_how_to_run_is_handed_to_the_loader(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(
        "multimodal.backends.load_backend", lambda *a, **k: asked.append((a, k)) or FakeBackend()
    )
    pipeline("chat", "folder", device="cpu", dtype="float32", sparsity=0.5)
    pipeline("chat")
    assert asked == [
        (("folder",), {"device": "cpu", "dtype": "float32", "sparsity": 0.5}),
        ((None,), {"device": "auto", "dtype": "auto", "sparsity": None}),
    ]


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"dtype": "float32"}, {"sparsity": 0.5}])
def test_a_loaded_backend_takes_no_loading_options(options: dict[str, Any]):
    with pytest.raises(InvalidMessage, match="loaded already"):
        pipeline("chat", FakeBackend(), **options)
