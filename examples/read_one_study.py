"""Does this report agree with this CT? python examples/read_one_study.py [STUDY REPORT.txt]"""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines import pipeline

SAMPLE = Path(__file__).parent.parent / "multimodal" / "demo" / "sample"


def main(study: Path, report: Path, model: str | None = None) -> None:
    """Read, print what differs and what is there, and leave a page with the slices to look at."""
    read = pipeline("ct-report", model)  # the shipped demo checkpoint unless told otherwise
    reading = read(study, report.read_text(encoding="utf-8"))

    print(reading.verdict())
    for point in reading.discrepancies:
        print(f"  {point.type}: {point.sentence or '(nothing)'} -> {point.suggestion}")
    for finding in reading.findings:
        print(f"  seen: {finding.side or ''} {finding.name}, slice index {finding.slice_index}")
    for warning in reading.warnings:
        print(f"  {warning.code}: {warning.message}")

    Path("reading.html").write_text(reading.to_html(), encoding="utf-8")
    print("wrote reading.html")


if __name__ == "__main__":
    main(*(map(Path, sys.argv[1:3]) if sys.argv[2:] else (SAMPLE / "study", SAMPLE / "report.txt")))
