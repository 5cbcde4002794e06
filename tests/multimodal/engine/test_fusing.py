"""Fused layers and compiled kernels against plain torch and transformers' own layers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.engine.fusing import FusedLayer, fuse
from multimodal.engine.runner import PackedRunner
from multimodal.kernels import attention, decoding_cpu
from tests import makers


def _attention_case(rows: int, kv_heads: int, groups: int, dim: int, seed: int) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 50, (rows,), generator=chance).numpy()
    starts = np.concatenate([[3], 3 + (lengths + 2).cumsum()[:-1]])
    num_places = int(starts[-1] + lengths[-1] + 1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    return {
        "query": draw(rows, kv_heads * groups, dim),
        "key": draw(rows, kv_heads, dim),
        "value": draw(rows, kv_heads, dim),
        "pool": (draw(kv_heads, num_places, dim), draw(kv_heads, num_places, dim)),
        "runs": np.stack([starts, lengths], 1).astype(np.int64),
        "scaling": 0.3,
    }


@given(
    rows=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    dim=st.sampled_from([2, 16, 20]),
    seed=st.integers(0, 999),
    threads=st.sampled_from([1, 2]),
)
@settings(max_examples=40, deadline=None)
def test_decode_attention_equals_the_definition_and_writes_the_same_places(
    rows: int, kv_heads: int, groups: int, dim: int, seed: int, threads: int
) -> None:
    case = _attention_case(rows, kv_heads, groups, dim, seed)
    other = copy.deepcopy(case)
    before, share = torch.get_num_threads(), decoding_cpu._SHARE
    torch.set_num_threads(threads)
    decoding_cpu._SHARE = 1
    try:
        got = attention.decode_attention(**case)
        wanted = attention._by_torch(**other)
    finally:
        torch.set_num_threads(before)
        decoding_cpu._SHARE = share
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    for written, known in zip(case["pool"], other["pool"], strict=True):
        assert torch.equal(written, known)


def test_what_is_no_number_stays_in_its_row() -> None:
    case = _attention_case(4, 2, 2, 16, 0)
    case["query"][1] = torch.nan
    got = attention.decode_attention(**case)
    assert got[1].isnan().all()
    assert got[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_layers_of_the_kind_of_llama_are_fused_and_give_the_same_logits(kind: str) -> None:
    model = makers.backbone(kind)
    ids = torch.arange(11) * 7 % model.config.vocab_size  # the prompt of `probe`
    with torch.inference_mode():
        runner = PackedRunner(model, 64)
        fused = [isinstance(layer, FusedLayer) for layer in runner.model.model.layers]
        assert fused == [True] * len(model.model.layers)
        assert not any(isinstance(m, FusedLayer) for m in model.modules())
        wanted = model(input_ids=ids[None]).logits[0, -1]
        torch.testing.assert_close(runner.probe(runner.model), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["phi3", "olmoe"])
def test_other_layers_stay_as_they_are(kind: str) -> None:
    with torch.inference_mode():
        runner = PackedRunner(makers.backbone(kind), 64)
    assert not any(isinstance(m, FusedLayer) for m in runner.model.modules())


def test_a_layer_that_only_looks_alike_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = makers.backbone("llama")
    normal = type(model.model.layers[0].self_attn).forward

    def louder(self: Any, *arguments: Any, **more: Any) -> Any:
        attended, weights = normal(self, *arguments, **more)
        return 1.5 * attended, weights

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", louder)
    with torch.inference_mode():
        runner = PackedRunner(model, 64)
    assert not any(isinstance(m, FusedLayer) for m in runner.model.modules())


def test_layers_with_hooks_or_of_half_precision_are_not_fused() -> None:
    hooked, half = makers.backbone("llama"), makers.backbone("llama").bfloat16()
    for layer in hooked.model.layers:
        layer.mlp.register_forward_hook(lambda module, given, result: result)

    def never() -> torch.Tensor:
        raise AssertionError("nothing is to be tried")

    assert not fuse(hooked, never)
    assert not fuse(half, never)
