"""Fused layers and compiled kernels against plain torch and transformers' own layers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.backends import GenerateOptions
from multimodal.engine.fusing import FusedLayer, Straight, fuse
from multimodal.engine.runner import PackedRunner
from multimodal.engine.sequence import Segment, Sequence
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


@pytest.mark.parametrize("threads", [1, 2])
def test_swish_product_equals_torchs_far_out_too(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_cpu, "_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    line = torch.linspace(-120, 120, 4001)
    gate = torch.cat([line, torch.tensor([0.0, -1e30, 1e30, torch.nan])]).expand(3, -1).contiguous()
    up = torch.randn(gate.shape, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.silu(gate.double()) * up
    got = decoding_cpu.swish_product(gate.clone(), up)
    torch.testing.assert_close(got, wanted.float(), rtol=1e-6, atol=1e-7, equal_nan=True)


def test_softmax_of_scores_far_apart_equals_torchs() -> None:
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 30
    got = scores.clone()
    decoding_cpu._softmax(got.numpy())
    torch.testing.assert_close(got, scores.softmax(-1), rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_layers_of_the_kind_of_llama_are_fused_and_give_the_same_logits(kind: str) -> None:
    model = makers.backbone(kind)
    ids = torch.arange(11) * 7 % model.config.vocab_size  # the prompt of `probe`
    with torch.inference_mode():
        runner = PackedRunner(model, 64)
        fused = [isinstance(layer, FusedLayer) for layer in runner.model.model.layers]
        assert fused == [True] * len(model.model.layers)
        assert isinstance(runner.model.forward, Straight)
        assert not any(isinstance(m, FusedLayer) for m in model.modules())
        wanted = model(input_ids=ids[None]).logits[0, -1]
        torch.testing.assert_close(runner.probe(runner.model), wanted, atol=1e-5, rtol=1e-4)


def test_what_a_model_does_to_its_logits_is_kept_by_running_it_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = makers.backbone("llama")
    normal = type(model).forward

    def halved(self: Any, **given: Any) -> Any:
        output = normal(self, **given)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(type(model), "forward", halved)
    ids = torch.arange(11) * 7 % model.config.vocab_size  # the prompt of `probe`
    with torch.inference_mode():
        runner = PackedRunner(model, 64)
        wanted = model(input_ids=ids[None]).logits[0, -1]
        assert isinstance(runner.model.model.layers[0], FusedLayer)
        assert not isinstance(runner.model.forward, Straight)
        torch.testing.assert_close(runner.probe(runner.model), wanted, atol=1e-5, rtol=1e-4)


def test_the_last_layer_runs_only_rows_that_are_predicted_from() -> None:
    model = makers.backbone("llama")
    with torch.inference_mode():
        runner = PackedRunner(model, 64)
        embeds = model.get_input_embeddings()(torch.arange(9))
        sequence = Sequence(GenerateOptions(max_new_tokens=2), embeds, np.arange(9), bool)
        runner.open(sequence)
        rows: list[int] = []
        layers = runner.model.model.layers
        for layer in (layers[0], layers[-1]):
            layer.out.register_forward_hook(lambda _, given, out: rows.append(len(out)))
        got = runner.forward([Segment(sequence, 9, 1)])[0][0]
        wanted = model(input_ids=torch.arange(9)[None]).logits[0, -1]
    assert rows == [9, 1]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


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
