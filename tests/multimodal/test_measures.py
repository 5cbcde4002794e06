"""What a backend measures: distributions against numpy, and what each modality is counted for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.dicom import load_volume
from multimodal.backends import GenerateOptions, collect
from multimodal.local import LocalBackend
from multimodal.measures import Distribution, Measures
from multimodal.messages import Audio, Image, Study, user

SHORT = GenerateOptions(max_new_tokens=3)


def test_a_distribution_counts_as_numpy_does() -> None:
    values = [*np.random.default_rng(0).lognormal(0, 2, 500).tolist(), 1.0, 2.0]  # bounds included
    bounds = (0.5, 1.0, 2.0, 8.0)
    told = Distribution(bounds)
    for value in values:
        told = told.with_value(value)
    wanted = [int((np.array(values) <= bound).sum()) for bound in bounds]
    assert np.cumsum(told.counts).tolist() == [*wanted, len(values)]
    assert told.total == pytest.approx(sum(values))
    assert told.count == len(values)


def test_nothing_is_lost_between_threads_and_what_was_told_stays() -> None:
    measures = Measures()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(800):
            pool.submit(measures.count, "hits", "image")
            pool.submit(measures.observe, "sizes", 3)
    told = measures.told()
    measures.count("hits", "image")
    assert told.totals == {("hits", "image"): 800}
    assert (told.spreads["sizes", ""].count, told.spreads["sizes", ""].total) == (800, 2400)


def test_a_block_that_fails_is_not_timed() -> None:
    measures = Measures()

    def fails() -> None:
        with measures.timed("a_seconds", "x"):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    with measures.timed("a_seconds", "y"):
        pass
    assert set(measures.told().spreads) == {("a_seconds", "y")}


def test_each_modality_is_measured_where_its_work_happens(
    tiny_composite: Any, phantom_series: Path, speech: np.ndarray
) -> None:
    """A study, a picture and a recording; the picture twice, so that it is decoded but not encoded."""
    backend = LocalBackend(*tiny_composite)
    picture = Image(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))  # type: ignore[arg-type]
    asked = [
        user(Study(load_volume(phantom_series)), picture, Audio(speech[:16000], 16000), "list")
    ]
    usage = collect(backend.generate(asked, SHORT)).usage
    collect(backend.generate([user(picture, "list")], replace(SHORT, max_new_tokens=2)))
    load = backend.load()
    told = load.measured
    kinds = ("audio", "dicom", "image")
    decoded = {kind: told.spreads["media_decode_seconds", kind].count for kind in kinds}
    assert decoded == {"audio": 1, "dicom": 1, "image": 2}
    assert all(told.spreads["encoder_time_seconds", kind].total > 0 for kind in kinds)
    assert told.spreads["encoder_batch_size", ""].total == 3
    queries = {kind: told.totals["encoder_cache_queries", kind] for kind in kinds}
    assert queries == {"audio": 1, "dicom": 1, "image": 2}
    assert {k: n for k, n in told.totals.items() if k[0] == "encoder_cache_hits"} == {
        ("encoder_cache_hits", "image"): 1
    }
    assert usage.media_tokens is not None
    senses, encode = backend.processor.senses["vision"], backend.processor.tokenizer.encode
    assert usage.media_tokens["image"] == senses["tokens_per_view"]
    words = len(encode("<|user|><study></study>list<|end|><|assistant|>"))
    assert usage.prompt_tokens - sum(usage.media_tokens.values()) == words
    steps = told.spreads["iteration_tokens", ""]
    assert steps.count == told.spreads["step_seconds", ""].count
    assert steps.total >= load.counters["prompt_tokens"]
    assert (load.slots, load.chunk) == (
        backend.engine.limits().slots,
        backend.engine.limits().chunk,
    )
    backend.close()
