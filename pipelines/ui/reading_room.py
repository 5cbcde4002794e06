"""The reading room: a study and its report in, one framed reading and its files out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoders.errors import MissingInput
from multimodal.backends import Backend
from pipelines import pipeline
from pipelines.evidence import Reading
from pipelines.ui.guards import errors_as_help
from pipelines.ui.uploads import Results, framed, load_sample, one_input
from pipelines.ui.words import say

CSS = """
.reading { width: 100%; height: 78vh; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.waiting { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 2rem; text-align: center; }
"""
_WAITING = (
    '<div class="waiting">Give a study and, if you like, its report, then press Read.'
    "<br>What is found appears here, with the slices to look at.</div>"
)


def build_reading_room(backend: Backend) -> None:
    """The room's components and events, within the page being built."""
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=2):
            files = gr.File(label=say("study"), file_count="multiple", height=180)
            report = gr.Textbox(label=say("report"), lines=8, placeholder=say("paste_report"))
            dictation = gr.Audio(
                label=say("dictate"), sources=["microphone", "upload"], type="filepath"
            )
            question = gr.Textbox(label=say("question"))
            with gr.Row():
                sample = gr.Button(say("load_sample"))
                run = gr.Button(say("read"), variant="primary")
        with gr.Column(scale=3):
            shown = gr.HTML(_WAITING, label=say("reading"))
            saved = gr.File(label=say("download"), interactive=False, visible=False)
    results = Results()

    def review(files: Any, report: Any, dictation: Any, question: Any) -> tuple[str, Any]:
        with errors_as_help():
            reading = read_upload(backend, files, report, dictation=dictation, question=question)
        return framed(reading), gr.File(value=results.save(reading), visible=True)

    def sampled() -> tuple[list[str], str]:
        with errors_as_help():
            return load_sample()

    run.click(review, [files, report, dictation, question], [shown, saved], api_name="read")
    sample.click(sampled, None, [files, report], api_visibility="private", show_progress="hidden")


def read_upload(
    backend: Backend,
    files: Sequence[str] | None,
    report: str | None = None,
    *,
    dictation: str | None = None,
    question: str | None = None,
) -> Reading:
    """The reading of uploaded files.

    Raises:
        InputError: nothing given, or nothing that can be read.
    """
    if not files:
        raise MissingInput("Give a study first: a zip, or the DICOM files of a series.")
    with one_input([Path(f) for f in files]) as study:
        return pipeline("ct-report", backend)(study, report, dictation, question)
