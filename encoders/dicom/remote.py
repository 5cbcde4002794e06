"""DICOMweb (PS3.18): find studies, fetch one into a private folder, store results.

A study is fetched by its metadata first, then object by object, those of many frames frame by
frame, several at a time, straight to disk. Files are named by a hash, never by what the server
sends; a file under its final name is complete, so a fetch into the same folder goes on where it was
interrupted, within an object too. Rules: `guarded`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from encoders.dicom.framewise import (
    body_of,
    comes_in_frames,
    open_part,
    syntax_of,
    write_object,
)
from encoders.dicom.guarded import Access, GuardedSession, limited, remote_errors
from encoders.dicom.silence import quiet_pydicom
from encoders.errors import (
    BadAnswer,
    InputError,
    NotFound,
    Refused,
    RemoteError,
    TimedOut,
    Unreachable,
)
from encoders.features import Problem

T = TypeVar("T")
logger = logging.getLogger(__name__)
_ADDRESS = re.compile(
    r"(?P<base>https?://[^?#]+?)(?:/studies/(?P<study>[0-9.]{1,64})"
    r"(?:/series/(?P<series>[0-9.]{1,64}))?)?/?"
)
_ATTEMPTS, _PAUSE_MS = 3, 200
_MAX_BULK_BYTES = 2**24  # of one value that is no pixels: a palette, an overlay
_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


@dataclass(frozen=True)
class Match:
    """What a search found: a study, or a series of it. The address holds identifiers."""

    url: str = field(repr=False)
    modality: str = ""
    num_instances: int = 0


@dataclass(frozen=True)
class _Instance:
    series_uid: str
    sop_uid: str
    num_bytes: int
    num_frames: int = 1  # to be fetched one by one
    header: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of such objects

    @property
    def file_name(self) -> str:
        return hashlib.sha256(self.sop_uid.encode()).hexdigest()[:32] + ".dcm"


@dataclass(frozen=True)
class _Address:
    base: str
    study: str | None
    series: str | None


def is_url(study: object) -> bool:
    """Whether a study is named by its address on a DICOMweb server."""
    return isinstance(study, str) and study.startswith(("https://", "http://"))


def find(
    url: str, filters: Mapping[str, str] | None = None, access: Access | None = None
) -> list[Match]:
    """QIDO-RS: the studies of a server, or the series of the study a URL names.

    Args:
        url: `https://host/dicom-web`, or `https://host/dicom-web/studies/UID`.
        filters: attributes by keyword, such as `{"PatientID": "..."}` or `{"Modality": "SR"}`.
        access: the environment's if not given.

    Raises:
        InputError: a filter is no attribute.
        RemoteError: see `guarded`.
    """
    at, wanted = _parse(url), require_keywords(filters or {})
    with _client(at, access or Access.from_environment()) as client:
        if at.study is None:
            found = client.search_for_studies(search_filters=wanted)
        else:
            found = client.search_for_series(at.study, search_filters=wanted)
    with _understood():
        return [_match(at, item) for item in found]


def require_keywords(filters: Mapping[str, str]) -> dict[str, str]:
    """The filters, if each is an attribute of PS3.6 by its keyword.

    Raises:
        InputError: one is not.
    """
    from pydicom.datadict import tag_for_keyword

    for name in filters:
        if tag_for_keyword(name) is None:
            raise InputError(f"{name!r} is no DICOM attribute; write it like PatientID or Modality")
    return dict(filters)


def _match(at: _Address, item: Mapping[str, Any]) -> Match:
    study, series = _value(item, "0020000D") or at.study, _value(item, "0020000E")
    kinds = item.get("00080060") or item.get("00080061") or {}
    count = _value(item, "00201209") or _value(item, "00201208") or 0
    url = f"{at.base}/studies/{study}" + (f"/series/{series}" if series and at.study else "")
    return Match(url, "/".join(str(k) for k in kinds.get("Value", ())), int(count))


@contextmanager
def _understood() -> Iterator[None]:
    """JSON of another shape than PS3.18 F.2 says, as a `BadAnswer`."""
    try:
        yield
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise BadAnswer("the server answered with something that is not DICOM JSON") from error


def _value(item: Mapping[str, Any], tag: str) -> Any:
    values = item.get(tag, {}).get("Value") or [None]
    return values[0]


def store(url: str, files: Sequence[Path], access: Access | None = None) -> int:
    """STOW-RS: send DICOM files to a server; returns how many it took.

    Raises:
        Refused: it did not take all of them; how many and with what reason code.
        RemoteError: see `guarded`.
    """
    import pydicom

    at = _parse(url)
    with quiet_pydicom(), _client(at, access or Access.from_environment()) as client:
        answer = client.store_instances([pydicom.dcmread(file) for file in files])
    failed = answer.get("FailedSOPSequence") or []
    if failed:
        code = int(failed[0].get("FailureReason") or 0)
        raise Refused(f"{len(failed)} of {len(files)} objects were not stored (reason {code:#06x})")
    return len(files)


@contextmanager
def on_disk(study: T, access: Access | None = None) -> Iterator[tuple[T | Path, list[Problem]]]:
    """A study named by its address as a folder, with what could not be fetched; others as they are.

    The folder is private, temporary and gone afterwards; with `CROSSREAD_DICOM_CACHE` it stays
    below that folder, and nothing is fetched twice.
    """
    if not is_url(study):
        yield study, []
        return
    cache = os.environ.get("CROSSREAD_DICOM_CACHE")
    if cache:
        folder = Path(cache) / hashlib.sha256(str(study).encode()).hexdigest()[:32]
        yield folder, fetch(str(study), folder, access)
        return
    with tempfile.TemporaryDirectory(prefix="crossread-") as temporary:
        yield Path(temporary), fetch(str(study), Path(temporary), access)


def fetch(url: str, folder: Path, access: Access | None = None) -> list[Problem]:
    """WADO-RS: every object of the study (or series) a URL names, into a folder only we may read.

    Objects that are there already are not fetched again. Returns those that the server listed but
    could not give.

    Raises:
        InputError: the URL names no study.
        BadAnswer: the study is larger than allowed.
        RemoteError: see `guarded`.
    """
    at, access = _parse(url), access or Access.from_environment()
    if at.study is None:
        raise InputError("the address names no study; give https://host/dicom-web/studies/UID")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _client(at, access) as client:
        if at.series is None:
            listed = client.retrieve_study_metadata(at.study)
        else:
            listed = client.retrieve_series_metadata(at.study, at.series)
    with _understood():
        instances = _instances(listed)
    if not instances:
        raise NotFound("the server lists no object of this study; check the UIDs in the address")
    if sum(i.num_bytes for i in instances) > access.max_study_bytes:
        raise BadAnswer(
            f"the study is larger than the {access.max_study_bytes / 2**30:.0f} GiB allowed"
        )
    missing = [i for i in instances if not (folder / i.file_name).exists()]
    logger.info("fetching %d of %d objects", len(missing), len(instances))
    with (
        # beside the study, so that what a killed process leaves is never read as a part of it
        tempfile.TemporaryDirectory(prefix="crossread-parts-", dir=folder.parent) as parts,
        GuardedSession(at.base, access) as session,
        ThreadPoolExecutor(access.workers) as pool,
    ):
        work = _Fetch(session, at, Path(parts), folder)
        jobs = [pool.submit(work.whole, i) for i in missing if i.num_frames == 1]
        try:
            found = [job.result() for job in jobs]
            found += [work.framewise(pool, i) for i in missing if i.num_frames > 1]
        except BaseException:  # whatever it was: do not go on with the rest
            pool.shutdown(cancel_futures=True)
            raise
    return [problem for problem in found if problem is not None]


def _parse(url: str) -> _Address:
    match = _ADDRESS.fullmatch(url)
    if match is None or not _is_sound(match["base"]):
        raise InputError(
            "not the address of a DICOMweb server; it looks like https://host/dicom-web/studies/UID"
        )
    return _Address(match["base"], match["study"], match["series"])


def _is_sound(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname) and (urlsplit(url).port or 1) > 0
    except ValueError:  # brackets or a port that are none
        return False


@contextmanager
def _client(at: _Address, access: Access) -> Iterator[Any]:
    from dicomweb_client import DICOMwebClient

    with remote_errors(at.base), GuardedSession(at.base, access) as session:
        client = DICOMwebClient(
            at.base, session, timeout=access.timeout_s, permissive_uid=True
        )  # fmt: skip
        client.set_http_retry_params(retry=False)  # it would repeat even what our rules refuse
        yield client


def _instances(listed: Sequence[Mapping[str, Any]]) -> list[_Instance]:
    """What the metadata lists, each object once, with the size its header declares."""
    found = {}
    for item in listed:
        series, sop = _value(item, "0020000E"), _value(item, "00080018")
        if not all(re.fullmatch(r"[0-9.]{1,64}", str(uid)) for uid in (series, sop)):
            raise BadAnswer("the server lists an object without proper UIDs")
        numbers = [_value(item, t) for t in ("00280010", "00280011", "00280002", "00280008")]
        size = (int(_value(item, "00280100") or 8) + 7) // 8
        for number in numbers:
            size *= int(number or 1)
        framed = comes_in_frames(item)
        found[sop] = _Instance(
            str(series), str(sop), size, int(numbers[-1]) if framed else 1, item if framed else {}
        )
    return list(found.values())


@dataclass(frozen=True)
class _Fetch:
    """One fetch under way: whom to ask, where half files lie, where whole ones go."""

    session: GuardedSession
    at: _Address
    parts: Path
    folder: Path

    def whole(self, instance: _Instance) -> Problem | None:
        """Fetch one object; what the server lacks is told."""
        part = self.parts / instance.file_name
        try:
            self._download(
                self._url(instance), part, _DICOM, self.session.access.max_instance_bytes
            )
            self._keep(part, instance)
        except (NotFound, BadAnswer) as error:
            return Problem("NOT_FETCHED", str(error), instance.file_name)
        return None

    def framewise(self, pool: ThreadPoolExecutor, instance: _Instance) -> Problem | None:
        """Fetch one object frame by frame; as a whole where the server does not give frames."""
        frames = self.folder / f"{instance.file_name}.frames"
        frames.mkdir(exist_ok=True, mode=0o700)
        try:
            self._frame(instance, frames, 1)
        except RemoteError:  # whatever it was, asking for the whole finds out
            shutil.rmtree(frames)
            return self.whole(instance)
        numbers = range(2, instance.num_frames + 1)
        asked = [pool.submit(self._frame, instance, frames, number) for number in numbers]
        try:
            for answer in asked:
                answer.result()
            self._assemble(instance, sorted(frames.iterdir()))
        except (NotFound, BadAnswer, Refused):
            wait([answer for answer in asked if not answer.cancel()])  # they write into the folder
            shutil.rmtree(frames)
            return self.whole(instance)
        shutil.rmtree(frames)
        return None

    def _frame(self, instance: _Instance, frames: Path, number: int) -> None:
        """Fetch a frame, unless it is there, into a file named by its number and syntax."""
        if any(frames.glob(f"{number:06d}_*")):
            return
        part = self.parts / f"{instance.file_name}.{number:06d}"
        most = 2 * instance.num_bytes // instance.num_frames + 2**20  # compressed ones may grow
        syntax = self._download(f"{self._url(instance)}/frames/{number}", part, _FRAME, most)
        part.replace(frames / f"{number:06d}_{syntax}")

    @quiet_pydicom()
    def _assemble(self, instance: _Instance, frames: list[Path]) -> None:
        syntaxes = {file.name.partition("_")[2] for file in frames}
        if len(syntaxes) != 1 or len(frames) != instance.num_frames:
            raise BadAnswer("the server gave frames of several transfer syntaxes")
        part = self.parts / instance.file_name
        write_object(part, instance.header, frames, syntaxes.pop(), bulk=self._bulk)
        self._keep(part, instance)

    def _bulk(self, url: str) -> bytes:
        url = urljoin(f"{self.at.base}/", url)
        if urlsplit(url)[:2] != urlsplit(self.at.base)[:2]:
            raise BadAnswer("the server keeps values of an object on another host")
        part = self.parts / hashlib.sha256(url.encode()).hexdigest()
        self._download(url, part, _FRAME, _MAX_BULK_BYTES)
        return part.read_bytes()

    def _url(self, instance: _Instance) -> str:
        series = f"{self.at.base}/studies/{self.at.study}/series/{instance.series_uid}"
        return f"{series}/instances/{instance.sop_uid}"

    def _keep(self, part: Path, instance: _Instance) -> None:
        _require_instance(part, instance)
        part.replace(self.folder / instance.file_name)

    def _download(self, url: str, part: Path, accept: str, most: int) -> str:
        """Into a file, and its transfer syntax; a broken connection is tried again."""
        for attempt in range(_ATTEMPTS):
            try:
                return _download(self.session, url, part, accept, most)
            except (Unreachable, TimedOut):
                if attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(_PAUSE_MS / 1000 * 2**attempt)
        raise AssertionError("unreachable")


def _download(session: GuardedSession, url: str, part: Path, accept: str, most: int) -> str:
    access = session.access
    with (
        remote_errors(url),
        session.get(
            url, headers={"Accept": accept}, stream=True, timeout=access.timeout_s
        ) as answer,
    ):  # fmt: skip
        answer.raise_for_status()
        body = limited(answer, most, access.max_seconds)
        told = answer.headers.get("Content-Type", "")
        kind = Message()
        kind["Content-Type"] = told
        if boundary := kind.get_boundary():
            header, rest = open_part(body)
            told = f"{header.get('Content-Type', '')} {told}"
            body = body_of(rest, boundary.encode())
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for piece in body:
                file.write(piece)
    return syntax_of(told)


@quiet_pydicom()
def _require_instance(file: Path, wanted: _Instance) -> None:
    import pydicom
    from pydicom.errors import InvalidDicomError

    told = None
    with suppress(InvalidDicomError, OSError, ValueError, AttributeError, KeyError):
        told = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
    if told is None or told.get("SOPInstanceUID") != wanted.sop_uid:
        raise BadAnswer("the server gave something else than the object that was asked for")
