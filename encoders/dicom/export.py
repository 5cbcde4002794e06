"""A study in, a de-identified study out: files under new names, none of the old ones in them.

Every file is read, cleaned (`deidentify.py`) and written by itself, so that a bad one costs only
itself. Knows folders and names; which attribute stays is not decided here.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from encoders.dicom.burned_in import Box, shows_face
from encoders.dicom.confidentiality import CLEAN, RETAIN, Profile
from encoders.dicom.deidentify import Deidentifier
from encoders.dicom.header import SliceFile, open_origin, read_header
from encoders.dicom.intake import Member, Origin, members
from encoders.dicom.pixels import inflate, read_pixels
from encoders.dicom.pseudonyms import MIN_KEY_BYTES, Pseudonyms
from encoders.dicom.silence import quiet_pydicom
from encoders.dicom.vocabulary import shown_name
from encoders.dicom.write import ROOT_UID
from encoders.errors import CrossReadError, InvalidOption, MissingInput, UnsafeOutput
from encoders.features import Problem

__all__ = ["CLEAN", "RETAIN", "Exported", "deidentify"]
MAX_MASKED_BYTES = 2**30
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        num_written: files written.
        skipped: files left out, each with its reason; named as far as a name may be shown.
        warnings: what a person has to judge about the files written.
        options: retained and cleaned beyond the basic profile.
    """

    num_written: int
    skipped: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    options: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def deidentify(
    source: Path | str,
    out: Path | str,
    *,
    key: bytes | None = None,
    retain: Sequence[str] = (),
    clean: Sequence[str] = (),
    allow_burned_in: bool = False,
    watch: Callable[[Iterable[Member]], Iterable[Member]] = iter,
) -> Exported:
    """Write a de-identified copy of a study by PS3.15's basic profile.

    Args:
        source: file, folder, zip, tar or DICOMDIR.
        out: a folder that does not exist yet, or an empty one; gets `study/series/instance.dcm`.
        key: secret of at least 16 bytes; the same key gives the same stand-ins. Random if None.
        retain: options of `RETAIN`.
        clean: options of `CLEAN`.
        allow_burned_in: also write pictures that may show patient data as text.
        watch: wraps the files on their way, for a progress bar.

    Raises:
        InvalidOption: an unknown option, or a key that is too short.
        MissingInput: `source` does not exist.
        UnsafeOutput: `out` holds something, or one of the two lies within the other.
        UnreadableFile: an archive that is broken or unsafe.
    """
    profile = Profile(frozenset(retain), frozenset(clean))
    if key is not None and len(key) < MIN_KEY_BYTES:
        raise InvalidOption(f"the key has {len(key)} bytes; give at least {MIN_KEY_BYTES}")
    source, out = Path(source), Path(out)
    _require_apart(source, out)
    names = Pseudonyms(secrets.token_bytes(32) if key is None else key)
    export = _Export(Deidentifier(profile, names), out, allow_burned_in)
    left_out: list[Problem] = []
    for name, origin in watch(members(source, left_out)):
        export.one(shown_name(name), origin)
    skipped = [Problem(p.code, p.message, shown_name(p.subject)) for p in left_out]
    options = tuple(o for o in (*RETAIN, *CLEAN) if o in profile.retain | profile.clean)
    return Exported(
        export.num_written, (*skipped, *export.skipped), tuple(export.warnings()), options
    )


