"""The Gradio page: review a report against a CT study, or chat. Local, no analytics, no web fonts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import CrossReadError, MissingInput
from multimodal.backends import Backend, Finished, GenerateOptions, Token, load_backend
from pipelines import pipeline
from pipelines.evidence import DISCLAIMER, Reading
from pipelines.ui.uploads import (
    KEEP_S,
    Results,
    framed,
    load_sample,
    message_of,
    messages_of,
    one_input,
)

if TYPE_CHECKING:
    import gradio

MAX_UPLOAD = "1gb"  # a file; a chest CT of 1,000 slices is half of it
_DEMO_NOTE = " It knows generated chest phantoms only, and says so of anything else."
# nothing comes from elsewhere, whatever a model's or a report's words ask the browser to fetch
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="'
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'\">"
)
_CSS = """
.reading { width: 100%; height: 78vh; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.waiting { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 2rem; text-align: center; }
"""
_WAITING = (
    '<div class="waiting">Give a study and, if you like, its report, then press Read.'
    "<br>What is found appears here, with the slices to look at.</div>"
)


def launch_options() -> dict[str, Any]:
    """What every launch of the page shares: system fonts, readable colours, a limit on uploads."""
    import gradio as gr

    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme: Any = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono
    )
    theme = theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
    )
    return {
        "theme": theme, "css": _CSS, "head": _POLICY, "footer_links": [],
        "max_file_size": MAX_UPLOAD,
    }  # fmt: skip


def build_app(model: str | Backend | None = None) -> gradio.Blocks:
    """The page with its two tabs; the model is loaded at once, so that a bad one fails here."""
    import gradio as gr

    backend = load_backend(model) if model is None or isinstance(model, str) else model
    about = f"Model: `{backend.capabilities().name}`.{_DEMO_NOTE if model is None else ''}"
    with gr.Blocks(
        title="CrossRead", analytics_enabled=False, delete_cache=(KEEP_S, KEEP_S)
    ) as page:
        gr.Markdown(
            f"# CrossRead\nDoes the report agree with the images? **{DISCLAIMER}**  \n{about}"
        )
        with gr.Tab("Report review"):
            _review_tab(gr, backend)
        with gr.Tab("Chat"):
            _chat_tab(gr, backend)
    return page


def _review_tab(gr: Any, backend: Backend) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            files = gr.File(label="Study (zip or DICOM files)", file_count="multiple", height=180)
            report = gr.Textbox(label="Report", lines=8, placeholder="Paste the report here")
            dictation = gr.Audio(
                label="…or dictate it", sources=["microphone", "upload"], type="filepath"
            )
            question = gr.Textbox(label="Question (optional)")
            with gr.Row():
                sample = gr.Button("Load the sample")
                run = gr.Button("Read", variant="primary")
        with gr.Column(scale=3):
            shown = gr.HTML(_WAITING, label="Reading")
            saved = gr.File(label="Download", interactive=False, visible=False)
    results = Results()

    def review(files: Any, report: Any, dictation: Any, question: Any) -> tuple[str, Any]:
        with _errors_as_help():
            reading = read_upload(backend, files, report, dictation=dictation, question=question)
        return framed(reading), gr.File(value=results.save(reading), visible=True)

    def sampled() -> tuple[list[str], str]:
        with _errors_as_help():
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


def _chat_tab(gr: Any, backend: Backend) -> None:
    def answer(turn: dict[str, Any], history: list[dict[str, Any]]) -> Iterator[str]:
        said = ""
        with _errors_as_help():
            messages = [*messages_of(history), message_of(turn)]
            for event in backend.generate(messages, GenerateOptions()):
                if isinstance(event, Token):
                    said += event.text
                    yield said
                elif isinstance(event, Finished):
                    yield event.text

    chatbot = gr.Chatbot(
        show_label=False, height="60vh", buttons=["copy"],
        placeholder="Ask about a picture, a recording, a video or the DICOM files of a series",
    )  # fmt: skip
    box = gr.MultimodalTextbox(
        show_label=False, file_count="multiple", placeholder="Your words, and files"
    )
    gr.ChatInterface(answer, multimodal=True, chatbot=chatbot, textbox=box, api_name="chat")


@contextmanager
def _errors_as_help() -> Iterator[None]:
    """Errors of ours are shown to the person for half a minute, and leave no traceback."""
    import gradio as gr

    try:
        yield
    except CrossReadError as error:
        raise gr.Error(str(error), duration=30, print_exception=False) from error
