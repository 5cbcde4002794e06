"""What the documents tell people to type exists and works.

A ```python block that stands right under a line `<!-- runnable -->` is run from the repository's
root; commands in ```console blocks are checked against the command line's help and the Makefile.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from multimodal.backends import DEMO
from tests.pipelines.cli_page import command_names, group_commands, help_of

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "multimodal/demo/*.md", "benchmarks/*.md")
    for page in sorted(ROOT.glob(pattern))
]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.M | re.S)
RUNNABLE = re.compile(r"^<!-- runnable -->\n```python\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def typed(text: str) -> Iterator[str]:
    """Commands after a `$` in console blocks, continued lines joined; in bash blocks every line."""
    for kind, block in FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if kind == "console":
            yield from (line[2:] for line in lines if line.startswith("$ "))
        elif kind in ("bash", "sh", "shell"):
            yield from (line for line in lines if line and not line.startswith("#"))


@cache
def options_of(*command: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_of(*command)))


def wrong_in(line: str) -> Iterator[str]:
    """What of a typed command does not exist."""
    words = shlex.split(line.partition(" | ")[0], comments=True)
    names = [Path(word).name for word in words]
    if "crossread" in names[:1]:
        given = words[1:]
        spoken = [w for w in given if not w.startswith("-")]
        known = [*group_commands(), *((name,) for name in command_names())]
        command = next((c for c in known if tuple(spoken[: len(c)]) == c), ())
        if spoken and not command:
            yield f"crossread {spoken[0]}"
            return
        options = options_of(*command) | options_of()
        yield from (w for w in given if w.startswith("--") and w.partition("=")[0] not in options)
    elif names[:1] == ["make"]:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
        yield from (f"make {w}" for w in words[1:] if "=" not in w and w not in targets)
    else:
        yield from (w for w in words if w.endswith(".py") and not (ROOT / w).exists())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_that_are_shown_exist(page: Path):
    commands = list(typed(page.read_text(encoding="utf-8")))
    assert not {c: found for c in commands if (found := list(wrong_in(c)))}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path):
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_commands_that_do_not_exist_would_be_noticed():
    text = (
        "```console\n$ make nonsense\n$ crossread reed x\n$ crossread read x --report r.txt \\\n"
        "  --rapport r\n$ crossread pacs echo --nonsense\n$ python examples/none.py\n$ crossread -v info x | head\nshown\n```\n"
    )
    assert [w for c in typed(text) for w in wrong_in(c)] == [
        "make nonsense", "crossread reed", "--rapport", "--nonsense", "examples/none.py",
    ]  # fmt: skip


RUNNER = """
import re, sys
text = sys.stdin.read()
for match in re.finditer(sys.argv[1], text, re.M | re.S):
    line = text[: match.start(1)].count("\\n")
    exec(compile("\\n" * line + match[1], "README.md", "exec"), {"__name__": "readme"})
"""


def run_blocks(text: str) -> subprocess.CompletedProcess[str]:
    """Every runnable block of a page, each with names of its own, in one process."""
    return subprocess.run(
        [sys.executable, "-c", RUNNER, RUNNABLE.pattern],
        input=text, capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_a_block_that_fails_would_be_noticed_with_its_line():
    page = "# x\n\n```python\n1 / 0\n```\n\n<!-- runnable -->\n```python\nprint('ran')\n{}\n```\n"
    assert run_blocks(page.format("pass")).stdout == "ran\n"
    failed = run_blocks(page.format("import pipelines; pipelines.nonsense"))
    assert failed.returncode == 1
    assert 'File "README.md", line 10' in failed.stderr


@pytest.mark.slow
def test_the_readme_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if not RUNNABLE.search(text):
        pytest.skip("README.md has no runnable block yet")
    if not (DEMO / "model.safetensors").is_file():
        pytest.skip("needs the demo checkpoint (make train-demo)")
    done = run_blocks(text)
    assert done.returncode == 0, done.stderr
