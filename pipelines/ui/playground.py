"""The playground: a conversation about text, pictures, sound, video and DICOM, as it is answered.

Lays out the room and wires its events. The conversation (`pipelines.ui.conversation`) lives in the
session's state and is never written to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr  # here, not in the functions: it reads their annotations

from multimodal.backends import DEMO, Backend, GenerateOptions
from pipelines import pipeline
from pipelines.ui.conversation import Turn, answered, messages_of, shown, turn_at, turn_of
from pipelines.ui.gates import Gates
from pipelines.ui.guards import errors_as_help
from pipelines.ui.uploads import link, new_place
from pipelines.ui.words import say, told

CSS = """
.talk button:is([aria-label="Share"], [aria-label="分享"]) { display: none; }  /* it would publish */
/* an error is told in the corner; it does not cover what was said, or what was typed */
.talk, .talk-box { [data-testid="status-tracker"]:has(.error) { display: none !important; } }
.model-card { font-size: 0.9em; }
"""
MAX_NEW_TOKENS = 1024
_RECORDING = Path(__file__).parent / "examples" / "dictation.ogg"
_SAMPLE = DEMO / "sample" / "study"

Talk = list[Turn]
_Seen = tuple[Talk, list[Any]]  # what is kept, and the chatbot's messages


@dataclass(frozen=True)
class Example:
    """A question that runs on a click; `name` is its key in the table of words."""

    name: str
    words: str
    files: tuple[Path, ...] = ()


def examples() -> tuple[Example, ...]:
    """What this installation can show: the sample study's questions where it has one."""
    study = (_SAMPLE,) if _SAMPLE.is_dir() else ()
    about_study = (
        Example("example_show", "What does this study show?", study),
        Example("example_list", "List the findings.", study),
        Example("example_nodule", "Is there a nodule?", study),
    )
    heard = Example("example_hear", "Transcribe the recording.", (_RECORDING,))
    return (*(about_study if study else ()), heard)


@dataclass(frozen=True)
class Talker:
    """The room's events as functions: a conversation before -> the conversation after."""

    gates: Gates

    def ask(self, box: dict[str, Any], talk: Talk) -> Talk:
        """The box's content as a new turn."""
        files = [Path(f if isinstance(f, str) else f["path"]) for f in box["files"]]
        with errors_as_help():
            return [*talk, turn_of(box["text"], files, new_place())]

    def ask_example(self, example: Example, talk: Talk) -> Talk:
        """An example as a new turn."""
        place = new_place()
        files = [f if f.is_dir() else link(f, place / f.name) for f in example.files]
        with errors_as_help():
            return [*talk, turn_of(example.words, files, place)]

    def edit(self, index: int, words: str, talk: Talk) -> Talk:
        """The turn with other words; what came after it is gone."""
        number = turn_at(talk, index)
        return [*talk[:number], replace(talk[number].unanswered(), words=words)]

    def retry(self, talk: Talk) -> Talk:
        """The last question once more."""
        return [*talk[:-1], talk[-1].unanswered()] if talk else []

    def answer(
        self, talk: Talk, options: GenerateOptions, sparsity: float | None
    ) -> Iterator[Talk]:
        """The last question's answer as it is made."""
        started = time.perf_counter()
        with errors_as_help():
            chat = pipeline("chat", self.gates.at(sparsity))
            events = chat(messages_of(talk), options, stream=True)
            for turn in answered(talk[-1], events, lambda: time.perf_counter() - started):
                yield [*talk[:-1], turn]


def describe_model(backend: Backend, table: Mapping[str, str]) -> str:
    """Name, senses and context of the model, as Markdown in the language of a table."""
    able = backend.capabilities()
    senses = table["list_comma"].join(table[f"sense_{sense}"] for sense in sorted(able.modalities))
    return f"**{able.name}** · {senses} · {table['context'].format(tokens=able.max_len)}"


