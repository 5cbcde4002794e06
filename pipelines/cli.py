"""The command line: crossread read | chat | transcribe | info | doctor | serve | pacs | space.

Exit codes: 0 done (whatever the verdict), 1 unexpected failure, 2 wrong usage, 3 bad input,
4 model trouble, 5 remote trouble. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encoders.errors import CrossReadError, InputError, MissingInput, ModelError, RemoteError
from pipelines import machine, pacs, space
from pipelines.options import (
    AllowBurnedIn,
    AsJson,
    Batch,
    Device,
    Lenient,
    Manifest,
    Model,
    Series,
    Sparsity,
    Workers,
    as_text,
    hide_progress,
)

if TYPE_CHECKING:
    from encoders.dicom import Series as DicomSeries
    from multimodal.messages import Message, Part
    from pipelines.ct_report import Case, CtReportPipeline
    from pipelines.evidence import Reading

EXIT_CODES = ((InputError, 3), (ModelError, 4), (RemoteError, 5))

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Reads a CT study together with its report, typed or dictated. Not a medical device.",
)

app.registered_commands.extend(machine.app.registered_commands)
app.add_typer(pacs.app, name="pacs")
app.add_typer(space.app, name="space")


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
    study: Annotated[
        str | None,
        typer.Argument(help="DICOM file, folder, DICOMDIR, zip, tar or https://…/studies/UID."),
    ] = None,
    series: Series = None,
    report: Annotated[Path | None, typer.Option(help="The report's text; - for stdin.")] = None,
    report_from_study: Annotated[
        bool, typer.Option(help="Take the report from the study's own SR, PDF or CDA object.")
    ] = False,
    dictation: Annotated[Path | None, typer.Option(help="A recording of the report.")] = None,
    ask: Annotated[str | None, typer.Option(help="A question about the study.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for reading.json and .html; with --batch the file of results."),
    ] = None,
    batch: Batch = None,
    manifest: Manifest = None,
    workers: Workers = None,
    dicom: Annotated[
        bool,
        typer.Option(
            "--dicom",
            help="Also write SR, key images and PDF as DICOM into --out;"
            " they name the patient as the study does.",
        ),
    ] = False,
    model: Model = None,
    device: Device = "auto",
    sparsity: Sparsity = None,
    lenient: Lenient = False,
    allow_burned_in: AllowBurnedIn = False,
    as_json: AsJson = False,
) -> None:
    """Read a study with its report: what is there, and do the two agree?"""
    from pipelines import pipeline
    from pipelines.ct_report import Case
    from pipelines.overnight import Terms, read_folder
    from pipelines.terminal import describe_batch, describe_reading

    hide_progress()
    if batch is not None:
        given = {"STUDY": study, "--report": report, "--dictation": dictation, "--dicom": dicom,
                 "--series": series, "--lenient": lenient}  # fmt: skip
        if refused := [name for name, value in given.items() if value]:
            raise typer.BadParameter(f"--batch reads many studies: leave out {refused[0]}")
        if out is None:
            raise typer.BadParameter("--batch needs --out, the file that gets the results")
        terms = Terms(ask, report_from_study, allow_burned_in, sparsity)
        task = pipeline("ct-report", model, device=device, sparsity=sparsity)
        done = read_folder(task, batch, out, manifest=manifest, terms=terms, workers=workers)
        typer.echo(as_text(done.to_dict()) if as_json else describe_batch(done))
        if done.failed:
            raise typer.Exit(EXIT_CODES[0][1])
        return
    if study is None or manifest or workers is not None:
        raise typer.BadParameter("name a STUDY, or a folder of studies with --batch")
    if dicom and out is None:
        raise typer.BadParameter("--dicom needs --out, the folder to write into")
    words = _read_text(report) if report else None
    if out is not None:
        _make_folder(out)  # before the work, so that it is not lost
    task = pipeline("ct-report", model, device=device, sparsity=sparsity)
    case = Case(study, words, dictation, ask, report_from_study, allow_burned_in, series)
    reading, written = _read_one(task, case, out if dicom else None, lenient)
    typer.echo(reading.to_json() if as_json else describe_reading(reading))
    if out is not None:
        for name, text in (("json", reading.to_json()), ("html", reading.to_html())):
            (out / f"reading.{name}").write_text(text, encoding="utf-8")
        names = ["reading.json", "reading.html", *(file.name for file in written)]
        typer.echo(f"wrote {', '.join(names)} into {out}", err=True)


@app.command()
def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to say; without it a conversation starts."),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be repeated.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="A video file.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="A recording.")] = None,
    dicom: Annotated[
        list[str] | None,
        typer.Option(help="A DICOM file, folder, zip, tar or https://…/studies/UID."),
    ] = None,
    series: Series = None,
    model: Model = None,
    device: Device = "auto",
    sparsity: Sparsity = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    lenient: Lenient = False,
    allow_burned_in: AllowBurnedIn = False,
    as_json: AsJson = False,
) -> None:
    """Talk to the model about pictures, videos, recordings and DICOM."""
    from multimodal.backends import GenerateOptions
    from multimodal.messages import Audio, Image, Study, Video, user
    from pipelines import pipeline

    if series is not None and len(dicom or ()) != 1:
        raise typer.BadParameter("--series needs one --dicom to choose from")
    hide_progress()
    with ExitStack() as open_studies:
        chosen = [
            _chosen(open_studies, study, series, lenient, allow_burned_in) for study in dicom or ()
        ]
        media: list[Part] = [
            *(Image(p) for p in image or ()), *(Video(p) for p in video or ()),
            *(Audio(p) for p in audio or ()), *(Study(s) for s in chosen),
        ]  # fmt: skip
        talk = pipeline("chat", model, device=device, sparsity=sparsity)
        options = GenerateOptions(max_new_tokens=max_new_tokens)
        if prompt is not None:
            _say(talk, [user(*media, prompt)], options, as_json)
            return
        _converse(talk, media, options, as_json)


def _converse(talk: Any, media: list[Part], options: Any, as_json: bool) -> None:
    """Turn by turn, as long as lines come; the media belong to the first."""
    from multimodal.messages import user

    history: list[Message] = []
    for line in _typed_lines():
        turn = user(*media, line)
        try:
            answer = _say(talk, [*history, turn], options, as_json)
        except CrossReadError as error:  # the conversation goes on without this turn
            typer.echo(f"crossread: {error}", err=True)
            continue
        history += [turn, answer]
        media = []


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

    hide_progress()
    transcript = pipeline("dictation", model, device=device, sparsity=sparsity)(recording)
    typer.echo(as_text(transcript.to_dict()) if as_json else transcript.text)


@app.command()
def info(
    study: Annotated[
        str, typer.Argument(help="DICOM file, folder, DICOMDIR, zip, tar or https://…/studies/UID.")
    ],
    lenient: Lenient = False,
    as_json: AsJson = False,
) -> None:
    """Tell what a DICOM input holds, without patient identifiers."""
    from encoders.dicom import describe, scan
    from encoders.dicom.remote import on_disk
    from pipelines.terminal import describe_study

    with on_disk(study) as (path, _):
        found = describe(scan(path, lenient=lenient))
    typer.echo(as_text(found) if as_json else describe_study(found))
    if not found["series"]:
        raise typer.Exit(EXIT_CODES[0][1])


@app.command("deidentify")
def deidentify_study(
    study: Annotated[Path, typer.Argument(metavar="IN", help="DICOM file, folder, zip or tar.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    key_file: Annotated[
        Path | None,
        typer.Option(help="Secret of 16 bytes or more; without it stand-ins are random."),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(
            help="uids, device, institution, patient, dates, modified-dates or safe-private;"
            " may be repeated."
        ),
    ] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option(help="pixels, graphics, structured-content or descriptors; may be repeated."),
    ] = None,
    allow_burned_in: AllowBurnedIn = False,
    as_json: AsJson = False,
) -> None:
    """Copy a study without the patient: PS3.15 basic profile, new names, new UIDs."""
    from tqdm import tqdm

    from encoders.dicom import deidentify
    from pipelines.terminal import describe_export

    done = deidentify(
        study, out, key=_read_key(key_file), retain=retain or (), clean=clean or (),
        allow_burned_in=allow_burned_in, watch=lambda files: tqdm(files, "files", disable=None),
    )  # fmt: skip
    typer.echo(as_text(done.to_dict()) if as_json else describe_export(done))
    if not done.num_written:
        raise typer.Exit(EXIT_CODES[0][1])


def _read_key(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise MissingInput(
            f"key file {path.name!r} cannot be read; make one of 32 random bytes and keep it apart"
            " from the data"
        ) from error


def main() -> None:
    """Entry point: errors of this project become one line and an exit code."""
    try:
        app(prog_name="crossread")
    except CrossReadError as error:
        typer.echo(f"crossread: {error}", err=True)
        code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
        raise SystemExit(code) from None


def _read_one(
    task: CtReportPipeline, case: Case, dicom_out: Path | None, lenient: bool
) -> tuple[Reading, list[Path]]:
    """The reading of a study on disk or at an address, and the DICOM objects written of it."""
    from encoders.dicom import scan
    from encoders.dicom.remote import on_disk
    from encoders.dicom.results import read_identity

    with on_disk(str(case.study)) as (path, told):
        study = scan(path, lenient=lenient)
        if dicom_out:
            read_identity(study.choose(case.series))  # before the work, so that it is not lost
        reading = task(
            study, case.report, case.dictation, case.question, series=case.series,
            report_from_study=case.report_from_study, allow_burned_in=case.allow_burned_in,
        )  # fmt: skip
        reading = replace(reading, warnings=(*told, *reading.warnings))
        return reading, reading.to_dicom(study, dicom_out) if dicom_out else []


def _chosen(
    open_studies: ExitStack, study: str, series: str | None, lenient: bool, allow_burned_in: bool
) -> DicomSeries | Path:
    """A study on disk or at an address, or one series of it; readable while the stack is open."""
    from encoders.dicom import let_through, scan
    from encoders.dicom.remote import on_disk

    path, told = open_studies.enter_context(on_disk(study))
    for problem in told:
        typer.echo(f"{problem.code}: {problem.message} ({problem.subject})", err=True)
    if series is None and not lenient and not allow_burned_in:
        return Path(path)  # its default series, when it is looked at
    found = scan(path, lenient=lenient).choose(series)
    return let_through(found, allow_burned_in=allow_burned_in)


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
                typer.echo(as_text({"text": text, "reason": event.reason,
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
    from pipelines.casebook import decoded, read_report

    if str(path) == "-":
        return decoded(sys.stdin.buffer.read(), "the report on stdin")
    return read_report(path)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the output folder {out.name!r} cannot be made: {error.strerror}; choose another"
        ) from error


if __name__ == "__main__":
    main()
