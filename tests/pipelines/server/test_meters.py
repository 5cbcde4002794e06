"""What /metrics tells: every name of the list, what it counts, and vLLM's names beside ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from encoders.errors import InvalidOption
from multimodal.backends import Load, Usage
from multimodal.measures import Distribution, Measured, Measures
from pipelines.server.meters import Meters
from pipelines.server.settings import Settings
from tests.pipelines.server.running import Gated, serving

MODEL = {"model_name": "m"}
# serving.md §5, "Metrics", name by name
WANTED = """
num_requests_running num_requests_waiting waiting_prompt_tokens kv_slots_used_ratio
time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds
queue_time_seconds prefill_time_seconds decode_time_seconds media_decode_seconds{modality}
encoder_time_seconds{modality} encoder_batch_size encoder_cache_hits_total{modality}
encoder_cache_queries_total{modality} prompt_tokens_total{modality} generation_tokens_total
iteration_tokens step_seconds admission_rejections_total{reason}
request_success_total{finished_reason} request_errors_total{stage} cancelled_total{where}
engine_restarts_total active_neuron_ratio{layer} adaptive_slots adaptive_chunk model_info build_info
"""
TABLE = Path(__file__).parents[3] / "docs" / "serving.md"


def meters(compat: str = "") -> Meters:
    return Meters("m", {"version": "1"}, compat)


def samples(told: Meters | str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = told if isinstance(told, str) else told.text().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(told: Meters | str, name: str, **labels: str) -> float:
    return samples(told)[name, tuple(sorted((MODEL | labels).items()))]


def busy() -> Load:
    measures = Measures()
    measures.observe("media_decode_seconds", 0.03, "dicom")
    measures.observe("media_decode_seconds", 0.3, "dicom")
    measures.count("encoder_cache_hits", "dicom")
    ran = {("engine_mlp_neurons", "1"): 400.0, ("engine_mlp_neurons_run", "1"): 100.0}
    return Load(
        slots=16, chunk=256, counters={"restarts": 3}, measured=measures.told() | Measured(ran)
    )


class Told(Gated):
    def load(self) -> Load:
        return busy()


def test_every_name_of_the_list_is_told_with_its_label():
    with serving(Told()) as server:
        series = samples(httpx.get(f"{server.root}/metrics", trust_env=False).text)
    told = {
        (name.removeprefix("crossread_").removesuffix("_count"), label)
        for name, pairs in series
        for label in ("", *dict(pairs))
    }
    wanted = [name.rstrip("}").partition("{") for name in WANTED.split()]
    assert [full for full, _, label in wanted if (full, label) not in told] == []
    # the table that people read names all of them and no other
    table = re.findall(r"^\| `(\w+)(?:\{(\w+)\})?` \|", TABLE.read_text(), re.MULTILINE)
    ends = ("_bucket", "_sum")
    assert {name for name, _ in table} == {name for name, _ in told if not name.endswith(ends)}
    assert set(table) <= told


def test_what_the_engine_measured_is_told_as_it_was_measured():
    told = meters()
    told.take(busy())
    name = "crossread_media_decode_seconds"
    assert value(told, f"{name}_count", modality="dicom") == 2
    assert value(told, f"{name}_sum", modality="dicom") == pytest.approx(0.33)
    bounds = ("0.025", "0.05", "0.25", "0.5", "+Inf")
    at_most = {le: value(told, f"{name}_bucket", modality="dicom", le=le) for le in bounds}
    assert at_most == {"0.025": 0, "0.05": 1, "0.25": 1, "0.5": 2, "+Inf": 2}
    assert value(told, f"{name}_count", modality="audio") == 0  # for rates to start from
    assert value(told, "crossread_encoder_cache_hits_total", modality="dicom") == 1
    assert value(told, "crossread_active_neuron_ratio", layer="1") == 0.25
    assert value(told, "crossread_adaptive_slots") == 16
    assert value(told, "crossread_adaptive_chunk") == 256
    assert value(told, "crossread_engine_restarts_total") == 3


def test_a_backend_that_chooses_nothing_tells_of_no_choice():
    told = meters()
    told.take(
        Load(slots=1, measured=Measured(spreads={("step_seconds", ""): Distribution((1.0,))}))
    )
    assert not any("adaptive" in name for name, _ in samples(told))


def test_prompt_tokens_are_told_by_modality_or_as_untold():
    told = meters()
    told.answered(Usage(100, 5, 1, {}, {"dicom": 60, "image": 10}))
    told.answered(Usage(7, 5, 0))
    told.answered(Usage(1000, 5, 1, {}, None))  # of a server that does not tell them apart
    counted = {
        kind: value(told, "crossread_prompt_tokens_total", modality=kind)
        for kind in ("text", "dicom", "image", "audio", "untold")
    }
    assert counted == {"text": 37, "dicom": 60, "image": 10, "audio": 0, "untold": 1000}


def fed(compat: str) -> Meters:
    told = meters(compat)
    told.answered(Usage(100, 5, 1, {"prefill": 0.3, "decode": 0.6}, {"dicom": 60}))
    told.finished("chat", 2.0, "stop")
    told.finished("completions", 3.0, "stop")
    told.first_token(0.5)
    told.take(busy())
    return told


def test_vllms_names_tell_what_ours_tell():
    told = fed("vllm")
    theirs: Any = {"engine": "0"}
    assert value(told, "vllm:prompt_tokens_total", **theirs) == 100  # of all modalities
    assert value(told, "vllm:generation_tokens_total", **theirs) == 5
    assert value(told, "vllm:e2e_request_latency_seconds_count", **theirs) == 2  # of all endpoints
    assert value(told, "vllm:e2e_request_latency_seconds_sum", **theirs) == 5.0
    assert value(told, "vllm:e2e_request_latency_seconds_bucket", le="2.5", **theirs) == 1
    assert value(told, "vllm:request_success_total", finished_reason="stop", **theirs) == 2
    assert value(told, "vllm:request_prefill_time_seconds_sum", **theirs) == 0.3
    assert value(told, "vllm:time_to_first_token_seconds_count", **theirs) == 1
    assert value(told, "vllm:iteration_tokens_total_count", **theirs) == 0
    assert value(told, "vllm:mm_cache_hits_total", **theirs) == 1


def test_vllms_names_come_only_where_they_were_asked_for():
    def names(told: Meters) -> set[str]:
        return {name for name, _ in samples(told)}

    assert not any(name.startswith("vllm:") for name in names(fed("")))
    assert names(fed("")) < names(fed("vllm"))


def test_the_server_tells_how_many_wait_under_vllms_name():
    """What KEDA's and KServe's recipes scale on."""
    with serving(Gated().open(), Settings(metrics_compat="vllm")) as server:
        text = httpx.get(f"{server.root}/metrics", trust_env=False).text
    assert (
        samples(text)["vllm:num_requests_waiting", (("engine", "0"), ("model_name", "fake"))] == 0
    )
    with pytest.raises(InvalidOption, match="metrics_compat is 'tgi'"):
        Settings(metrics_compat="tgi")
