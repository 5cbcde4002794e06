"""A reading as files for an archive: DICOM objects of its study, and a PDF.

Converts a `Reading` into the plain values of `encoders.dicom.results`; the study is scanned again,
so that neither reading nor volume has to carry what names a patient.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from encoders.dicom import Study
    from encoders.dicom.results import Place, Result
    from pipelines.evidence import Evidence, Reading

_CJK = "STSong-Light"  # one of the fonts every PDF reader brings, for words beyond Latin letters
_LATIN = "Vera"


def write_dicom(reading: Reading, study: str | Path | Study, folder: Path) -> list[Path]:
    """Write a reading of `study` as DICOM: `sr.dcm`, `key_1.dcm` ... and `report.pdf.dcm`.

    The results are those of the series that was read, be it the default or another.
    Patient and study identifiers are copied from the study's files into the new objects, and
    nowhere else. Anyone who calls this asks for that.

    Raises:
        InputError: the study can't be read, or names nothing that a result could refer to.
    """
    from encoders.dicom import Study, scan, write_results
    from encoders.dicom.remote import on_disk

    with on_disk(study) as (path, _):
        found = path if isinstance(path, Study) else scan(path)
        series = found.choose(reading.study.get("series_key"))
        return write_results(as_result(reading), series, Path(folder))


def as_result(reading: Reading) -> Result:
    """The plain values of a reading that DICOM objects are made from; without rejected points."""
    from encoders.dicom.results import Maker, Observation, Place, Remark, Result

    proofs = [e for f in reading.findings for e in f.evidence]
    proofs += [e for d in reading.discrepancies for e in d.evidence]
    positions = {e.slice_index: e.position_mm for e in proofs}
    made = reading.provenance
    return Result(
        tuple(
            Observation(f.name, f.side, f.size_mm, f.probability, _place(f.evidence))
            for f in reading.findings
        ),
        tuple(
            Remark(d.type, d.sentence, d.correction, d.probability, _place(d.evidence))
            for d in reading.discrepancies if d.decision != "rejected"
        ),
        reading.warnings, reading.verdict(),
        Maker(reading.model, *(made.get(k) or "unknown"
                               for k in ("weights_sha256", "preprocessing", "version"))),
        tuple((Place(i, positions.get(i)), png) for i, png in reading.key_slices),
        render_pdf(reading), reading.report is not None,
    )  # fmt: skip


def _place(proofs: Sequence[Evidence]) -> Place | None:
    from encoders.dicom.results import Place

    for proof in proofs:
        if proof.kind == "image" and proof.slice_index is not None:
            return Place(proof.slice_index, proof.position_mm, proof.box)
    return None


def render_pdf(reading: Reading) -> bytes:
    """The reading on A4 pages: what a terminal shows of it, then the key slices."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.platypus import SimpleDocTemplate

    story = [*_text(reading), *_pictures(reading)]
    out = io.BytesIO()
    page = SimpleDocTemplate(
        out, pagesize=A4, title="CrossRead: AI result for research", author="CrossRead",
        leftMargin=20 * mm, rightMargin=20 * mm, topMargin=18 * mm, bottomMargin=18 * mm,
        invariant=1,
    )  # fmt: skip
    page.build(story, onFirstPage=_label, onLaterPages=_label)
    return out.getvalue()


def _label(canvas: Any, page: Any) -> None:
    """The label that no page goes without."""
    from encoders.dicom.results import LABEL

    canvas.setFont(_LATIN, 8)
    canvas.drawString(page.leftMargin, 24, f"{LABEL}. Page {canvas.getPageNumber()}")


def _text(reading: Reading) -> Iterator[Any]:
    """A paragraph for each line; those that are not indented are headings."""
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.platypus import Paragraph

    from pipelines.terminal import describe_reading

    pdfmetrics.registerFont(TTFont(_LATIN, "Vera.ttf"))
    pdfmetrics.registerFont(UnicodeCIDFont(_CJK))
    made = [f"  {name}: {value}" for name, value in reading.provenance.items() if value]
    for line in [*describe_reading(reading).splitlines(), "", "Made by", *made]:
        indent = len(line) - len(line.lstrip())
        size = 8.5 if indent else 11
        style = ParagraphStyle(
            "line", fontName=_font(line), fontSize=size, leading=size * 1.4, leftIndent=4 * indent
        )
        yield Paragraph(escape(line) or "&nbsp;", style)


def _font(words: str) -> str:
    return _LATIN if all(ord(letter) < 0x250 or letter in "–—’“”…" for letter in words) else _CJK


def _pictures(reading: Reading) -> Iterator[Any]:
    from reportlab.lib.units import mm
    from reportlab.platypus import Image, Spacer

    for _, png in reading.key_slices:
        picture = Image(io.BytesIO(png))
        scale = min(170 * mm / picture.drawWidth, 200 * mm / picture.drawHeight)
        picture.drawWidth *= scale
        picture.drawHeight *= scale
        yield Spacer(1, 4 * mm)
        yield picture