def build_playground(page: gr.Blocks, backend: Backend) -> None:
    """The room's components and events, within the page being built."""
    talker = Talker(Gates(backend))

    def described(request: gr.Request) -> str:
        return describe_model(backend, told(request))

    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            chatbot = gr.Chatbot(
                show_label=False, height="60vh", buttons=["copy"], elem_classes="talk",
                placeholder=say("chat_empty"), editable="user",
            )  # fmt: skip
            box = gr.MultimodalTextbox(
                show_label=False, file_count="multiple", placeholder=say("chat_box"),
                sources=["upload", "microphone"], elem_classes="talk-box", max_plain_text_length=20_000,
            )  # fmt: skip
            with gr.Row():
                clicks = [gr.Button(say(e.name), size="sm", min_width=140) for e in examples()]
        with gr.Column(scale=1, min_width=220):
            card = gr.Markdown(elem_classes="model-card")
            page.load(
                described, None, card, api_visibility="private", show_progress="hidden", queue=False
            )
            temperature = gr.Slider(
                0.0, 1.5, 0.0, step=0.1, label=say("temperature"), info=say("temperature_info")
            )
            tokens = gr.Slider(16, MAX_NEW_TOKENS, 256, step=16, label=say("max_tokens"))
            sparsity = _sparsity(talker)
    _wire(talker, chatbot, box, settings=[temperature, tokens, sparsity], clicks=clicks)


def _sparsity(talker: Talker) -> Any:
    """The slider with the compute it saves; a constant where the model's gates cannot be set."""

    def saving(share: float) -> str:
        return f"−{talker.gates.saving(share):.0%}"

    share = talker.gates.share
    if share is None:
        return gr.State(None)
    slider = gr.Slider(0.0, 0.9, share, step=0.1, label=say("sparsity"), info=say("sparsity_info"))
    saved = gr.Textbox(saving(share), label=say("sparsity_saves"), interactive=False)
    slider.release(saving, slider, saved, api_visibility="private", show_progress="hidden")
    return slider


def _wire(
    talker: Talker, chatbot: Any, box: Any, *, settings: list[Any], clicks: list[Any]
) -> None:
    talk = gr.State([])
    both = [talk, chatbot]
    private: dict[str, Any] = {"api_visibility": "private"}
    quiet: dict[str, Any] = {**private, "show_progress": "hidden", "queue": False}

    def asked(given: Any, talk: Talk, request: gr.Request) -> tuple[Any, Any, Any]:
        return *_seen(talker.ask(given, talk), request), gr.MultimodalTextbox(value=None)

    def choosing(example: Example) -> Callable[..., _Seen]:
        def chosen(talk: Talk, request: gr.Request) -> _Seen:
            return _seen(talker.ask_example(example, talk), request)

        return chosen  # no partial: Gradio would not see its annotations

    def edited(talk: Talk, event: gr.EditData, request: gr.Request) -> _Seen:
        return _seen(talker.edit(int(str(event.index)), event.value, talk), request)

    def retried(talk: Talk, request: gr.Request) -> _Seen:
        return _seen(talker.retry(talk), request)

    def undone(talk: Talk, request: gr.Request) -> tuple[Any, Any, Any]:
        words = talk[-1].words if talk else ""
        return *_seen(talk[:-1], request), {"text": words, "files": []}

    def _answering(
        talk: Talk, temperature: float, tokens: int, sparsity: float | None, request: gr.Request
    ) -> Iterator[_Seen]:
        options = GenerateOptions(max_new_tokens=int(tokens), temperature=temperature)
        for said in talker.answer(talk, options, sparsity):
            yield _seen(said, request)

    begun = [
        box.submit(asked, [box, talk], [*both, box], **private),
        chatbot.edit(edited, talk, both, **quiet),
        chatbot.retry(retried, talk, both, **quiet),
        *(click.click(choosing(example), talk, both, **private)
          for click, example in zip(clicks, examples(), strict=True)),
    ]  # fmt: skip
    running = []
    for event in begun:
        busy = event.success(lambda: _box(True), None, box, **quiet)
        run = busy.success(_answering, [talk, *settings], both, **private)
        run.then(lambda: _box(False), None, box, **quiet)
        running.append(run)
    box.stop(lambda: _box(False), None, box, cancels=running, **quiet)
    chatbot.undo(undone, talk, [*both, box], **quiet)
    chatbot.clear(list, None, talk, **quiet)


def _seen(talk: Talk, request: gr.Request) -> _Seen:
    return talk, shown(talk, told(request))


def _box(busy: bool) -> Any:
    """The chat box with its button: stop while an answer is made, else send."""
    return gr.MultimodalTextbox(submit_btn=not busy, stop_btn=busy)
