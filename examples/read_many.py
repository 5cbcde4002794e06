"""A night's work: many studies, one JSON line each. python examples/read_many.py FOLDER > out.jsonl

FOLDER holds one folder or zip per study; its report, if there is one, lies beside it as NAME.txt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines import pipeline
from pipelines.batch import Failed
from pipelines.ct_report import Case


def cases(folder: Path) -> Iterator[Case]:
    """Studies and their reports, opened one at a time."""
    for study in sorted(p for p in folder.iterdir() if p.suffix != ".txt"):
        report = study.with_suffix(".txt")
        yield Case(study, report.read_text(encoding="utf-8") if report.is_file() else None)


def main(folder: Path, model: str | None = None) -> None:
    """Print a line for every study; one that cannot be read says why and costs no other."""
    for result in pipeline("ct-report", model)(cases(folder)):
        if isinstance(result, Failed):
            line = {"failed": result.error, "why": result.message}
        else:
            types = [point.type for point in result.discrepancies]
            line = {"agreement": result.agreement, "discrepancies": types}
        print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
