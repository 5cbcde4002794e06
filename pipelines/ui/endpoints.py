"""The page's named endpoints, for `gradio_client` and, as tools, for MCP: review, chat, transcribe.

One file a call, JSON types back. What they do is what the rooms do; README shows a call of each.
"""

from __future__ import annotations

from typing import Any

from gradio import FileData  # here, not in the functions: Gradio reads their annotations
from gradio.events import api
from starlette.requests import Request
from starlette.responses import JSONResponse

from multimodal.backends import Backend, GenerateOptions
from multimodal.messages import Audio, Study
from pipelines import pipeline
from pipelines.ui.conversation import messages_of, turn_of
from pipelines.ui.guards import errors_as_help, require_small
from pipelines.ui.uploads import new_place, received


def health(_: Request) -> JSONResponse:
    """That the page answers; it was built with its model loaded."""
    return JSONResponse({"status": "ok"})


def build_endpoints(backend: Backend) -> None:
    """Add the endpoints to the page being built."""

    def review(
        study: FileData, report: str = "", dictation: FileData | None = None, question: str = ""
    ) -> dict[str, Any]:
        """Compare a CT study with its report: differences, findings with slices, and warnings.

        Research software, not a medical device; not for clinical use.

        Args:
            study: a zip of DICOM files, or one DICOM file.
            report: the report's text.
            dictation: a recording of the report, instead of its text.
            question: a question about the study.
        """
        with errors_as_help():
            said = received(dictation) if dictation else None
            given = received(study)
            require_small([Study(given), *([Audio(said)] if said else [])])
            read = pipeline("ct-report", backend)
            reading = read(given, report or None, said, question or None)
            return reading.to_dict()

    def chat(words: str, file: FileData | None = None, max_new_tokens: int = 256) -> dict[str, Any]:
        """Ask about a picture, recording, video or DICOM study, or about nothing but the words.

        Args:
            words: the question.
            file: what it is about: a picture, a recording, a video, a DICOM file or a zip of them.
            max_new_tokens: the longest answer.
        """
        with errors_as_help():
            files = [received(file)] if file else []
            asked = messages_of([turn_of(words, files, new_place())])
            answer = pipeline("chat", backend)(asked, GenerateOptions(max_new_tokens))
            return {"text": answer.text, "reason": answer.reason}

    def transcribe(recording: FileData) -> dict[str, Any]:
        """Turn a dictation into text, with the seconds of each segment and how likely it was said so.

        Args:
            recording: wav, flac, mp3, ogg, m4a or webm.
        """
        with errors_as_help():
            heard = received(recording)
            require_small([Audio(heard)])
            return pipeline("dictation", backend)(heard).to_dict()

    # the signatures tell callers of files; what comes is a dict, or of MCP for an optional file a str
    for endpoint in (review, chat, transcribe):
        api(endpoint, api_name=endpoint.__name__, concurrency_id="model")
