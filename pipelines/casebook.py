"""Which studies a folder holds, and the words about each: by where files lie, or by a CSV manifest.

Names cases by their path below the folder. Opens no study.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from encoders.errors import InputError, MissingInput

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".webm")
COLUMNS = ("study", "report", "report_file", "dictation", "question")


@dataclass(frozen=True)
class Entry:
    """A study of a folder: its path below it (`name`), and where the words about it are."""

    name: str
    study: Path
    report: str | None = None
    report_file: Path | None = None
    dictation: Path | None = None
    question: str | None = None


@dataclass(frozen=True)
class Casebook:
    """The studies of a folder, in the order of their names, and how many files belong to none."""

    entries: tuple[Entry, ...]
    num_ignored: int = 0


def find_cases(folder: Path, manifest: Path | None = None) -> Casebook:
    """The studies below `folder`.

    Without a manifest every sub-folder and every zip or tar is one; the report is `report.txt` in
    the sub-folder, or NAME.txt beside NAME.zip, the recording likewise `dictation.wav` (or flac,
    mp3 ...) or NAME.wav. A manifest is a CSV file with a `study` column of paths below the folder
    and any of `report` (text), `report_file`, `dictation` (paths) and `question`.

    Raises:
        MissingInput: no such folder or manifest.
        InputError: nothing to read, or a manifest that cannot be followed, with its line.
    """
    if not folder.is_dir():
        raise MissingInput(f"{folder.name!r} is no folder; give the one that holds the studies")
    book = _laid_out(folder) if manifest is None else _listed(folder, manifest)
    if not book.entries:
        raise InputError(
            f"{folder.name!r} holds no studies: each must be a sub-folder, a zip or a tar in it"
        )
    return book


def read_report(path: Path) -> str:
    """The text of a report file.

    Raises:
        MissingInput: no such file.
        InputError: it is not text, or cannot be read.
    """
    try:
        return decoded(path.read_bytes(), f"report {path.name!r}")
    except FileNotFoundError:
        raise MissingInput(f"report {path.name!r} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"report {path.name!r} cannot be read: {error.strerror}") from error


def decoded(data: bytes, name: str) -> str:
    """UTF-8 text, with or without a byte order mark.

    Raises:
        InputError: it is something else.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text; save it as plain text") from error


def _laid_out(folder: Path) -> Casebook:
    paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    entries, used = [], set()
    for path in paths:
        stem = _archive_stem(path)
        if path.is_dir():
            report, sound = path / "report.txt", _recording(path / "dictation")
        elif stem is not None:
            report, sound = folder / f"{stem}.txt", _recording(folder / stem)
            used |= {report, sound}
        else:
            continue
        used.add(path)
        words = report if report.is_file() else None
        entries.append(Entry(path.name, path, report_file=words, dictation=sound))
    return Casebook(tuple(entries), sum(path not in used for path in paths))


def _archive_stem(path: Path) -> str | None:
    """`scan` of `scan.tar.gz`; None where it is no archive."""
    ending = next((e for e in _ARCHIVES if path.name.lower().endswith(e)), None)
    return path.name[: -len(ending)] if ending and path.is_file() else None


def _recording(stem: Path) -> Path | None:
    named = (stem.with_name(stem.name + ending) for ending in _RECORDINGS)
    return next((path for path in named if path.is_file()), None)


def _listed(folder: Path, manifest: Path) -> Casebook:
    text = _manifest_text(manifest)
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = rows.fieldnames or ()
    unknown = sorted(set(columns) - set(COLUMNS))
    if "study" not in columns or unknown:
        why = f"{unknown[0]!r} is none of them" if unknown else "the study column is missing"
        raise InputError(f"the columns of a manifest are {', '.join(COLUMNS)}; {why}")
    seen: dict[str, int] = {}
    entries = []
    for entry, line in _rows(folder, rows):
        if entry.name in seen:
            raise InputError(
                f"lines {seen[entry.name]} and {line} of the manifest name the same study"
            )
        seen[entry.name] = line
        entries.append(entry)
    return Casebook(tuple(entries))


def _manifest_text(manifest: Path) -> str:
    try:
        return decoded(manifest.read_bytes(), f"manifest {manifest.name!r}")
    except OSError as error:
        raise MissingInput(
            f"manifest {manifest.name!r} cannot be read: {error.strerror}"
        ) from error


def _rows(folder: Path, rows: csv.DictReader[str]) -> Iterator[tuple[Entry, int]]:
    for row in rows:
        if None in row or None in row.values():
            raise InputError(
                f"line {rows.line_num} of the manifest has another number of fields than its"
                " header; quote texts that hold commas"
            )
        value = {name: text.strip() for name, text in row.items()}
        if value.get("report") and value.get("report_file"):
            raise InputError(f"line {rows.line_num} of the manifest gives two reports; keep one")
        paths = {
            name: _below(value.get(name, ""), rows.line_num)
            for name in ("study", "report_file", "dictation")
        }
        name = paths["study"]
        if name is None:
            raise InputError(f"line {rows.line_num} of the manifest names no study")
        file, sound = paths["report_file"], paths["dictation"]
        entry = Entry(
            str(name), folder / name, value.get("report") or None,
            folder / file if file else None, folder / sound if sound else None,
            value.get("question") or None,
        )  # fmt: skip
        yield entry, rows.line_num


def _below(text: str, line: int) -> PurePosixPath | None:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"line {line} of the manifest leads out of the folder; write paths below it"
        )
    return path if text else None
