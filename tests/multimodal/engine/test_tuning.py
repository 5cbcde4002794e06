"""A tuned model gives what it gave before, and the caller's own model is left as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from multimodal.backends import GenerateOptions, collect
from multimodal.composition import compose
from multimodal.engine import packing, tuning
from multimodal.engine.packing import PackedLinear, can_pack, pack
from multimodal.engine.tuning import Tuner
from multimodal.local import LocalBackend
from multimodal.messages import user
from multimodal.sparse import SparsityConfig, counting_flops, sparse_mlps, sparsify
from tests import makers

NEEDS_ONEDNN = pytest.mark.skipif(
    not can_pack(nn.Linear(32, 64)), reason="needs a CPU build of torch with oneDNN"
)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack whatever the clock says."""
    monkeypatch.setattr(packing, "MIN_GAIN", 0.0)
    monkeypatch.setattr(packing, "_LEAST_ALONE", 0.0)


@NEEDS_ONEDNN
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("library", packing._LIBRARIES)
def test_packed_layers_multiply_as_before(
    bias: bool, dtype: torch.dtype, library: type[PackedLinear]
) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(96, 160, bias=bias).to(dtype)
    if not can_pack(dense, library):
        assert dtype == torch.bfloat16 or not torch.backends.mkl.is_available()
        pytest.skip("this library does not multiply in this type here")
    packed = library(dense)
    for rows in (1, 3, 32, 129, 640):
        x = torch.randn(rows, 1, 96).to(dtype).transpose(0, 1)
        with torch.inference_mode():
            assert torch.allclose(packed(x), dense(x), rtol=1e-2 if bias else 2e-2, atol=2e-2)
    assert packed.weight is dense.weight


@NEEDS_ONEDNN
def test_a_packed_model_gives_the_logits_it_gave(always: None) -> None:
    model = makers.backbone("qwen3")
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits
        pack(model)
        assert any(isinstance(m, PackedLinear) for m in model.modules())
        assert torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-4)


@NEEDS_ONEDNN
def test_each_shape_is_packed_where_it_pays_for_many_rows_and_costs_one_row_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small layers lose more by the call than they gain: those of the demo model at one row."""
    ratios = {
        (64, 1): 0.5,
        (64, 32): 1.2,
        (96, 1): 0.9,
        (96, 32): 1.3,
        (128, 1): 1.0,
        (128, 32): 1.01,
    }
    monkeypatch.setattr(
        packing, "_ratio", lambda dense, packed, rows: ratios[dense.out_features, rows]
    )
    monkeypatch.setattr(packing, "_LIBRARIES", (packing.OneDnnLinear,))
    model = nn.Sequential(*(nn.Linear(32, n) for n in (64, 96, 128, 96)))
    assert pack(model) == 1.01  # of the largest
    assert [isinstance(layer, PackedLinear) for layer in model] == [False, True, False, True]


@NEEDS_ONEDNN
def test_each_shape_is_packed_by_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = {(64, packing.OneDnnLinear): 1.3, (64, packing.MklLinear): 1.2,
              (96, packing.OneDnnLinear): 0.6, (96, packing.MklLinear): 1.4}  # fmt: skip
    monkeypatch.setattr(packing, "can_pack", lambda dense, library: True)
    monkeypatch.setattr(packing.MklLinear, "_pack", lambda self, weight: weight)
    monkeypatch.setattr(
        packing, "_ratio", lambda dense, packed, rows: faster[dense.out_features, type(packed)]
    )
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 96))
    assert pack(model) == 1.4
    assert [type(layer) for layer in model] == [packing.OneDnnLinear, packing.MklLinear]


def test_weights_off_a_cpu_are_not_packed() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    assert pack(model) == 1.0
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("gains", [(2.0, 1.5, 0.9, 3.0), (0.5,), (2.0, 2.0)])
def test_sparse_mlps_run_up_to_where_they_stop_paying(
    gains: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = makers.backbone("llama")
    sparsify(model, SparsityConfig(sparsity=0.5))
    by_rows = dict(zip(tuning._ROWS, (*gains, *[0.1] * 5), strict=False))
    monkeypatch.setattr(tuning, "_sparse_gain", lambda mlp, rows, dtype: by_rows[rows])
    tuner = Tuner()
    plain = copy.deepcopy(model)
    tuner(model)
    above = {(2.0, 1.5, 0.9, 3.0): 2, (0.5,): 0, (2.0, 2.0): 2}[gains]
    assert tuner.tuned.dense_above == above
    assert {m.dense_above for m in sparse_mlps(model)} == {above}
    with torch.inference_mode(), counting_flops(model) as flops:
        for rows in (1, 2, 4, 16):
            ids = torch.arange(rows)[None] + 3
            wanted = plain(input_ids=ids).logits
            assert torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-4)
    assert (flops.decode_dense > 0) == (above > 0)


def test_the_backends_own_model_is_left_alone_and_its_changes_are_followed(
    always: None, tiny_backbone: Path
) -> None:
    model, processor = compose(backbone=tiny_backbone, sparsity=SparsityConfig(sparsity=0.5))
    kinds = [type(m) for m in model.modules()]
    backend = LocalBackend(model, processor)
    asked, options = [user("is there a nodule")], GenerateOptions(choices=("yes", "no"))
    first = collect(backend.generate(asked, options)).choices
    assert [type(m) for m in model.modules()] == kinds
    with torch.no_grad():
        model.language_model.lm_head.weight.add_(
            torch.randn_like(model.language_model.lm_head.weight)
        )
    second = collect(backend.generate(asked, options)).choices
    fresh = collect(LocalBackend(model, processor).generate(asked, options)).choices
    assert second != first
    assert second == pytest.approx(fresh)
    with counting_flops(model) as flops:  # of the caller's model, counted in the engine's copy
        collect(backend.generate(asked, GenerateOptions(max_new_tokens=3)))
    assert flops.prefill + flops.decode_dense > 0
    assert np.isfinite(list(fresh.values())).all()


def test_load_tells_what_share_of_each_layers_neurons_ran(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of n tokens runs dense, the m tokens behind it at half of the neurons.

    Of the prompt the last layer runs one token, which is predicted from.
    """
    monkeypatch.setattr(tuning, "_sparse_gain", lambda mlp, rows, dtype: 2.0 if rows == 1 else 0.5)
    backend = LocalBackend(*compose(backbone=tiny_backbone, sparsity=SparsityConfig(sparsity=0.5)))
    backend.capabilities()  # makes and tries the engine
    trials = [n for (name, _), n in backend.load().measured.totals.items() if "mlp" in name]
    assert trials == [0, 0, 0, 0]
    options = GenerateOptions(max_new_tokens=5, temperature=5.0, seed=1)
    usage = collect(backend.generate([user("is there a nodule")], options)).usage
    load = backend.load()
    steps = load.counters["new_tokens"] if usage.new_tokens < 5 else usage.new_tokens - 1
    told = load.measured.totals
    # of 64 neurons each
    assert told["engine_mlp_neurons", "0"] == 64 * (usage.prompt_tokens + steps)
    assert told["engine_mlp_neurons_run", "0"] == 64 * usage.prompt_tokens + 32 * steps
    assert told["engine_mlp_neurons", "1"] == 64 * (1 + steps)
    assert told["engine_mlp_neurons_run", "1"] == 32 * (1 + steps)