def _require_apart(source: Path, out: Path) -> None:
    if not source.exists():
        raise MissingInput("the study to de-identify does not exist; check the path")
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise UnsafeOutput("output and input lie within each other; choose another output folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UnsafeOutput("the output folder is not empty; nothing is overwritten, choose another")


@dataclass
class _Export:
    """An export under way: writes files and keeps count."""

    tool: Deidentifier
    out: Path
    allow_burned_in: bool
    num_written: int = 0
    skipped: list[Problem] = field(default_factory=list)
    noted: Counter[str] = field(default_factory=Counter)

    def one(self, name: str, origin: Origin) -> None:
        """Write one file, or say why not."""
        try:
            with quiet_pydicom():
                self._write(name, origin)
        except _Skipped as skipped:
            self.skipped.append(Problem(skipped.code, str(skipped), name))
        except CrossReadError as error:
            self.skipped.append(Problem("UNREADABLE_FILE", str(error), name))
        except Exception as error:  # one bad file never stops the rest
            words = f"cannot be read or written as DICOM ({type(error).__name__})"
            self.skipped.append(Problem("UNREADABLE_FILE", words, name))

    def _write(self, name: str, origin: Origin) -> None:
        import pydicom

        first = _first_slice(name, origin)
        source = pydicom.dcmread(open_origin(origin))
        if source.get("DirectoryRecordSequence") is not None:
            raise _Skipped("NOT_COPIED", "a media directory; its entries would name lost files")
        masked = self._mask(source, first)
        clean = self.tool.dataset(source)
        risky = first is not None and first.burned_in is not None and not masked
        # nobody looked at the other pictures: what their source says of itself is all that is known
        self.tool.describe(clean, "YES" if risky else "NO" if masked else "")
        target = self._target(source, origin)
        _save(clean, source, target, self.tool)
        self.num_written += 1
        self.noted["faces"] += shows_face(_facts(source))
        self.noted["burned in"] += risky
        self.noted["masked"] += masked
        tags = source.keys()
        self.noted["overlays"] += any(tag.group & 0xFF00 == 0x6000 for tag in tags)

    def _mask(self, source: Any, first: SliceFile | None) -> bool:
        """Blank the text of a picture at risk where asked and known where it stands."""
        risk = first.burned_in if first else None
        if first is None or risk is None:
            return False
        if "pixels" in self.tool.profile.clean and risk.boxes:
            read_pixels(first)  # checks limits and codestream before anything else decodes
            _blank(source, risk.boxes)
            return True
        if not self.allow_burned_in:
            raise _Skipped(
                "BURNED_IN_RISK", f"{risk.problem().message}; look at it, then allow_burned_in"
            )
        return False

    def _target(self, source: Any, origin: Origin) -> Path:
        """A new place from hashed UIDs; nothing of a received value is in it."""
        uid = self.tool.names.uid
        study, series = (str(source.get(k) or f"no {k}") for k in _UIDS)
        instance = str(source.get("SOPInstanceUID") or "")
        if not instance:
            content = origin if isinstance(origin, bytes) else origin.read_bytes()
            instance = hashlib.sha256(content).hexdigest()
        target = self.out / uid(study) / uid(series) / f"{uid(instance)}.dcm"
        if target.exists():
            raise _Skipped("DUPLICATE_INSTANCE", "the same instance twice; one written")
        return target

    def warnings(self) -> Iterable[Problem]:
        """What a person has to judge, with counts."""
        words = {
            "faces": ("RECOGNISABLE_FACE", "tomograms of the head: a face can be rendered from them; deface before sharing"),
            "burned in": ("BURNED_IN_ALLOWED", "pictures that may show patient data as text were written as they are"),
            "masked": ("BURNED_IN_MASKED", "pictures had the text of their device blanked; look at them before sharing"),
            "overlays": ("OVERLAYS_REMOVED", "files had overlay planes, which were removed"),
        }  # fmt: skip
        for kind, (code, message) in words.items():
            if self.noted[kind]:
                yield Problem(code, f"{self.noted[kind]} {message}")


_UIDS = ("StudyInstanceUID", "SeriesInstanceUID")


class _Skipped(Exception):
    """A file that is not written, with the code to list it under."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _first_slice(name: str, origin: Origin) -> SliceFile | None:
    """The file's header by the scan's own limits; None for objects that hold no picture."""
    header = read_header(name, origin)
    fatal = [p for p in header.problems if p.code not in ("NOT_AN_IMAGE", "PRIVATE_SOP_CLASS", "FRAME_COUNT")]  # fmt: skip
    if fatal:
        raise _Skipped(fatal[0].code, fatal[0].message)
    if not header.slices:
        return None
    if header.slices[0].stored.syntax == _DEFLATED:
        content = origin if isinstance(origin, bytes) else origin.read_bytes()
        start = 144 + int.from_bytes(content[140:144], "little")  # after group 2, by its length
        inflate(content[start:])  # refuses what unpacks to more than is safe
    return header.slices[0]


def _facts(source: Any) -> dict[str, str]:
    names = (
        "Modality", "BodyPartExamined", "SeriesDescription", "StudyDescription", "ProtocolName",
    )  # fmt: skip
    return {name: str(source.get(name) or "") for name in names}


def _save(clean: Any, source: Any, target: Path, tool: Deidentifier) -> None:
    """A file with a meta header of our own and an empty preamble (PS3.15 E.1.1, 7)."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    sop_class = source.get("SOPClassUID") or source.file_meta.get("MediaStorageSOPClassUID")
    instance = clean.get("SOPInstanceUID") or UID(target.stem)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, instance
    meta.TransferSyntaxUID = source.file_meta.TransferSyntaxUID
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(f"{ROOT_UID}1"), "CROSSREAD"
    clean.file_meta, clean.preamble = meta, b"\0" * 128
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    try:
        clean.save_as(part, enforce_file_format=True)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _blank(source: Any, boxes: Sequence[Box]) -> None:
    """Make boxes of every frame black; `source` is a data set of our own."""
    frames = int(source.get("NumberOfFrames") or 1)
    size = int(source.Rows) * int(source.Columns) * int(source.get("SamplesPerPixel") or 1)
    if frames * size * (int(source.BitsAllocated) // 8) > MAX_MASKED_BYTES:
        raise _Skipped("TOO_LARGE", "more than 1 GiB of pixels to mask")
    if source.file_meta.TransferSyntaxUID.is_encapsulated:
        source.decompress()
    pixels = np.array(source.pixel_array)
    colour = int(source.get("SamplesPerPixel") or 1) > 1
    black = _black(str(source.PhotometricInterpretation), int(source.BitsStored))
    for x0, y0, x1, y1 in boxes:
        rows, columns = slice(y0, y1), slice(x0, x1)
        pixels[(..., rows, columns, slice(None)) if colour else (..., rows, columns)] = black
    source.PixelData = pixels.tobytes()
    if colour:
        source.PlanarConfiguration = 0


def _black(photometric: str, bits: int) -> Any:
    if photometric.startswith("YBR"):
        return np.array([0, 1 << (bits - 1), 1 << (bits - 1)])
    return (1 << bits) - 1 if photometric == "MONOCHROME1" else 0
