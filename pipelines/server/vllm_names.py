"""Our metrics once more under vLLM's names and labels, for its dashboards and autoscaling recipes.

Only what means the same there and here; vLLM 0.33's `model_name` and `engine` are the labels, and of
ours those that it has too.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_NAMES = {  # of ours, without `crossread_`
    "num_requests_running": "num_requests_running",
    "num_requests_waiting": "num_requests_waiting",
    "kv_slots_used_ratio": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "request_success": "request_success",
    "encoder_cache_queries": "mm_cache_queries",
    "encoder_cache_hits": "mm_cache_hits",
    "iteration_tokens": "iteration_tokens_total",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "inter_token_latency_seconds": "inter_token_latency_seconds",
    "e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "queue_time_seconds": "request_queue_time_seconds",
    "prefill_time_seconds": "request_prefill_time_seconds",
    "decode_time_seconds": "request_decode_time_seconds",
}
_KEPT = ("model_name", "finished_reason", "le")


class _Renamed(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            name = _NAMES.get(metric.name.removeprefix("crossread_"))
            if name is not None:
                yield _renamed(metric, f"vllm:{name}")


def in_vllms_names(registry: CollectorRegistry) -> bytes:
    """What of a registry vLLM tells too, in Prometheus' text format."""
    return generate_latest(_Renamed(registry))


def _renamed(metric: Metric, name: str) -> Metric:
    """A metric under another name; series that differ in labels unknown to vLLM are summed."""
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in metric.samples:
        labels = {k: v for k, v in sample.labels.items() if k in _KEPT} | {"engine": "0"}
        key = (name + sample.name.removeprefix(metric.name), tuple(labels.items()))
        sums[key] = sums.get(key, 0.0) + sample.value
    renamed = Metric(name, metric.documentation, metric.type)
    for (full, pairs), value in sums.items():
        renamed.add_sample(full, dict(pairs), value)
    return renamed
