"""Every DICOM file at hand: read right, or refused by name.

    python -m benchmarks.dicom_files > docs/dicom_files.md

Files are pydicom's own collection and, where it lies beside the checkout, ../shared/data. A file is
read right if its stored values are those pydicom decodes.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("CROSSREAD_SHARED_DATA", ROOT.parent / "shared" / "data"))
NOT_DATA = {"ref", "LICENSES", "nifti"}
HEAD = """\
# Every DICOM file at hand

Made by `python -m benchmarks.dicom_files`; a test compares the first table's headers with what a
scan says today. *Header* is what `scan` makes of the file alone, *pixels* what `load_volume` makes
of it and how its stored values compare with those pydicom decodes. Of files in one folder that give
the same, at most four are named.
"""


def collection() -> Path:
    """Where pydicom keeps its test files."""
    import pydicom

    return Path(pydicom.__file__).parent / "data" / "test_files"


def files_of(root: Path) -> list[Path]:
    """All files but references and licences, by name."""
    found = (p for p in root.rglob("*") if p.is_file())
    return sorted(p for p in found if p.relative_to(root).parts[0] not in NOT_DATA)


def header_words(file: Path) -> str:
    """What a scan of one file says of it."""
    from encoders.dicom import scan
    from encoders.errors import CrossReadError

    try:
        study = scan(file)
    except CrossReadError as error:
        return f"refused: {type(error).__name__}"
    if not study.series:
        codes = Counter(p.code for p in study.problems)
        told = study.problems[0].message if study.problems else "nothing"
        return f"refused: {', '.join(codes)}: {told.removeprefix('not an image to read: ')}"
    first = study.series[0]
    if len(study.series) == 1:
        frames = f"{len(first.files)} frames" if len(first.files) > 1 else "1 image"
        return f"{first.info.modality or '?'} {first.kind}, {frames}"
    return f"{len(study.series)} series, {sum(len(s.files) for s in study.series)} images"


def pixel_words(file: Path) -> str:
    """What loading the file gives, compared with pydicom's own decoding."""
    from encoders.dicom import load_volume, scan
    from encoders.errors import CrossReadError

    try:
        series = scan(file).default()
        volume = load_volume(series)
    except CrossReadError as error:
        return f"refused: {type(error).__name__}"
    words = f"{' x '.join(map(str, volume.voxels.shape))} {volume.unit or 'values'}"
    if any(f.source != file for f in series.files):
        return words
    return f"{words}, {_compared(file, series)}"


def _compared(file: Path, series: Any) -> str:
    import pydicom
    from pydicom.pixels import pixel_array

    from encoders.dicom.pixels import iter_pixels
    from encoders.errors import InputError

    ours = list(iter_pixels(series.files))
    if any(isinstance(o, InputError) for o in ours):
        return "some frames refused"
    try:
        header = pydicom.dcmread(file)
        theirs = pixel_array(header, raw=ours[0].photometric != "RGB")
    except Exception as error:  # whatever pydicom's decoders raise, the comparison ends here
        return f"ours alone ({type(error).__name__})"
    samples = int(header.SamplesPerPixel)
    many = theirs.ndim > (3 if samples > 1 else 2)
    worst = 0.0
    for frame, found in zip(series.files, ours, strict=True):
        wanted = theirs[frame.frame or 0] if many else theirs
        if wanted.shape != found.stored.shape:
            return f"shape {found.stored.shape}, not {wanted.shape}"
        difference = _meaningful(wanted, header).astype(np.float64) - found.stored
        worst = max(worst, float(np.abs(difference).max()))
    return f"DIFFERS by {worst:g}" if worst else "equal"


def _meaningful(stored: np.ndarray, header: Any) -> np.ndarray:
    """pydicom leaves junk above HighBit in native pixels; PS3.5 8.1.1 says it is none of theirs."""
    bits, allocated = int(header.get("BitsStored", 0)), int(header.BitsAllocated)
    if stored.dtype.kind not in "iu" or not 0 < bits < allocated:
        return stored
    values = (stored.astype(np.int64) >> (int(header.HighBit) - bits + 1)) & ((1 << bits) - 1)
    if int(header.PixelRepresentation):
        values = (values ^ (1 << (bits - 1))) - (1 << (bits - 1))
    return values


def table(root: Path, title: str) -> Iterator[str]:
    """One row a file; files of a folder that give the same are put together."""
    yield f"\n## {title}\n\n| file | header | pixels |\n|---|---|---|"
    rows: dict[tuple[str, str, str], list[str]] = {}
    for file in files_of(root):
        name = file.relative_to(root)
        header = header_words(file)
        pixels = "" if header.startswith("refused") else pixel_words(file)
        rows.setdefault((name.parent.as_posix(), header, pixels), []).append(name.name)
    for (folder, header, pixels), names in rows.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        where = "" if folder == "." else f"{folder}/"
        yield f"| {where}{shown} | {header} | {pixels} |"


def main() -> None:
    """Print the page."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    print(HEAD, end="")
    for line in table(collection(), "pydicom's collection"):
        print(line, flush=True)
    if SHARED.is_dir():
        for line in table(SHARED, "../shared/data"):
            print(line, flush=True)
    else:
        print("no ../shared/data beside the checkout", file=sys.stderr)


if __name__ == "__main__":
    main()
