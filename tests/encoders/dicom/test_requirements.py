"""docs/dicom.md keeps its word: every test it names exists, every code it explains is in use."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/dicom.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`([\w./]+\.py)::(\w+)`")
TAKES_A_CODE = {"Problem": 0, "Flaw": 1}  # and which argument it is


def _rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def _tests(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _codes_in_use() -> set[str]:
    found = set()
    for file in (ROOT / "encoders/dicom").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            place = TAKES_A_CODE.get(node.func.id, len(node.args))
            for argument in node.args[place : place + 1]:
                if isinstance(argument, ast.Constant):
                    found.add(str(argument.value))
    return found


def test_each_of_the_55_requirements_has_its_row() -> None:
    assert [int(row[0]) for row in _rows("Requirements")] == list(range(1, 56))


def test_every_requirement_names_a_test() -> None:
    for row in _rows("Requirements"):
        assert NAMED.findall(row[-1]), f"requirement {row[0]} names no test"


def test_every_test_the_page_names_exists() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 150  # the sections below the table too
    for file, name in named:
        path = ROOT / "tests/encoders/dicom" / file
        assert path.is_file(), f"{file} is not there"
        assert name in _tests(path), f"{file} has no {name}"
    for file in re.findall(r"`(test_\w+\.py)`", PAGE):
        assert (ROOT / "tests/encoders/dicom" / file).is_file(), f"{file} is not there"


def test_every_problem_code_is_explained() -> None:
    explained = {row[0].strip("`") for row in _rows("Codes")}
    source = "".join(f.read_text(encoding="utf-8") for f in (ROOT / "encoders").rglob("*.py"))
    assert _codes_in_use() <= explained
    assert all(f'"{code}"' in source for code in explained)
