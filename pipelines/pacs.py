"""crossread pacs: ask an archive, fetch from it, send to it, or wait for what it sends.

An archive is the address of a DICOMweb server (`https://host/dicom-web`), or a DICOM node
(`TITLE@host:port`, needs the extra `pacs`).
"""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from encoders.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Talk to an archive: DICOMweb, or a DICOM node.")
Archive = Annotated[str, typer.Argument(help="https://host/dicom-web… or TITLE@host:port.")]
Title = Annotated[str, typer.Option(help="The AE title we go by.")]
WithTls = Annotated[
    bool,
    typer.Option(
        "--tls",
        help="DICOM over TLS, with the certificates of CROSSREAD_DICOM_TLS_CA and _CERTIFICATE.",
    ),
]


@app.command()
def find(
    archive: Archive,
    filters: Annotated[
        list[str] | None, typer.Argument(help="What to look for, such as PatientID=123.")
    ] = None,
    title: Title = "CROSSREAD",
    tls: WithTls = False,
) -> None:
    """List the studies (of an address with a study: its series) that fit, as JSON lines."""
    from encoders.dicom.remote import find as find_on_web
    from encoders.dicom.remote import is_url

    wanted = dict(_pair(text) for text in filters or ())
    found: list[dict[str, Any]]
    if is_url(archive):
        _require_node(tls)
        found = [
            {"url": m.url, "modality": m.modality, "num_instances": m.num_instances}
            for m in find_on_web(archive, wanted)
        ]
    else:
        found = [vars(item) for item in _dimse().find(_node(archive, title, tls), wanted)]
    for item in found:
        typer.echo(json.dumps(item))


@app.command()
def fetch(
    archive: Archive,
    folder: Annotated[Path, typer.Argument(help="Where to put the files; it holds patient data.")],
    study: Annotated[str | None, typer.Option(help="Its UID, for a DICOM node.")] = None,
    title: Title = "CROSSREAD",
    tls: WithTls = False,
) -> None:
    """Fetch a study (https://…/studies/UID, or --study UID of a node) into a folder."""
    from encoders.dicom.remote import fetch as fetch_from_web
    from encoders.dicom.remote import is_url

    if is_url(archive):
        _require_node(tls)
        problems = fetch_from_web(archive, folder)
        for problem in problems:
            typer.echo(f"{problem.code}: {problem.message} ({problem.subject})", err=True)
    elif study is None:
        raise typer.BadParameter("a DICOM node needs --study, the UID of the study")
    else:
        _dimse().get(_node(archive, title, tls), study, folder)
    typer.echo(f"{sum(1 for _ in folder.rglob('*.dcm'))} objects in {folder}", err=True)


@app.command()
def send(
    archive: Archive,
    files: Annotated[list[Path], typer.Argument(help="DICOM files, as written by --dicom.")],
    title: Title = "CROSSREAD",
    tls: WithTls = False,
) -> None:
    """Send DICOM files to an archive."""
    from encoders.dicom.remote import is_url, store

    if is_url(archive):
        _require_node(tls)
        count = store(archive, files)
    else:
        count = _dimse().send(_node(archive, title, tls), files)
    typer.echo(f"{count} objects stored", err=True)


@app.command()
def echo(archive: Archive, title: Title = "CROSSREAD", tls: WithTls = False) -> None:
    """Ask a DICOM node whether it is there and knows us (C-ECHO)."""
    _dimse().echo(_node(archive, title, tls))
    typer.echo("it answers", err=True)


@app.command()
def listen(
    folder: Annotated[Path, typer.Argument(help="Where to put what comes.")],
    peer: Annotated[list[str], typer.Option(help="Who may send: TITLE@address; may be repeated.")],
    port: Annotated[int, typer.Option(help="Where to listen.")] = 11112,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    title: Title = "CROSSREAD",
    tls: WithTls = False,
) -> None:
    """Take what listed nodes send (C-STORE), until interrupted; prints each complete study."""
    _dimse()
    from encoders.dicom.receiver import Receiver, Rules

    peers = dict(_pair(text, "@") for text in peer)
    rules = Rules(peers, title, host, port, tls=_tls() if tls else None)
    with Receiver(folder, rules, lambda study: typer.echo(str(study))):
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has them ignored
            signal.signal(number, lambda *_: stop.set())
        typer.echo(f"listening on {host}:{port}", err=True)
        while not stop.wait(1):
            pass
        typer.echo("stopped", err=True)


def _pair(text: str, sign: str = "=") -> tuple[str, str]:
    name, found, value = text.partition(sign)
    if not (name and found and value):
        raise InputError(f"{text!r} is not of the form NAME{sign}VALUE")
    return name, value


def _dimse() -> Any:
    try:
        from encoders.dicom import dimse
    except ModuleNotFoundError as error:
        raise InputError(
            "DICOM nodes need pynetdicom: pip install 'crossread[pacs]', or use DICOMweb"
        ) from error
    return dimse


def _node(text: str, title: str, tls: bool) -> Any:
    peer = _dimse().Peer.parse(text)
    return replace(peer, our_title=title, tls=_tls() if tls else None)


def _require_node(tls: bool) -> None:
    if tls:
        raise typer.BadParameter("--tls is for DICOM nodes; a web address says https itself")


def _tls() -> Any:
    from encoders.dicom.tls import Tls

    return Tls.from_environment()
