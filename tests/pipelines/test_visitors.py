"""Whose file is it: ownership, tabs, age, and paths that try to lead elsewhere."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import DataObject, data, sampled_from

from pipelines.ui import guarding
from pipelines.ui.settings import page_settings
from pipelines.ui.visitors import Visitors
from tests.served import ROOT
from tests.waiting import PATIENCE_S


@pytest.fixture
def visitors(tmp_path: Path) -> Visitors:
    (tmp_path / "cache").mkdir()
    return Visitors(tmp_path / "cache")


def sent_by(visitors: Visitors, visitor: str, name: str, size: int = 3) -> Path:
    file = visitors.folder / name / "scan.dcm"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    visitors.grant(visitor, str(file), sent=True)
    return file


def test_a_file_is_its_senders_and_theirs_to_whom_it_was_named(visitors: Visitors):
    file = sent_by(visitors, "anna", "a")
    assert visitors.may_have("anna", str(file))
    assert not visitors.may_have("ben", str(file))
    assert not visitors.may_have("", str(file))
    visitors.grant("ben", str(file))
    assert visitors.may_have("ben", str(file))
    assert visitors.sent("ben") == (0, 0)


def test_every_way_to_write_a_path_means_the_same_file(visitors: Visitors):
    file = sent_by(visitors, "anna", "a")
    (visitors.folder.parent / "link").symlink_to(file)
    for way in (
        f"{visitors.folder}/./a/../a/scan.dcm",
        f"/{file}",
        os.path.relpath(file),
        str(visitors.folder.parent / "link"),
    ):
        assert visitors.inside(way) == file
        assert not visitors.may_have("ben", way)


@pytest.mark.parametrize("path", ["/etc/passwd", "cache/../../x", "\0", "x" * 10_000])
def test_nothing_outside_the_folder_is_ever_granted(visitors: Visitors, path: str):
    visitors.grant("anna", path, sent=True)
    assert not visitors.may_have("anna", path)
    assert visitors.sent("anna") == (0, 0)


def test_what_was_sent_is_counted_until_it_is_gone(visitors: Visitors):
    sent_by(visitors, "anna", "a", 10)
    sent_by(visitors, "anna", "b", 32)
    assert visitors.sent("anna") == (2, 42)
    visitors.sweep(max_age_s=-1)
    assert visitors.sent("anna") == (0, 0)


def test_files_go_with_the_last_tab_and_not_with_another(visitors: Visitors):
    visitors.arrive("anna")
    visitors.arrive("anna")
    file = sent_by(visitors, "anna", "a")
    visitors.let_go("anna", visitors.leave("anna"))
    assert file.exists()
    visitors.let_go("anna", visitors.leave("anna"))
    assert not file.parent.exists()
    assert not visitors.may_have("anna", str(file))


def test_a_reload_of_the_only_tab_keeps_the_files(visitors: Visitors):
    """It leaves before it arrives, and what is left for good is told from that by time alone."""
    visitors.arrive("anna")
    file = sent_by(visitors, "anna", "a")
    first = visitors.leave("anna")
    visitors.arrive("anna")
    second = visitors.leave("anna")
    visitors.let_go("anna", first)
    assert visitors.may_have("anna", str(file))
    visitors.let_go("anna", second)
    assert not file.exists()


class Comings(RuleBasedStateMachine):
    """Tabs of two visitors in any order, time passing between; what must hold is said by a diary."""

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.visitors = Visitors(Path(self.folder.name))
        self.tabs = {"anna": 0, "ben": 0}
        self.left_for_good: dict[str, int] = {}  # number of the departure that left none open
        self.departures: list[tuple[str, int, object]] = []
        self.files: dict[str, list[Path]] = {"anna": [], "ben": []}
        self.num_sent = 0

    @rule(who=sampled_from(["anna", "ben"]))
    def a_tab_arrives_and_sends(self, who: str) -> None:
        self.visitors.arrive(who)
        self.tabs[who] += 1
        self.left_for_good.pop(who, None)
        self.num_sent += 1
        self.files[who].append(sent_by(self.visitors, who, str(self.num_sent)))

    @precondition(lambda self: any(self.tabs.values()))
    @rule(data=data())
    def a_tab_leaves(self, data: DataObject) -> None:
        who = data.draw(sampled_from([one for one, open_ in self.tabs.items() if open_]))
        number = len(self.departures)
        self.departures.append((who, number, self.visitors.leave(who)))
        self.tabs[who] -= 1
        if not self.tabs[who]:
            self.left_for_good[who] = number

    @precondition(lambda self: self.departures)
    @rule(data=data())
    def a_grace_is_over(self, data: DataObject) -> None:
        who, number, departure = data.draw(sampled_from(self.departures))
        self.visitors.let_go(who, departure)
        if self.left_for_good.get(who) == number:
            del self.left_for_good[who]
            assert not any(file.exists() for file in self.files[who])
            self.files[who] = []

    @invariant()
    def nobody_else_loses_anything(self) -> None:
        for who, files in self.files.items():
            assert all(self.visitors.may_have(who, str(file)) for file in files)
            assert self.visitors.sent(who)[0] == len(files)

    def teardown(self) -> None:
        self.folder.cleanup()


TestComings = Comings.TestCase
TestComings.settings = settings(max_examples=30, stateful_step_count=20)


def test_a_tab_is_open_while_its_heartbeat_is(visitors: Visitors, monkeypatch: pytest.MonkeyPatch):
    """Nothing that may come late or never, as the page's own events, counts or uncounts it."""
    monkeypatch.setattr(guarding, "GRACE_S", 0.0)
    file = sent_by(visitors, "anna", "a")
    headers = [(b"cookie", f"{guarding.COOKIE}=anna".encode())]
    scope = {"type": "http", "method": "GET", "headers": headers}

    async def check() -> None:
        closed = [asyncio.Event(), asyncio.Event()]
        tabs = iter(closed)

        async def page(scope: Any, receive: Any, send: Any) -> None:
            await next(tabs).wait()

        async def nothing(*message: Any) -> Any:
            raise AssertionError("neither asked nor answered")

        guard = guarding.Guard(page, visitors, page_settings())
        opened = [
            asyncio.create_task(
                guard({**scope, "path": f"/gradio_api/heartbeat/{k}"}, nothing, nothing)
            )
            for k in range(2)
        ]
        for tab, ends in zip(opened, closed, strict=True):
            assert file.exists()
            ends.set()
            await tab
        while file.exists():
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(check(), PATIENCE_S))


