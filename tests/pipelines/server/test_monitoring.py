"""The dashboard and the alerts, run against a live Prometheus that scrapes our own server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from multimodal.backends import Finished, Load, Usage
from multimodal.measures import Measured, Measures
from pipelines.server.engine_metrics import MEDIA
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, Running, serving
from tests.served import free_port
from tests.waiting import wait_until

FOLDER = Path(__file__).parents[3] / "spaces_config" / "monitoring"
NAME = re.compile(r"crossread[\w:]+")
pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Prometheus; apt-get install prometheus"
)


class Told(Gated):
    """Tells what each answer cost, and an account of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.measures = Measures()

    def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
        for event in super().generate(messages, options):
            if isinstance(event, Finished):
                spent = {"prefill": 0.1, "decode": 0.3}
                event = Finished(event.text, "stop", Usage(50, 3, 1, spent, {"dicom": 40}))
                self.measure()
            yield event

    def measure(self) -> None:
        """What one medium of each kind and one step would add."""
        for kind in MEDIA:
            self.measures.observe("media_decode_seconds", 0.004, kind)
            self.measures.observe("encoder_time_seconds", 0.05, kind)
            self.measures.count("encoder_cache_queries", kind)
        self.measures.count("encoder_cache_hits", "dicom")
        self.measures.observe("encoder_batch_size", 4)
        self.measures.observe("iteration_tokens", 33)
        self.measures.observe("step_seconds", 0.02)

    def load(self) -> Load:
        ran = {
            (f"engine_mlp_neurons{run}", layer): share * self.begun
            for layer in "01"
            for run, share in (("", 64), ("_run", 48 if layer == "0" else 32))
        }
        measured = self.measures.told() | Measured(totals=ran)
        return Load(slots=8, kv_used=0.25, chunk=128, counters={"restarts": 2}, measured=measured)


def queries() -> list[str]:
    """Every query of every panel, as Grafana would send it for all models."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return [q.replace("$__rate_interval", "1m").replace("$model", ".*") for q in asked]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return list(group["rules"])


def traffic(server: Running, backend: Gated) -> None:
    """Answers, a refusal, a failure and somebody who hangs up."""
    http = server.http()

    def ask(text: str = "hello") -> int:
        return http.post("/v1/chat/completions", json=server.chat(text)).status_code

    with ThreadPoolExecutor(4) as pool:
        inside = [pool.submit(ask) for _ in range(2)]
        server.wait_until_inside(running=1, waiting=1)
        assert ask() == 429
        backend.open()
        assert [a.result() for a in inside] == [200, 200]
    assert [ask() for _ in range(5)] == [200] * 5
    assert ask("poison") == 500


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Asks a Prometheus that scrapes a server with traffic before and between two scrapes."""
    folder = tmp_path_factory.mktemp("prometheus")
    address = f"127.0.0.1:{free_port()}"
    backend = Told()
    with serving(backend, Settings(max_running=1, max_waiting=1)) as server:
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(FOLDER / "rules.yml")]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.port}"]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}",
            f"--web.listen-address={address}", "--log.level=error",
        ]  # fmt: skip
        with subprocess.Popen(command) as child, httpx.Client(trust_env=False) as http:

            def ask(query: str) -> list[Any]:
                url = f"http://{address}/api/v1/query"
                response = http.get(url, params={"query": query})
                if response.status_code == 503:  # it is still opening its store
                    return []
                answer = response.json()
                assert answer["status"] == "success", f"{query}: {answer}"
                return list(answer["data"]["result"])

            def up() -> bool:
                try:
                    return bool(ask("crossread_num_requests_running"))
                except httpx.HTTPError:
                    return False

            try:
                wait_until(up, "Prometheus has scraped")
                traffic(server, backend)
                wait_until(lambda: ask("rate(crossread_prompt_tokens_total[1m]) > 0"), "a rate")
                yield ask
            finally:
                child.terminate()


def test_every_panel_shows_data(prometheus: Any):
    """S10; a value that is no number would be an empty panel too."""
    asked = queries()
    assert len(asked) > 30
    for query in asked:
        wait_until(lambda q=query: has_data(prometheus(q)), f"there is data for {query}")


def has_data(found: list[Any]) -> bool:
    """Something that a panel can draw: what was divided by nothing is no number."""
    return any(result["value"][1] != "NaN" for result in found)


def test_every_rule_runs_on_metrics_that_exist(prometheus: Any):
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        prometheus(rule["expr"])
        for name in set(NAME.findall(rule["expr"])):
            wait_until(lambda n=name: prometheus(n), f"{name} has data")
    for name in recorded:
        assert prometheus(name)


def test_the_dashboard_asks_for_nothing_that_the_server_does_not_tell():
    with serving(Told().open()) as server, server.http() as http:
        text = http.get("/metrics").text
        http.post("/v1/chat/completions", json=server.chat())
        text += http.get("/metrics").text
    told = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
    asked = {name for query in queries() for name in NAME.findall(query)}
    assert asked <= told


@pytest.mark.parametrize("command", [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"],
                                     ["check", "config", "prometheus.yml"]])  # fmt: skip
def test_promtool_passes(command: list[str]):
    done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_fires():
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    fired = {t["alertname"] for case in tests for t in case["alert_rule_test"] if "exp_alerts" in t}
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}
