"""Every problem and error has its meaning in both languages of the page."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.context import LocalContext

from encoders import errors
from encoders.dicom import series
from encoders.dicom.choice import WISHES
from encoders.dicom.header import SeriesInfo
from encoders.dicom.identifiers import IDENTIFIERS
from multimodal.openai_server import NotAccepted
from multimodal.terms import spoken_of
from multimodal.training.world.findings import KINDS
from pipelines.ui.guards import errors_as_help
from pipelines.ui.problem_words import ERRORS, PROBLEMS
from pipelines.ui.words import TABLE

ROOT = Path(__file__).parent.parent.parent
_MAKERS = {"Problem", "Flaw", "_Skipped"}  # what is called with a code
_CODE = re.compile(r"[A-Z][A-Z_]{2,}")


def _is_code(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and bool(_CODE.fullmatch(str(node.value)))


def _codes(tree: ast.AST) -> Iterator[str]:
    """Of problems made at once, and of pairs (code, words) that problems are made from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in _MAKERS:
            yield from (ast.literal_eval(arg) for arg in node.args if _is_code(arg))
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and _is_code(node.elts[0]):
            words = node.elts[1]
            if isinstance(words, ast.Constant) and " " in str(words.value):
                yield ast.literal_eval(node.elts[0])
        elif isinstance(node, ast.arguments) and any(arg.arg == "code" for arg in node.args):
            yield from (ast.literal_eval(default) for default in node.defaults if _is_code(default))


def _trees() -> Iterator[ast.AST]:
    for room in ("encoders", "multimodal", "pipelines"):
        for file in sorted((ROOT / room).rglob("*.py")):
            if file.name != "problem_words.py":
                yield ast.parse(file.read_text(encoding="utf-8"))


def test_every_code_that_can_be_raised_has_both_languages_and_no_other_has():
    assert set(PROBLEMS) == {code for tree in _trees() for code in _codes(tree)}
    assert all(english.isascii() for english, _ in PROBLEMS.values())
    for chinese in (*(pair[1] for pair in PROBLEMS.values()), *ERRORS.values()):
        assert re.search(r"[\u4e00-\u9fff]", chinese)
        assert chinese.endswith("。")


def test_no_problem_is_made_with_a_code_that_the_source_does_not_spell():
    """A code from elsewhere is another problem's (`flaw.code`), or of a pair that is found above."""
    firsts = {
        ast.unparse(node.args[0])
        for tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Problem" and node.args
        if not _is_code(node.args[0])
    }
    assert {first for first in firsts if not first.endswith(".code")} <= {"code", "*kind"}


def test_every_error_of_ours_is_told_in_chinese():
    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert set(ERRORS) == ours | {"Exception"}


def test_what_is_told_of_a_series_is_told_in_both_languages():
    """The reason why it opens and the names of its facts were English on a Chinese page."""
    facts = [field.name for field in dataclasses.fields(SeriesInfo)]
    for key in (*WISHES, *facts, *IDENTIFIERS):
        english, chinese = TABLE[key]
        assert english.isascii()
        assert re.search(r"[\u4e00-\u9fff]", chinese)


def test_every_reason_against_a_volume_is_told_in_both_languages():
    """As they stand in the source, numbers as {n}."""
    tree = ast.parse(inspect.getsource(series))
    told = next(
        n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_why_no_volume"
    )
    reasons = set(series._NO_VOLUME.values())
    for node in ast.walk(told):
        if isinstance(node, ast.Return) and node.value is not None:
            reasons |= {_spelt(part) for part in _alternatives(node.value)} - {""}
    assert len(reasons) > 9
    for reason in reasons:
        english, chinese = TABLE[reason]
        assert english == reason
        assert re.search(r"[\u4e00-\u9fff]", chinese)
        assert chinese.count("{n}") == reason.count("{n}")


def _alternatives(value: ast.expr) -> list[ast.expr]:
    if isinstance(value, ast.IfExp):
        return [value.body, value.orelse]
    if isinstance(value, ast.BinOp):
        return [value.left]
    return [value]


def _spelt(value: ast.expr) -> str:
    if isinstance(value, ast.JoinedStr):
        return "".join(p.value if isinstance(p, ast.Constant) else "{n}" for p in value.values)
    return str(value.value) if isinstance(value, ast.Constant) else ""


def test_every_finding_of_the_generated_world_is_told_in_words_that_we_understand():
    names = [kind.name for kind in KINDS]
    for name in names:
        for said in TABLE[name]:
            assert spoken_of(said, names) == (name, None)


@pytest.mark.parametrize(
    ("error", "language", "words"),
    [(errors.NotDicom("a.txt is none"), "zh-CN,en", "未找到 DICOM 图像。 a.txt is none"),
     (errors.NotDicom("a.txt is none"), "en-GB", "a.txt is none"),
     (NotAccepted("no"), "zh-TW", "请求被拒绝。 no"),
     (ValueError("no"), "zh", f"出错了。 {TABLE['unexpected'][1]}")],
)  # fmt: skip
def test_an_error_is_told_in_the_language_of_who_asked(error: Exception, language: str, words: str):
    asked = LocalContext.request.set(SimpleNamespace(headers={"accept-language": language}))  # type: ignore[arg-type]
    try:
        with pytest.raises(gr.Error, match=f"^'{re.escape(words)}'$"), errors_as_help():
            raise error
    finally:
        LocalContext.request.reset(asked)