def test_a_file_that_goes_while_it_is_asked_for_is_refused(visitors: Visitors):
    """Not a broken connection: the last tab closed between the question and the answer."""
    from starlette.responses import FileResponse

    file = sent_by(visitors, "anna", "a")

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("gone"):
            raise RuntimeError("of something else")
        visitors.sweep(max_age_s=-1)
        await FileResponse(file)(scope, receive, send)

    told = []

    async def send(message: Any) -> None:
        told.append(message)

    async def nothing() -> Any:
        raise AssertionError("nothing is asked")

    guard = guarding.Guard(page, visitors, page_settings())
    headers = [(b"cookie", f"{guarding.COOKIE}=anna".encode())]
    scope = {"type": "http", "method": "GET", "headers": headers}
    asyncio.run(guard({**scope, "path": f"/gradio_api/file={file}"}, nothing, send))
    assert told[0]["status"] == 403
    with pytest.raises(RuntimeError, match="something else"):
        asyncio.run(guard({**scope, "path": "/gone"}, nothing, send))


def test_what_two_have_sent_goes_with_neither_alone(visitors: Visitors):
    """Gradio keeps equal files once: the same study sent by two is one file."""
    for visitor in ("anna", "ben"):
        visitors.arrive(visitor)
        file = sent_by(visitors, visitor, "same")
    visitors.let_go("anna", visitors.leave("anna"))
    assert file.exists()
    assert visitors.may_have("ben", str(file))
    assert not visitors.may_have("anna", str(file))


def test_programs_files_stay_until_they_are_old(visitors: Visitors):
    visitors.arrive("")
    file = sent_by(visitors, "", "a")
    visitors.let_go("", visitors.leave(""))
    assert file.exists()
    visitors.sweep(max_age_s=60)
    assert file.exists()
    visitors.sweep(max_age_s=-1)
    assert not file.parent.exists()
    assert visitors.folder.is_dir()


def test_a_process_has_a_cache_of_its_own_that_goes_with_it():
    code = (
        "from pathlib import Path\nfrom pipelines.ui.visitors import all_visitors\n"
        "from gradio.utils import get_upload_folder\n"
        "folder = all_visitors().folder\nassert Path(get_upload_folder()).resolve() == folder\n"
        "assert folder.stat().st_mode & 0o077 == 0\n"
        "(folder / 'a').write_text('b')\nprint(folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not Path(done.stdout.strip()).exists()
