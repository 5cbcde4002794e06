"""Readings over the network: the same `Reading` as the pipeline gives, at once or as a job."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.ct_report import CtReportPipeline
from pipelines.server.keys import Keys
from pipelines.server.settings import Settings
from tests.makers import FakeBackend
from tests.pipelines.server.running import Running, serving
from tests.pipelines.server.test_keys import line
from tests.waiting import wait_until

REPORT = "There is a 14 mm nodule in the left lung."


class Reader(FakeBackend):
    """Finds a right nodule; waits at `gate` before its first answer."""

    def __init__(self, *, is_open: bool = True) -> None:
        super().__init__(
            answers={"How large": "14 mm", "nodule in the left lung": "direction: no"},
            chances={"a right nodule": 0.93, "nodule in the left lung": 0.02},
        )
        self.gate = threading.Event()
        self.ended = 0
        if is_open:
            self.gate.set()

    def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
        self.gate.wait()
        try:
            yield from super().generate(messages, options)
        finally:
            self.ended += 1


@pytest.fixture(scope="module")
def archive(phantom_series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.make_archive(str(tmp_path_factory.mktemp("z") / "s"), "zip", phantom_series))


def upload(server: Running, file: Path, key: str = "none") -> str:
    return str(server.client(key).files.create(file=file, purpose="user_data").id)


def plain(reading: dict[str, Any]) -> dict[str, Any]:
    """A reading without what differs from run to run."""
    return {k: v for k, v in reading.items() if k != "timings_s"}


def test_a_reading_over_the_network_is_the_pipelines_own(archive: Path):
    import json

    expected = json.loads(CtReportPipeline(Reader())(archive, REPORT, question="Why?").to_json())
    assert expected["findings"]
    with serving(Reader()) as server, server.http() as http:
        body = {"study": upload(server, archive), "report": REPORT, "question": "Why?"}
        answer = http.post("/v1/readings", json=body)
        inline = "data:application/zip;base64," + base64.b64encode(archive.read_bytes()).decode()
        again = http.post("/v1/readings", json={**body, "study": inline})
        assert server.metric("e2e_request_latency_seconds_count", endpoint="readings") == 2
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "completed"
    assert plain(answer.json()["reading"]) == plain(expected)
    assert plain(again.json()["reading"]) == plain(expected)


def test_a_series_may_come_as_several_files(phantom_series: Path):
    with serving(Reader()) as server, server.http() as http:
        names = [upload(server, file) for file in sorted(phantom_series.iterdir())]
        reading = http.post("/v1/readings", json={"study": names}).json()["reading"]
    assert reading["study"]["num_slices"] == len(names)


def test_a_job_tells_its_progress_its_result_and_its_page(archive: Path):
    backend = Reader(is_open=False)
    with serving(backend) as server, server.http() as http:
        body = {"study": upload(server, archive), "report": REPORT, "background": True}
        job = http.post("/v1/readings", json=body)
        assert (job.status_code, job.json()["status"]) == (202, "queued")
        where = f"/v1/readings/{job.json()['id']}"
        assert http.get(where).json()["reading"] is None
        early = http.get(f"{where}/html")
        assert (early.status_code, early.json()["error"]["code"]) == (409, "not_completed")
        assert http.delete(where).status_code == 409
        backend.gate.set()
        done = wait_until(
            lambda: (got := http.get(where).json())["status"] == "completed" and got, "it is done"
        )
        progress = done["progress"]
        assert (progress["findings"], progress["discrepancies"]) == (1, 1)
        assert progress["stage"]
        assert [f["name"] for f in done["reading"]["findings"]] == ["nodule"]
        assert "nodule" in http.get(f"{where}/html").text
        assert http.delete(where).json()["deleted"]
        assert http.get(f"{where}/html").status_code == 404
        assert http.get(where).status_code == 404


@pytest.mark.parametrize("running", [True, False])
def test_a_cancelled_job_gives_its_place_back(archive: Path, running: bool):
    backend = Reader(is_open=False)
    with serving(backend, Settings(max_running=1, max_waiting=4)) as server, server.http() as http:
        body = {"study": upload(server, archive), "background": True}
        jobs = [http.post("/v1/readings", json=body).json()["id"] for _ in range(2)]
        wait_until(lambda: server.metric("num_requests_running") == 1, "the first runs")
        chosen = jobs[0] if running else jobs[1]
        assert http.post(f"/v1/readings/{chosen}/cancel").json()["status"] == "cancelled"
        backend.gate.set()
        other = jobs[1] if running else jobs[0]
        wait_until(
            lambda: http.get(f"/v1/readings/{other}").json()["status"] == "completed", "it is done"
        )
        assert http.post(f"/v1/readings/{other}/cancel").json()["status"] == "completed"
        wait_until(lambda: server.metric("num_requests_running") == 0, "all places are free")
        assert server.metric("num_requests_waiting") == 0
        where = "running" if running else "waiting"
        assert server.metric("cancelled_total", where=where) == 1


def test_jobs_of_one_tenant_are_unknown_to_another(archive: Path, tmp_path: Path):
    (tmp_path / "keys").write_text(line("north", "n") + line("south", "s"))
    with serving(Reader(), keys=Keys.read(tmp_path / "keys")) as server:
        north, south = server.http("n"), server.http("s")
        body = {"study": upload(server, archive, "n"), "background": True}
        name = north.post("/v1/readings", json=body).json()["id"]
        assert south.post("/v1/readings", json=body).status_code == 404  # another's file
        for act in (south.get, south.delete):
            assert act(f"/v1/readings/{name}").status_code == 404
        assert south.post(f"/v1/readings/{name}/cancel").status_code == 404
        assert north.get(f"/v1/readings/{name}").status_code == 200


def test_what_cannot_be_read_is_told_with_its_cause(archive: Path, tmp_path: Path):
    from encoders.errors import BurnedInText

    class Careful(Reader):
        def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
            raise BurnedInText("the pictures may show patient data")

    (tmp_path / "a.txt").write_text("no study")
    with serving(Careful()) as server, server.http() as http:
        study = upload(server, archive)
        said = http.post("/v1/readings", json={"study": study})
        assert (said.status_code, said.json()["error"]["code"]) == (400, "burned_in_text")
        text = http.post("/v1/readings", json={"study": upload(server, tmp_path / "a.txt")})
        assert (text.status_code, text.json()["error"]["code"]) == (400, "unsupported_file")
        unknown = http.post("/v1/readings", json={"study": study, "depth": 3})
        assert unknown.json()["error"]["param"] == "depth"
        job = http.post("/v1/readings", json={"study": study, "background": True}).json()
        failed = wait_until(
            lambda: (got := http.get(f"/v1/readings/{job['id']}").json())["error"] and got, "failed"
        )
        assert (failed["status"], failed["error"]["code"]) == ("failed", "burned_in_text")


def test_any_replica_that_shares_the_folder_tells_of_a_job_and_cancels_it(
    archive: Path, tmp_path: Path
):
    shared = Settings(folder=tmp_path / "shared")
    backend = Reader(is_open=False)
    with serving(backend, shared) as reads, serving(Reader(), shared) as other:
        here, there = reads.http(), other.http()
        body = {"study": upload(other, archive), "report": REPORT, "background": True}
        first = f"/v1/readings/{here.post('/v1/readings', json=body).json()['id']}"
        second = f"/v1/readings/{here.post('/v1/readings', json=body).json()['id']}"
        assert there.get(first).json()["status"] in ("queued", "in_progress")
        there.post(f"{second}/cancel")
        wait_until(lambda: there.get(second).json()["status"] == "cancelled", "it is cancelled")
        backend.gate.set()
        wait_until(lambda: there.get(first).json()["status"] == "completed", "it is done")
        assert "nodule" in there.get(f"{first}/html").text


def test_a_job_whose_server_is_gone_is_told_as_failed(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shared = Settings(folder=tmp_path / "shared")
    backend = Reader(is_open=False)
    with serving(backend, shared) as reads, serving(Reader(), shared) as other:
        body = {"study": upload(reads, archive), "background": True}
        name = reads.http().post("/v1/readings", json=body).json()["id"]
        monkeypatch.setattr("pipelines.server.readings._GONE_S", -1.0)  # no beat is late enough
        told = other.http().get(f"/v1/readings/{name}").json()
        assert (told["status"], told["error"]["code"]) == ("failed", "server_gone")
        backend.gate.set()
