"""The command line: crossread read | chat | transcribe | info.

Exit codes: 0 done (whatever the verdict), 1 unexpected failure, 2 wrong usage, 3 bad input,
4 model trouble, 5 remote trouble. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoders.errors import CrossReadError, InputError, MissingInput, ModelError, RemoteError

if TYPE_CHECKING:
    from multimodal.messages import Message, Part
    from pipelines.evidence import Reading

EXIT_CODES = ((InputError, 3), (ModelError, 4), (RemoteError, 5))

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Reads a CT study together with its report, typed or dictated. Not a medical device.",
)

Model = Annotated[
    str | None, typer.Option(help="Composite folder or Hub id; the shipped demo if not given.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Sparsity = Annotated[
    float | None, typer.Option(help="Share of MLP neurons left out per token, 0.0 to 0.9.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@app.command()
def read(
    study: Annotated[Path, typer.Argument(help="DICOM file, folder or zip.")],
    report: Annotated[Path | None, typer.Option(help="The report's text; - for stdin.")] = None,
    dictation: Annotated[Path | None, typer.Option(help="A recording of the report.")] = None,
    ask: Annotated[str | None, typer.Option(help="A question about the study.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for reading.json and .html.")] = None,
    model: Model = None,
    device: Device = "auto",
    sparsity: Sparsity = None,
    as_json: AsJson = False,
) -> None:
    """Read a study with its report: what is there, and do the two agree?"""
    from pipelines import pipeline

    words = _read_text(report) if report else None
    task = pipeline("ct-report", model, device=device, sparsity=sparsity)
    reading = task(study, words, dictation, ask)
    typer.echo(reading.to_json() if as_json else describe_reading(reading))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in (("json", reading.to_json()), ("html", reading.to_html())):
            (out / f"reading.{name}").write_text(text, encoding="utf-8")
        typer.echo(f"wrote {out / 'reading.json'} and {out / 'reading.html'}", err=True)


@app.command()
def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="What to say; without it a conversation starts.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be repeated.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="A video file.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="A recording.")] = None,
    dicom: Annotated[list[Path] | None, typer.Option(help="A DICOM file, folder or zip.")] = None,
    model: Model = None,
    device: Device = "auto",
    sparsity: Sparsity = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Talk to the model about pictures, videos, recordings and DICOM."""
    from multimodal.messages import Audio, Image, Study, Video, user

    media: list[Part] = [
        *(Image(p) for p in image or ()), *(Video(p) for p in video or ()),
        *(Audio(p) for p in audio or ()), *(Study(p) for p in dicom or ()),
    ]  # fmt: skip
    from multimodal.backends import GenerateOptions
    from pipelines import pipeline

    talk = pipeline("chat", model, device=device, sparsity=sparsity)
    options = GenerateOptions(max_new_tokens=max_new_tokens)
    if prompt is not None:
        _say(talk, [user(*media, prompt)], options, as_json)
        return
    history: list[Message] = []
    for line in _typed_lines():
        history.append(user(*media, line))
        media = []
        history.append(_say(talk, history, options, as_json))


@app.command()
def transcribe(
    recording: Annotated[Path, typer.Argument(help="wav, flac, mp3, ogg, m4a, webm ...")],
    model: Model = None,
    device: Device = "auto",
    sparsity: Sparsity = None,
    as_json: AsJson = False,
) -> None:
    """Turn a dictation into text."""
    from pipelines import pipeline

    transcript = pipeline("dictation", model, device=device, sparsity=sparsity)(recording)
    typer.echo(_json(transcript.to_dict()) if as_json else transcript.text)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="DICOM file, folder or zip.")],
    as_json: AsJson = False,
) -> None:
    """Tell what a DICOM input holds, without patient identifiers."""
    from encoders.dicom import describe, scan

    found = describe(scan(path))
    typer.echo(_json(found) if as_json else _describe_study(found))


def main() -> None:
    """Entry point: errors of this project become one line and an exit code."""
    try:
        app()
    except CrossReadError as error:
        typer.echo(f"crossread: {error}", err=True)
        code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
        raise SystemExit(code) from None


def describe_reading(reading: Reading) -> str:
    """A reading as text for a terminal."""
    lines = [reading.verdict()]
    for point in reading.discrepancies:
        lines.append(f"  {point.type} ({point.probability:.0%})")
        if point.sentence:
            lines.append(f"    report:    {point.sentence}")
        lines.append(f"    suggested: {point.suggestion}")
        lines += [f"    see:       slice {e.slice_index}" for e in point.evidence if e.box]
    if not reading.out_of_range:
        lines += [
            "",
            "Findings:" if reading.findings else "Findings: none of those the model knows",
        ]
    for finding in reading.findings:
        words = " ".join(w for w in (finding.side, finding.name) if w)
        size = f", {finding.size_mm:.0f} mm" if finding.size_mm is not None else ""
        place = f", slice {finding.slice_index}" if finding.slice_index is not None else ""
        lines.append(f"  {words}{size}{place} ({finding.probability:.0%})")
    if reading.transcript:
        lines += ["", f"Heard: {reading.transcript}"]
    if reading.answer:
        lines += ["", f"Answer: {reading.answer}"]
    if reading.warnings:
        lines += ["", "Warnings:"]
        lines += [f"  {w.code}: {w.message}" + (f" ({w.subject})" if w.subject else "")
                  for w in reading.warnings]  # fmt: skip
    total = reading.timings_s.get("total", 0.0)
    return "\n".join([*lines, "", f"{reading.model}, {total:.1f} s. {reading.disclaimer}"])


def _describe_study(found: dict[str, Any]) -> str:
    lines = []
    for series in found["series"]:
        mark = "*" if series["default"] else " "
        spacing = " x ".join(f"{v:.2f}" for v in series["spacing_mm"] or ())
        lines.append(
            f"{mark} {series['modality'] or '?'} {series['body_part']} {series['num_slices']} images"
            f" {series['rows']}x{series['columns']}" + (f", {spacing} mm" if spacing else "")
            + f": {series['reason']}"
        )  # fmt: skip
        lines += [_problem_line(p, "    ") for p in series["problems"]]
    lines += [_problem_line(p, "  ") for p in found["problems"]]
    return "\n".join(lines or ["nothing that is DICOM"])


def _problem_line(problem: dict[str, str], indent: str) -> str:
    where = f" ({problem['subject']})" if problem["subject"] else ""
    return f"{indent}{problem['code']}: {problem['message']}{where}"


def _say(talk: Any, history: list[Message], options: Any, as_json: bool) -> Message:
    """Print an answer as it comes; returns it as the assistant's turn."""
    from multimodal.backends import Finished, Token
    from multimodal.messages import Message, Text

    text = ""
    for event in talk(history, options, stream=True):
        if isinstance(event, Token) and not as_json:
            typer.echo(event.text, nl=False)
        if isinstance(event, Finished):
            text = event.text
            if as_json:
                typer.echo(_json({"text": text, "reason": event.reason,
                                  "prompt_tokens": event.usage.prompt_tokens,
                                  "new_tokens": event.usage.new_tokens}))  # fmt: skip
    if not as_json:
        typer.echo()
    return Message("assistant", (Text(text),))


def _typed_lines() -> Any:
    """Lines from the keyboard or a pipe until it ends; empty ones are passed over."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _read_text(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInput(f"report {path.name!r} does not exist; check the path") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"report {path.name!r} is not UTF-8 text; save it as plain text"
        ) from error


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    main()
