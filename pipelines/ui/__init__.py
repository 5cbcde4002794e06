"""The Gradio page: review a report against a CT study, or chat. Local, no analytics, no web fonts."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import CrossReadError
from multimodal.backends import DEMO, Backend, Finished, GenerateOptions, Token, load_backend
from multimodal.messages import Audio, Image, Message, Part, Study, Text, Video
from pipelines import pipeline
from pipelines.evidence import DISCLAIMER

if TYPE_CHECKING:
    import gradio

_KEEP_S = 1800  # uploads are deleted after half an hour
_KINDS: dict[str, type[Image] | type[Audio] | type[Video]] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"), Image),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"), Audio),
    **dict.fromkeys((".mp4", ".mov", ".mkv", ".avi", ".webm"), Video),
}


def launch_options() -> dict[str, Any]:
    """What every launch of the page shares: a plain theme with the system's own fonts."""
    import gradio as gr

    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Soft(primary_hue="teal", font=fonts, font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "footer_links": []}


def build_app(model: str | Backend | None = None) -> gradio.Blocks:
    """The page with its two tabs; the model is loaded at once, so that a bad one fails here."""
    import gradio as gr

    backend = load_backend(model) if model is None or isinstance(model, str) else model
    with gr.Blocks(
        title="CrossRead", analytics_enabled=False, delete_cache=(_KEEP_S, _KEEP_S)
    ) as page:
        gr.Markdown(
            f"# CrossRead\nDoes the report agree with the images? **{DISCLAIMER}**"
            f"  \nModel: `{backend.capabilities().name}`. The shipped demo model knows generated"
            " chest phantoms only, and says so of anything else."
        )
        with gr.Tab("Report review"):
            _review_tab(gr, backend)
        with gr.Tab("Chat"):
            _chat_tab(gr, backend)
    return page


def _review_tab(gr: Any, backend: Backend) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            files = gr.File(
                label="Study: a zip, or all DICOM files of a series", file_count="multiple",
                height=140,
            )  # fmt: skip
            report = gr.Textbox(label="Report", lines=8, placeholder="Paste the report here")
            dictation = gr.Audio(
                label="…or dictate it", sources=["microphone", "upload"], type="filepath"
            )
            question = gr.Textbox(label="Question (optional)")
            with gr.Row():
                sample = gr.Button("Load the sample")
                run = gr.Button("Read", variant="primary")
        with gr.Column(scale=3):
            shown = gr.HTML("<p>The reading appears here.</p>", label="Reading")
            saved = gr.File(label="Reading as JSON", interactive=False, visible=False)

    def review(files: Any, report: Any, dictation: Any, question: Any) -> tuple[str, Any]:
        return read_upload(backend, files, report, dictation=dictation, question=question)

    inputs = [files, report, dictation, question]
    run.click(review, inputs, [shown, saved], api_name="read")
    sample.click(load_sample, None, [files, report], api_name=False)


def read_upload(
    backend: Backend,
    files: Sequence[str] | None,
    report: str | None = None,
    *,
    dictation: str | None = None,
    question: str | None = None,
) -> tuple[str, Any]:
    """The reading of uploaded files as a framed page, and its JSON file.

    Raises:
        gradio.Error: what was wrong with the input, for the page to show.
    """
    import gradio as gr

    if not files:
        raise gr.Error("Give a study first: a zip, or the DICOM files of a series.")
    try:
        with tempfile.TemporaryDirectory(prefix="crossread-") as folder:
            study = _one_input([Path(f) for f in files], Path(folder))
            read = pipeline("ct-report", backend)
            reading = read(study, report or None, dictation or None, question or None)
    except CrossReadError as error:
        raise gr.Error(str(error)) from error
    out = Path(tempfile.mkdtemp(prefix="crossread-")) / "reading.json"
    out.write_text(reading.to_json(), encoding="utf-8")
    framed = html.escape(reading.to_html(), quote=True)
    frame = (
        f'<iframe title="Reading" sandbox srcdoc="{framed}"'
        ' style="width:100%;height:75vh;border:0;border-radius:8px"></iframe>'
    )
    return frame, gr.File(value=str(out), visible=True)


def load_sample() -> tuple[list[str], str]:
    """The shipped study's files and its report."""
    folder = DEMO / "sample"
    files = [str(f) for f in sorted((folder / "study").iterdir())]
    return files, (folder / "report.txt").read_text(encoding="utf-8")


def _one_input(files: list[Path], folder: Path) -> Path:
    """One upload as it is; several as one folder of links, their names made distinct."""
    if len(files) == 1:
        return files[0]
    for number, file in enumerate(files):
        (folder / f"{number:05d}.dcm").symlink_to(file.resolve())
    return folder


def _chat_tab(gr: Any, backend: Backend) -> None:
    def answer(turn: dict[str, Any], history: list[dict[str, Any]]) -> Iterator[str]:
        messages = [*messages_of(history), Message("user", parts_of(turn))]
        said = ""
        try:
            for event in backend.generate(messages, GenerateOptions()):
                if isinstance(event, Token):
                    said += event.text
                    yield said
                elif isinstance(event, Finished):
                    yield event.text
        except CrossReadError as error:
            raise gr.Error(str(error)) from error

    gr.ChatInterface(answer, multimodal=True, api_name="chat")


def messages_of(history: Sequence[dict[str, Any]]) -> list[Message]:
    """Gradio's history as messages; files it lists become media parts."""
    messages = []
    for turn in history:
        content = turn["content"]
        items = content if isinstance(content, list) else [content]
        parts: list[Part] = []
        for item in items:
            if isinstance(item, str):
                parts.append(Text(item))
            elif item.get("type") == "text":
                parts.append(Text(item["text"]))
            else:
                parts.append(_medium(Path((item.get("file") or item)["path"])))
        messages.append(Message(turn["role"], tuple(parts)))
    return messages


def parts_of(turn: dict[str, Any]) -> tuple[Part, ...]:
    """A new turn of the chat box: its files, then its words."""
    files = [f if isinstance(f, str) else f["path"] for f in turn.get("files") or ()]
    media = tuple(_medium(Path(f)) for f in files)
    return (*media, Text(turn["text"])) if turn.get("text") else media


def _medium(path: Path) -> Part:
    """A file by its ending; everything that is no picture, sound or video is taken for DICOM."""
    kind = _KINDS.get(path.suffix.lower())
    return kind(path) if kind else Study(path)
