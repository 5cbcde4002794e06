"""The house rules that a machine can check: imports, budgets, public names, quick starts, no leaks."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("encoders", "multimodal", "pipelines", "app")  # a room may import those before it
DICOM_LIBRARIES = {"pydicom", "highdicom", "pynetdicom", "dicomweb_client", "pylibjpeg"}
SIGNALS = {"Flaw", "Malformed", "Hung"}  # never leave their room: told as a Problem
HEAVY = ("torch", "transformers", "gradio", "pydicom", "open_clip", "scipy", "PIL", "pandas")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    """Every Python file of the rooms."""
    files = [ROOT / "app.py", *(f for room in ROOMS for f in (ROOT / room).rglob("*.py"))]
    return sorted(f for f in files if f.is_file())


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: Path) -> set[str]:
    """Top-level packages a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}:{node.lineno} imports relatively"
            names.add((node.module or "").partition(".")[0])
    return names


def functions(file: Path) -> Iterator[Function]:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, Function):
            yield node


def public(node: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Public functions, classes and their public methods."""
    for child in node.body:
        if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def decorators(node: Function | ast.ClassDef) -> str:
    return " ".join(ast.unparse(d) for d in node.decorator_list)


def arguments(function: Function) -> tuple[list[ast.arg], list[ast.arg]]:
    """Positional and keyword-only arguments, `self` and `cls` left out."""
    given = [*function.args.posonlyargs, *function.args.args]
    return [a for a in given if a.arg not in ("self", "cls")], function.args.kwonlyargs


def test_rooms_import_only_the_rooms_below():
    wrong = []
    for file in sources():
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        forbidden = {*ROOMS[ROOMS.index(room) + 1 :], "tests", "benchmarks", "examples"}
        wrong += [f"{name_of(file)} imports {n}" for n in sorted(imported(file) & forbidden)]
    assert not wrong


def test_only_the_dicom_room_imports_pydicom_and_its_kin():
    room = ROOT / "encoders" / "dicom"
    wrong = [
        f"{name_of(file)} imports {name}"
        for file in sources()
        if not file.is_relative_to(room)
        for name in sorted(imported(file) & DICOM_LIBRARIES)
    ]
    assert not wrong


def test_nobody_imports_the_deployment_room():
    files = [*sources(), *(ROOT / "tests").rglob("*.py")]
    assert not [name_of(f) for f in files if "spaces_config" in imported(f)]


def test_no_file_is_longer_than_500_lines():
    files = [*sources(), *(ROOT / "tests").rglob("*.py")]
    lengths = {name_of(f): len(f.read_text(encoding="utf-8").splitlines()) for f in files}
    assert not {name: n for name, n in lengths.items() if n > 500}


def test_no_function_is_longer_than_80_lines():
    lengths = {
        f"{name_of(file)}:{f.name}": (f.end_lineno or 0) - f.lineno + 1
        for file in [*sources(), *(ROOT / "tests").rglob("*.py")]
        for f in functions(file)
    }
    assert not {name: n for name, n in lengths.items() if n > 80}


def test_functions_take_at_most_four_positional_and_eight_arguments():
    """A private helper may take all eight by position.

    Commands are left out: their parameters are options of a command line, called by nobody. So are
    kernels: their operands stand in the order of the formula.
    """
    wrong = []
    for file in sources():
        if file.is_relative_to(ROOT / "multimodal" / "kernels"):
            continue
        for function in functions(file):
            if "app.command" in decorators(function):
                continue
            positional, keyword = arguments(function)
            limit = 8 if function.name.startswith("_") else 4
            if len(positional) > limit or len(positional) + len(keyword) > 8:
                wrong.append(f"{name_of(file)}:{function.name}")
    assert not wrong


def test_public_names_are_documented():
    wrong = [name_of(f) for f in sources() if not ast.get_docstring(tree_of(f))]
    for file in sources():
        for node in public(tree_of(file)):
            if "overload" not in decorators(node) and not ast.get_docstring(node):
                wrong.append(f"{name_of(file)}:{node.name}")
    assert not wrong


def test_public_names_are_typed():
    wrong = []
    for file in sources():
        for node in public(tree_of(file)):
            if not isinstance(node, Function) or "triton.jit" in decorators(node):
                continue
            positional, keyword = arguments(node)
            bare = [a.arg for a in (*positional, *keyword) if a.annotation is None]
            if bare or node.returns is None:
                wrong.append(f"{name_of(file)}:{node.name} {bare}")
    assert not wrong


def test_library_code_prints_nothing():
    """Commands speak through typer, everything else through values and logging."""
    wrong = [
        f"{name_of(file)}:{node.lineno}"
        for file in sources()
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not wrong


def test_broad_excepts_tell_their_reason():
    wrong = []
    for file in sources():
        lines = file.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree_of(file)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = ast.unparse(node.type) if node.type else "everything"
            if re.search(r"\b(everything|Exception|BaseException)\b", kinds):
                nearby = " ".join(lines[node.lineno - 2 : node.lineno])
                if "#" not in nearby:
                    wrong.append(f"{name_of(file)}:{node.lineno}")
    assert not wrong


def test_no_module_shares_its_name_with_what_it_exports_or_imports():
    wrong = []
    for file in sources():
        module = file.parent.name if file.stem == "__init__" else file.stem
        exported = {n.name for n in tree_of(file).body if isinstance(n, Function | ast.ClassDef)}
        # a package imports itself; a module that names a library would shadow it for a reader
        libraries = imported(file) - set(ROOMS)
        if module in exported | libraries:
            wrong.append(name_of(file))
    assert not wrong


def test_every_error_of_ours_derives_from_the_base():
    tree = {"CrossReadError", *SIGNALS}
    wrong = []
    errors = ROOT / "encoders" / "errors.py"
    for file in [errors, *(f for f in sources() if f != errors)]:
        for node in ast.walk(tree_of(file)):
            if not isinstance(node, ast.ClassDef):
                continue
            bases = {ast.unparse(b) for b in node.bases}
            if bases & tree or node.name == "CrossReadError":
                tree.add(node.name)
            elif (
                node.name not in tree
                and not node.name.startswith("_")
                and any("Error" in b or b == "Exception" for b in bases)
            ):
                wrong.append(f"{name_of(file)}:{node.name}")
    assert not wrong
    assert len(tree) > 15


def test_the_public_api_is_what_is_recorded():
    import pipelines
    from pipelines.evidence import Discrepancy, Evidence, Finding, Reading

    fields = {c.__name__: list(c.__dataclass_fields__) for c in (Finding, Discrepancy, Evidence)}
    assert pipelines.__all__ == ["Task", "pipeline"]
    assert fields == {
        "Finding": ["name", "side", "size_mm", "slice_index", "box", "probability", "evidence"],
        "Discrepancy": ["type", "sentence", "correction", "probability", "evidence", "decision"],
        "Evidence": ["kind", "slice_index", "position_mm", "box", "sentence", "score"],
    }
    assert list(Reading.__dataclass_fields__) == [
        "findings", "discrepancies", "agreement", "answer", "evidence", "warnings", "study",
        "report", "transcript", "model", "usage", "timings_s", "disclaimer", "provenance",
        "report_source", "key_slices",
    ]  # fmt: skip


def loaded_by(code: str) -> tuple[list[str], int, float]:
    """Heavy libraries a fresh interpreter holds after `code`, all its modules' number, its CPU s."""
    report = (
        "import json, sys, time; "
        f"names = [n for n in {HEAVY!r} if n in sys.modules]; "
        "print(json.dumps([names, len(sys.modules), time.process_time()]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True, text=True, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    heavy, number, cpu_s = json.loads(done.stderr.splitlines()[-1])
    return heavy, number, cpu_s


HELP = (
    "import sys; sys.argv = ['crossread', {0}'--help']\nfrom pipelines.cli import main\n"
    "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
)


@pytest.mark.parametrize(
    ("code", "most_modules"),
    [
        ("import pipelines", 150),  # 74 measured: 0.03 s of CPU
        (HELP.format(""), 350),  # 159 measured: 0.15 s of CPU
        (HELP.format("'read', "), 350),
    ],
)
def test_starting_loads_nothing_heavy(code: str, most_modules: int):
    heavy, number, _ = loaded_by(code)
    assert heavy == []
    assert number <= most_modules


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if listed.returncode:
        pytest.skip("needs a git checkout to know which files are ours")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [f for f in files if f.is_file() and not f.is_symlink()]


def texts() -> Iterator[tuple[str, str]]:
    for file in tracked():
        try:
            yield name_of(file), file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_every_environment_variable_of_ours_is_documented():
    pages = ("README.md", "CONTRIBUTING.md", "docs/environment.md")
    documented = " ".join(
        (ROOT / p).read_text(encoding="utf-8") for p in pages if (ROOT / p).exists()
    )
    used = {name for _, text in texts() for name in re.findall(r"\bCROSSREAD_[A-Z_]+\b", text)}
    assert sorted(used - set(re.findall(r"\bCROSSREAD_[A-Z_]+\b", documented))) == []


def test_no_file_holds_a_path_of_one_machine():
    """Images and manifests under spaces_config name paths inside their own containers."""
    machine = re.compile(r"(?<![\w.~$}])/(?:home|root|Users|work|tmp|mnt)/[\w.-]+")
    wrong = [
        f"{name}: {found[0]}"
        for name, text in texts()
        if not name.startswith("spaces_config/") and name != "tests/test_house.py"
        for found in machine.finditer(text)
    ]
    assert not wrong


def test_no_link_is_tracked():
    """A worktree's link to the shared .venv was merged twice; each time it replaced the directory."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert not [line for line in listed.stdout.splitlines() if line.startswith("120000")]
