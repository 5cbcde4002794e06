"""The reading room's components and events: study and viewer on one side, words and reading beside.

What is drawn by JavaScript (`pipelines.ui.viewer`) gets plain values and shows them as text.
"""

# No `from __future__ import annotations` here: Gradio reads the handlers' annotations, and what they
# name is imported within the functions.

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoders.dicom.identifiers import identifiers_of
from encoders.errors import MissingInput
from multimodal.backends import Backend
from pipelines.dictation import Listening
from pipelines.documents import read_report
from pipelines.ui import flows
from pipelines.ui.guards import errors_as_help
from pipelines.ui.rooms import Room, Rooms
from pipelines.ui.uploads import load_sample
from pipelines.ui.viewer import PREFIX
from pipelines.ui.words import say

CSS = """
#study-files { min-height: 0; }
.cr-side { gap: .75rem; }
@media (max-width: 640px) { .gradio-container { padding: .5rem !important; } }
"""
_REPORT_FILES = [".txt", ".docx", ".pdf", ".dcm", *flows.RECORDINGS]


def build_reading_room(page: Any, backend: Backend) -> None:
    """Lay out the room within the page being built, and connect it."""
    import gradio as gr

    rooms = Rooms()
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            viewer = drawn("viewer")
            study = drawn("series", "choose", "reveal")
        with gr.Column(scale=5, min_width=320, elem_classes="cr-side"):
            files = gr.File(
                label=say("study"), file_count="multiple", height=150, elem_id="study-files"
            )
            with gr.Row():
                folder = gr.UploadButton(say("open_folder"), file_count="directory", size="sm")
                sample = gr.Button(say("load_sample"), size="sm")
            report = gr.Textbox(label=say("report"), lines=7, placeholder=say("paste_report"))
            with gr.Row():
                words = gr.UploadButton(say("upload_words"), file_types=_REPORT_FILES, size="sm")
                own = gr.Button(say("own_report"), size="sm", visible=False)
            with gr.Accordion(say("dictate"), open=False):
                voice = drawn("microphone", "begin", "sound")
                dictated = gr.Textbox(label=say("dictated"), lines=3, info=say("dictated_info"))
            with gr.Row():
                start = gr.Button(say("review"), variant="primary")
                stop = gr.Button(say("stop"))
            reading = drawn("reading", "decide")
            with gr.Group(visible=False) as after:
                question = gr.Textbox(
                    label=say("ask_on"), placeholder=say("ask_example"), submit_btn=True
                )
                save = gr.Button(say("take_away"), size="sm")
                saved = gr.File(label=say("download"), interactive=False, visible=False)
    opened = [study, viewer, reading, own, after]
    _connect_study(rooms, (files, folder, sample), opened, (report, dictated))
    _connect_words(rooms, backend, (words, own, voice), (report, dictated))
    _connect_review(rooms, backend, (start, stop), (report, dictated), (reading, after))
    _connect_after(rooms, backend, (question, save), (reading, saved))

    def left(request: gr.Request) -> None:
        rooms.leave(request.session_hash)

    page.unload(left)


def drawn(module: str, *events: str) -> Any:
    """A component that one of our JavaScript modules draws from its value."""
    import gradio as gr

    named = ", ".join(f"'{event}'" for event in events)  # Gradio looks for the names in the script
    return gr.HTML(
        None,
        html_template='<div class="cr-host"></div>',
        js_on_load=f"""
        // tells of: {named}
        const base = `${{(window.gradio_config?.root ?? "").replace(/[/]$/, "")}}{PREFIX}/`;
        import(`${{base}}{module}.js`).then((module) => {{
          const made = module.mount(element.querySelector(".cr-host"), (name, data) => trigger(name, data));
          const show = () => made.show(props.value || null);
          watch("value", show);
          show();
        }});
        """,
        apply_default_css=False,
    )


