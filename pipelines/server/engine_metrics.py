"""The backend's own account of itself, as Prometheus reads it: what it measured where it happened.

A `Load` in, metrics under `crossread_` out. Series of a medium stand at zero before its first one,
for rates to start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from multimodal.backends import Load
from multimodal.measures import NUMBERS, SECONDS, Distribution, Measured

MEDIA = ("image", "video", "audio", "dicom")
_GAUGES: Mapping[str, tuple[str, str]] = {  # what of a Load
    "kv_slots_used_ratio": ("kv_used", "Memory for keys and values that answers under way hold."),
    "engine_requests_running": ("running", "In the engine."),
    "engine_requests_waiting": ("waiting", "Before the engine."),
    "engine_backlog_tokens": ("backlog_tokens", "Prompt tokens accepted and not yet run."),
    "engine_tokens_per_second": ("tokens_per_s", "Prompt and answer tokens, as measured."),
}
_ADAPTIVE: Mapping[str, tuple[str, str]] = {
    "adaptive_slots": ("slots", "Answers at the same time at most, as chosen just now."),
    "adaptive_chunk": ("chunk", "Prompt tokens of a step at most, as chosen just now."),
}
_TOTALS = {
    "restarts": "The model's process was started again.",
    "reused_tokens": "Prompt tokens whose keys and values were there already.",
}
_SPLIT: Mapping[str, tuple[str, str]] = {  # totals, by a label
    "encoder_cache_queries": ("modality", "Media asked for."),
    "encoder_cache_hits": ("modality", "Media found encoded."),
    "engine_mlp_neurons": ("layer", "Neurons of sparse layers, counted for each token."),
    "engine_mlp_neurons_run": ("layer", "Those that the gate let through."),
}
_SPREADS: Mapping[str, tuple[str, str]] = {  # by a label, or without one
    "media_decode_seconds": ("modality", "A medium from its file to what the encoder takes."),
    "encoder_time_seconds": ("modality", "Encoding a batch, or this modality's share of it."),
    "encoder_batch_size": ("", "Media encoded together."),
    "iteration_tokens": ("", "Tokens of one step of the engine."),
    "step_seconds": ("", "One step of the engine."),
}


class EngineMetrics(Collector):
    """What the backend told when it was last asked."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.load = Load()

    def collect(self) -> Iterator[Metric]:
        """Gauges of its load, totals and distributions."""
        load = self.load
        gauges = {**_GAUGES, **(_ADAPTIVE if load.chunk else {})}
        for name, (field, what) in gauges.items():
            gauge = GaugeMetricFamily(f"crossread_{name}", what, labels=["model_name"])
            gauge.add_metric([self._model], getattr(load, field))
            yield gauge
        for name, what in _TOTALS.items():
            total = CounterMetricFamily(f"crossread_engine_{name}", what, labels=["model_name"])
            total.add_metric([self._model], load.counters.get(name, 0))
            yield total
        yield from self._totals(load.measured)
        yield from self._ratios(load.measured)
        yield from self._spreads(load.measured)

    def _totals(self, measured: Measured) -> Iterator[Metric]:
        for name, (label, what) in _SPLIT.items():
            total = CounterMetricFamily(f"crossread_{name}", what, labels=["model_name", label])
            zeros = {(name, kind): 0.0 for kind in MEDIA if label == "modality"}
            for (told, value), count in {**zeros, **measured.totals}.items():
                if told == name:
                    total.add_metric([self._model, value], count)
            yield total

    def _ratios(self, measured: Measured) -> Iterator[Metric]:
        """Share of neurons that ran since the start; rates of the two totals tell it of any time."""
        ratio = GaugeMetricFamily(
            "crossread_active_neuron_ratio",
            "Share of a sparse layer's neurons that ran, since the start.",
            labels=["model_name", "layer"],
        )
        for (name, layer), neurons in measured.totals.items():
            if name == "engine_mlp_neurons" and neurons:
                ran = measured.totals["engine_mlp_neurons_run", layer]
                ratio.add_metric([self._model, layer], ran / neurons)
        yield ratio

    def _spreads(self, measured: Measured) -> Iterator[Metric]:
        for name, (label, what) in _SPREADS.items():
            labels = ["model_name", label] if label else ["model_name"]
            family = HistogramMetricFamily(f"crossread_{name}", what, labels=labels)
            bounds = SECONDS if name.endswith("_seconds") else NUMBERS
            for value in MEDIA if label else ("",):
                told = measured.spreads.get((name, value), Distribution(bounds))
                family.add_metric([self._model, value][: len(labels)], *_cumulative(told))
            yield family


def _cumulative(told: Distribution) -> tuple[list[tuple[str, float]], float]:
    """Buckets as Prometheus has them, each with all that is smaller, and the sum of all values."""
    counts = told.counts or (0,) * (len(told.bounds) + 1)
    ends = (*map(floatToGoString, told.bounds), "+Inf")
    return list(zip(ends, map(float, accumulate(counts)), strict=True)), told.total
