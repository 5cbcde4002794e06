"""An object of many frames put together from a DICOMweb server's metadata and frames (PS3.18 10.4).

DICOM JSON and files of single frames in, one DICOM file out; and the multipart messages they come
in. Knows no network and no limits: see `remote`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.message import Message
from email.parser import BytesParser
from itertools import chain
from pathlib import Path
from typing import Any

from encoders.dicom.header import MAX_FRAMES
from encoders.errors import BadAnswer, Unreachable

_EXPLICIT = "1.2.840.10008.1.2.1"  # what frames are in if the answer does not say (PS3.18 8.7.3)
_MAX_PART_HEADER = 2**16
MAX_BULK = 256


def comes_in_frames(item: Mapping[str, Any]) -> bool:
    """Whether an object of this metadata is fetched frame by frame: several, of whole bytes each."""

    def number(tag: str) -> int:
        return int((item.get(tag, {}).get("Value") or [0])[0] or 0)

    frames, bits = number("00280008"), number("00280100")
    return 1 < frames <= MAX_FRAMES and bits >= 8 and bits % 8 == 0


def open_part(chunks: Iterator[bytes]) -> tuple[Message, Iterator[bytes]]:
    """The header of the first part of a multipart message (RFC 2046 5.1), and what follows it.

    Raises:
        BadAnswer: there is none.
    """
    held = b""
    for chunk in chunks:
        held += chunk
        if b"\r\n\r\n" in held or len(held) > _MAX_PART_HEADER:
            break
    head, blank, held = held.partition(b"\r\n\r\n")
    if not blank:
        raise BadAnswer("the answer is no multipart message")
    told = BytesParser().parsebytes(head.partition(b"\r\n")[2], headersonly=True)
    return told, chain([held], chunks)


def first_part(chunks: Iterator[bytes], boundary: bytes) -> Iterator[bytes]:
    """The body of the first part of a multipart message, as it arrives.

    Raises:
        BadAnswer: there is none.
        Unreachable: the message ends within it.
    """
    yield from body_of(open_part(chunks)[1], boundary)


def body_of(chunks: Iterator[bytes], boundary: bytes) -> Iterator[bytes]:
    """What comes before the boundary.

    Raises:
        Unreachable: it does not come.
    """
    held, end = b"", b"\r\n--" + boundary
    for chunk in chunks:
        held += chunk
        body, found, _ = held.partition(end)
        if found:
            yield body
            return
        safe = max(len(held) - len(end), 0)
        yield held[:safe]
        held = held[safe:]
    raise Unreachable("the answer broke off in the middle of an object")


def syntax_of(*content_types: str) -> str:
    """The transfer syntax that the Content-Type of a part, or of the message, tells."""
    for text in content_types:
        if found := re.search(r"transfer-syntax=\"?([0-9.]{1,64})", text):
            return found[1]
    return _EXPLICIT


def write_object(
    file: Path,
    item: Mapping[str, Any],
    frames: Sequence[Path],
    syntax: str,
    *,
    bulk: Callable[[str], bytes],
) -> None:
    """Write the DICOM file of an object's metadata and its frames in order.

    Args:
        file: where to.
        item: its metadata.
        frames: a file each.
        syntax: what they are stored in.
        bulk: gives what lies at a BulkDataURI, for values other than pixels.

    Raises:
        BadAnswer: the metadata is no data set, or has too many values elsewhere.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    fetched: list[str] = []

    def fetch(_tag: str, _vr: str, uri: str | None) -> bytes:
        fetched.append(uri or "")
        if len(fetched) > MAX_BULK:
            raise BadAnswer(f"an object of more than {MAX_BULK} values to be fetched one by one")
        return bulk(uri) if uri else b""

    header = {tag: value for tag, value in item.items() if tag not in _NOT_HEADER}
    try:
        data = Dataset.from_json(header, fetch)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = data.SOPClassUID
        meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        meta.TransferSyntaxUID = UID(syntax)
        data.file_meta = meta
        data.SpecificCharacterSet = "ISO_IR 192"  # JSON is UTF-8
        values = [frame.read_bytes() for frame in frames]
        if meta.TransferSyntaxUID.is_compressed and not meta.TransferSyntaxUID.is_deflated:
            data.add_new("PixelData", "OB", encapsulate(values))
            data["PixelData"].is_undefined_length = True
        else:
            joined = b"".join(values)
            vr = "OB" if int(data.BitsAllocated) <= 8 else "OW"
            data.add_new("PixelData", vr, joined + b"\0" * (len(joined) % 2))
        data.save_as(file, enforce_file_format=True)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise BadAnswer("the server's metadata of an object cannot be made into a file") from error


# pixels come as frames; the others describe the server's answer, not the object (PS3.18 10.6.3)
_NOT_HEADER = ("7FE00010", "7FE00001", "7FE00002", "00083002", "00081190", "00080056", "00080005")