def _connect_study(rooms: Rooms, sources: Any, outputs: list[Any], boxes: Any) -> None:
    """Open what is dropped, chosen or shipped; choose a series; reveal whose it is.

    Words about the study before go with it, or the next patient would be read with them.
    """
    import gradio as gr

    files, folder, sample = sources
    study, viewer = outputs[:2]

    def shown(room: Room, steps: Iterator[flows.Opened]) -> Iterator[tuple[Any, ...]]:
        kept = (gr.skip(), gr.skip(), gr.skip())
        with errors_as_help():
            for number, step in enumerate(steps):
                volume = step.volume or gr.skip()
                cleared: Any = (
                    {},
                    gr.Button(visible=bool(step.study["documents"])),
                    gr.Group(visible=False),
                )
                yield step.study, volume, *(cleared if number == 0 else kept)

    def replaced(room: Room, files: list[str], boxes: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Values for study, viewer and what hangs on them, then for the boxes, set only once."""
        for values in shown(room, flows.open_study(room, [Path(f) for f in files])):
            yield *values, *boxes
            boxes = (gr.skip(), gr.skip())

    opening = {"note": "opening"}

    def taken(files: list[str] | None, request: gr.Request) -> tuple[dict[str, str], None]:
        rooms.of(request.session_hash).given = files or []
        return opening, None

    def given(report: str, dictated: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        room = rooms.of(request.session_hash)
        left = "" if report in room.words else gr.skip()
        yield from replaced(room, room.given, (left, _left_of(room, dictated)))

    def sampled(report: str, dictated: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        with errors_as_help():
            paths, words = load_sample()
        room = rooms.of(request.session_hash)
        for values in replaced(room, paths, (words, _left_of(room, dictated))):
            room.words.add(words)
            yield values

    def chosen(event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        room, data = rooms.of(request.session_hash), event._data
        yield from shown(room, flows.choose_series(room, str(data["key"]), bool(data["allow"])))

    def revealed(event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        room = rooms.of(request.session_hash)
        with errors_as_help():
            if room.series is None:
                raise MissingInput("No study is open (any more); open it again.")
            named = {"identifiers": identifiers_of(room.series)} if event._data["shown"] else {}
        return {**room.describe(), **named}

    def failed(request: gr.Request) -> tuple[dict[str, Any], None]:
        return rooms.of(request.session_hash).describe(), None

    # "multiple": what is given while a study still opens has its turn after it, and is not dropped
    quiet: dict[str, Any] = {
        "api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"
    }  # fmt: skip
    told = [
        files.upload(taken, files, [viewer, files], queue=False, **quiet),
        folder.upload(taken, folder, [viewer, folder], queue=False, **quiet),
        sample.click(lambda: opening, None, viewer, queue=False, **quiet),
    ]
    opened = [
        event.then(act, list(boxes), [*outputs, *boxes], **quiet)
        for event, act in zip(told, (given, given, sampled), strict=True)
    ]
    opened.append(study.choose(chosen, None, outputs, **quiet))
    for event in opened:
        event.failure(failed, None, [study, viewer], queue=False, **quiet)
    study.reveal(revealed, None, study, **quiet)


def _left_of(room: Room, dictated: str) -> Any:
    """The dictation where another study is opened: gone if it speaks of the one before."""
    import gradio as gr

    if dictated not in room.words:
        return gr.skip()
    room.listen_anew()
    return ""


def _connect_words(rooms: Rooms, backend: Backend, sources: Any, boxes: Any) -> None:
    """Fill the report from a file or the study's own; the dictation from a recording or live."""
    import gradio as gr

    words, own, voice = sources
    report, dictated = boxes

    def uploaded(file: str, request: gr.Request) -> Iterator[tuple[Any, Any, None]]:
        path = Path(file)
        with errors_as_help():
            if path.suffix.lower() in flows.RECORDINGS:
                for heard in flows.hear(rooms.of(request.session_hash), backend, path):
                    yield gr.skip(), heard, None
            else:
                yield read_report(path), gr.skip(), None

    def offered(request: gr.Request) -> str:
        from encoders.dicom.documents import report_texts

        found = rooms.of(request.session_hash).found
        with errors_as_help():
            texts, problems = report_texts(found.documents if found else ())
            if not texts:
                raise MissingInput(
                    problems[0].message if problems else "The study holds no report."
                )
        rooms.of(request.session_hash).words.add(texts[0].text)
        return texts[0].text

    def begun(dictated: str, request: gr.Request) -> None:
        rooms.of(request.session_hash).listen(Listening(backend, dictated))

    def heard(event: gr.EventData, request: gr.Request) -> tuple[Any, dict[str, int]]:
        ear, data = rooms.of(request.session_hash).ear, event._data
        with errors_as_help():
            words = flows.listen(ear, data["sound"], data["rate"]) if ear else gr.skip()
        return words, {"heard": int(data["number"])}

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    words.upload(uploaded, words, [report, dictated, words], **quiet)
    own.click(offered, None, report, **quiet)
    voice.begin(begun, dictated, None, **quiet)
    voice.sound(heard, None, [dictated, voice], concurrency_limit=4, **quiet)


def _connect_review(rooms: Rooms, backend: Backend, buttons: Any, boxes: Any, shown: Any) -> None:
    """Review, and a stop that stops; what a person decides about a point."""
    import gradio as gr

    start, stop = buttons
    reading, after = shown

    def reviewed(report: str, dictated: str, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        room = rooms.of(request.session_hash)
        with errors_as_help():
            for value in flows.review(room, backend, report or "", dictated or ""):
                room.words |= {report, dictated} - {""}
                yield value, gr.Group(visible=value["state"] == "done")

    def stopped(request: gr.Request) -> None:
        rooms.of(request.session_hash).stopped.set()

    def decided(event: gr.EventData, request: gr.Request) -> None:
        room, data = rooms.of(request.session_hash), event._data
        if room.reading and data["decision"] in ("", "accepted", "rejected"):
            room.decisions[int(data["number"])] = data["decision"]

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    begun = start.click(flows.waiting, None, reading, queue=False, **quiet)
    made = begun.then(reviewed, list(boxes), [reading, after], **quiet)
    made.failure(lambda: {}, None, reading, queue=False, **quiet)
    stop.click(stopped, None, None, queue=False, **quiet)
    reading.decide(decided, None, None, queue=False, **quiet)


def _connect_after(rooms: Rooms, backend: Backend, sources: Any, shown: Any) -> None:
    """Ask on about the study, and take the reading away."""
    import gradio as gr

    question, save = sources
    reading, saved = shown

    def asked(question: str, request: gr.Request) -> Iterator[tuple[Any, str]]:
        with errors_as_help():
            for value in flows.ask(rooms.of(request.session_hash), backend, question):
                yield value, ""

    def taken(request: gr.Request) -> Any:
        with errors_as_help():
            files = rooms.of(request.session_hash).save()
        return gr.File(value=[str(file) for file in files], visible=True)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    question.submit(asked, question, [reading, question], **quiet)
    save.click(taken, None, saved, **quiet)
