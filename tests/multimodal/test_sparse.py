"""Dynamic sparsity against the dense module, a loop over neurons, and hand counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from encoders.errors import IncompatibleModel, InvalidMessage
from multimodal.composition import compose
from multimodal.sparse import (
    LEVELS,
    SparseMLP,
    SparsityConfig,
    calibrate,
    counting_flops,
    set_sparsity,
    sparse_mlps,
    sparsify,
)
from tests import makers

HIDDEN, NEURONS = 32, 64


def _ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 90, (batch, length), generator=torch.Generator().manual_seed(seed))


def _dense_mlp() -> nn.Module:
    model: Any = makers.backbone("llama")
    return model.model.layers[0].mlp


def _sparse_mlp(sparsity: float, gate: str = "topk", thresholds: Any = ()) -> SparseMLP:
    return SparseMLP(_dense_mlp(), SparsityConfig(gate, sparsity, thresholds), 0)  # type: ignore[arg-type]


def _loop(mlp: Any, x: torch.Tensor, keep: int) -> torch.Tensor:
    """The definition, a token and a neuron at a time."""
    out = torch.zeros_like(x)
    for t, token in enumerate(x):
        strengths = []
        for j in range(NEURONS):
            gate = mlp.act_fn(mlp.gate_proj.weight[j] @ token)
            strengths.append((abs(float(gate)), j, gate))
        for _, j, gate in sorted(strengths, reverse=True)[:keep]:
            out[t] += gate * (mlp.up_proj.weight[j] @ token) * mlp.down_proj.weight[:, j]
    return out


@pytest.mark.parametrize("kind", makers.DENSE_GATED)
@torch.no_grad()
def test_at_sparsity_zero_the_model_equals_the_dense_one_bit_for_bit(kind: str) -> None:
    dense, sparse = makers.backbone(kind), makers.backbone(kind)
    assert sparsify(sparse, SparsityConfig(sparsity=0.0)) == 2
    for length in (1, 3, 20):
        ids = _ids(2, length)
        assert torch.equal(sparse(input_ids=ids).logits, dense(input_ids=ids).logits)


@pytest.mark.parametrize("rows", [1, 4, 9], ids=["decode", "decode of four", "prefill"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
@torch.no_grad()
def test_topk_equals_a_loop_over_neurons(rows: int, sparsity: float) -> None:
    mlp = _sparse_mlp(sparsity)
    x = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(rows))
    keep = round((1 - sparsity) * NEURONS)
    torch.testing.assert_close(mlp(x), _loop(mlp, x, keep), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_decoding_reads_what_prefill_computes() -> None:
    """A token alone goes through the gathering kernel, among many through masked products."""
    mlp = _sparse_mlp(0.5)
    x = torch.randn(12, HIDDEN)
    together = mlp(x)
    for row, token in zip(together, x, strict=True):
        torch.testing.assert_close(mlp(token[None])[0], row, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_each_token_picks_neurons_of_its_own_and_output_keeps_its_width() -> None:
    mlp = _sparse_mlp(0.7)
    x = torch.randn(3, 5, HIDDEN)
    active = mlp.active(mlp.act_fn(mlp.gate_proj(x)))
    assert active.shape == (3, 5, NEURONS)
    assert set(active.sum(-1).flatten().tolist()) == {round(0.3 * NEURONS)}
    rows = {tuple(r.tolist()) for r in active.flatten(0, 1)}
    assert len(rows) == 15  # a static mask would be one
    assert mlp(x).shape == x.shape


@torch.no_grad()
def test_a_tokens_neurons_do_not_depend_on_its_neighbours() -> None:
    mlp = _sparse_mlp(0.7)
    x, other = torch.randn(1, 6, HIDDEN), torch.randn(1, 6, HIDDEN)
    other[0, 2] = x[0, 2]
    assert torch.equal(mlp(x)[0, 2], mlp(other)[0, 2])


# --- the threshold gate ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.5, 0.9])
@torch.no_grad()
def test_threshold_gate_leaves_out_the_target_share_on_calibration_text(
    kind: str, sparsity: float
) -> None:
    model = makers.backbone(kind)
    text = [_ids(4, 64, seed) for seed in range(3)]
    thresholds = calibrate(model, text)
    assert [len(layer) for layer in thresholds] == [len(LEVELS)] * 2
    sparsify(model, SparsityConfig("threshold", sparsity, thresholds))
    shares: list[list[float]] = [[], []]
    for layer, mlp in enumerate(sparse_mlps(model)):
        mlp.register_forward_pre_hook(
            lambda m, args, layer=layer: shares[layer].append(
                1 - float(m.active(m.act_fn(m.gate_proj(args[0]))).float().mean())
            )
        )
    for batch in text:
        model(input_ids=batch)
    for layer in shares:  # the second layer sees what the first one's sparsity changed
        assert sum(layer) / len(layer) == pytest.approx(sparsity, abs=0.03)


@torch.no_grad()
def test_thresholds_are_the_quantiles_of_the_activated_gate() -> None:
    model: Any = makers.backbone("llama")
    text = _ids(2, 50)
    seen: list[torch.Tensor] = []
    first = model.model.layers[0].mlp
    first.gate_proj.register_forward_hook(lambda _m, _i, out: seen.append(first.act_fn(out).abs()))
    model(input_ids=text)
    wanted = torch.quantile(seen[0].flatten(), torch.tensor(LEVELS))
    got = torch.tensor(calibrate(model, [text])[0])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-2)


@torch.no_grad()
def test_calibration_of_a_sparse_model_sees_it_dense_and_leaves_it_as_it_was() -> None:
    dense, sparse = makers.backbone("llama"), makers.backbone("llama")
    sparsify(sparse, SparsityConfig(sparsity=0.8))
    text = [_ids(2, 40)]
    assert calibrate(sparse, text) == calibrate(dense, text)
    assert {m.config.sparsity for m in sparse_mlps(sparse)} == {0.8}
    assert not any(m.gate_proj._forward_hooks for m in sparse_mlps(sparse))


@torch.no_grad()
def test_calibration_does_not_keep_every_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long text must not cost memory in proportion: 32 layers of 11,008 neurons would."""
    from multimodal import sparse

    monkeypatch.setattr(sparse, "MAX_SAMPLES", 1000)
    model = makers.backbone("llama")
    few = torch.tensor(calibrate(model, [_ids(4, 64, s) for s in range(4)]))
    monkeypatch.undo()
    many = torch.tensor(calibrate(model, [_ids(4, 64, s) for s in range(4)]))
    torch.testing.assert_close(few, many, atol=2e-3, rtol=0.25)


@torch.no_grad()
def test_a_threshold_nobody_passes_gives_zeros_not_an_error() -> None:
    mlp = _sparse_mlp(0.9, "threshold", ((1e9,) * 9,))
    assert torch.equal(mlp(torch.randn(1, HIDDEN)), torch.zeros(1, HIDDEN))


# --- switching, saving, refusing -------------------------------------------------------------


@given(sparsity=st.floats(0.0, 0.9))
@settings(max_examples=25, deadline=None)
def test_any_share_from_zero_to_nine_tenths_is_switched_to(sparsity: float) -> None:
    model = _LLAMA_SPARSE
    set_sparsity(model, sparsity)
    with torch.no_grad(), counting_flops(model) as flops:
        model(input_ids=_ids(1, 1))
    keep = max(round((1 - sparsity) * NEURONS), 1)
    executed = 2 * HIDDEN * (NEURONS + 2 * (keep if sparsity else NEURONS))  # two layers
    assert flops.decode_executed == executed


_LLAMA_SPARSE = makers.backbone("llama")
sparsify(_LLAMA_SPARSE, SparsityConfig())


@pytest.mark.parametrize("share", [-0.1, 0.95, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InvalidMessage, match=r"choose a share from 0\.0 to 0\.9"):
        SparsityConfig(sparsity=share)
    with pytest.raises(InvalidMessage, match=r"choose a share from 0\.0 to 0\.9"):
        set_sparsity(_LLAMA_SPARSE, share)


def test_an_unknown_gate_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="gate is 'random'"):
        SparsityConfig(gate="random")  # type: ignore[arg-type]


@pytest.mark.parametrize("gate", ["topk", "threshold"])
@torch.no_grad()
def test_gate_share_and_thresholds_are_saved_with_the_model(
    gate: Any, tiny_backbone: Path, tmp_path: Path
) -> None:
    from multimodal.modeling import MultimodalForConditionalGeneration

    thresholds = calibrate(makers.backbone("llama"), [_ids(2, 40)]) if gate == "threshold" else ()
    model, _ = compose(backbone=tiny_backbone, sparsity=SparsityConfig(gate, 0.6, thresholds))
    set_sparsity(model, 0.4)
    model.save_pretrained(tmp_path)
    again = MultimodalForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert [m.config for m in sparse_mlps(again)] == [SparsityConfig(gate, 0.4, thresholds)] * 2
    ids = _ids(1, 1)
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_sparse_models_weights_keep_the_dense_names() -> None:
    dense, sparse = makers.backbone("qwen2"), makers.backbone("qwen2")
    sparsify(sparse, SparsityConfig())
    assert list(sparse.state_dict()) == list(dense.state_dict())


def test_fused_gates_are_refused_by_name() -> None:
    with pytest.raises(IncompatibleModel, match="Phi3ForCausalLM has no gated MLP"):
        sparsify(makers.backbone("phi3"), SparsityConfig())


def test_sparsity_asked_of_a_dense_model_is_refused() -> None:
    model = makers.backbone("llama")
    set_sparsity(model, 0.0)  # dense it is
    with pytest.raises(IncompatibleModel, match="MLPs are dense"):
        set_sparsity(model, 0.5)


def test_a_threshold_gate_without_calibration_is_refused() -> None:
    with pytest.raises(IncompatibleModel, match="0 calibrated layers for 2 MLPs"):
        sparsify(makers.backbone("llama"), SparsityConfig("threshold"))


@pytest.mark.parametrize("kind", makers.EXPERTS)
@torch.no_grad()
def test_mixtures_of_experts_pass_through_unchanged(kind: str, tmp_path: Path) -> None:
    makers.save_backbone(kind, tmp_path)
    plain = makers.backbone(kind)
    model, _ = compose(backbone=tmp_path, sparsity=SparsityConfig())
    assert sparse_mlps(model) == []
    assert model.config.sparsity is None  # nothing of it is on, so nothing of it is claimed
    with pytest.raises(IncompatibleModel, match="experts are sparse already"):
        set_sparsity(model, 0.5)
    ids = _ids(2, 12)
    theirs = plain(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits[..., : theirs.shape[-1]], theirs)


# --- what is skipped -------------------------------------------------------------------------


@torch.no_grad()
def test_flops_equal_a_count_by_hand() -> None:
    model = makers.backbone("llama")
    sparsify(model, SparsityConfig(sparsity=0.5))
    layers, product = 2, HIDDEN * NEURONS
    with counting_flops(model) as flops:
        model(input_ids=_ids(1, 10))
        model(input_ids=_ids(1, 1))
        model(input_ids=_ids(3, 1))
    assert flops.prefill == layers * 10 * 3 * product
    assert flops.decode_dense == layers * 4 * 3 * product
    assert flops.decode_executed == layers * 4 * (product + 2 * HIDDEN * (NEURONS // 2))
    assert flops.skipped_in_decode == pytest.approx(1 / 3)
    model(input_ids=_ids(1, 1))
    assert flops.decode_dense == layers * 4 * 3 * product  # outside the `with` nothing is counted


@torch.no_grad()
def test_the_default_skips_at_least_thirty_percent_while_decoding(tiny_backbone: Path) -> None:
    model, processor = compose(backbone=tiny_backbone, sparsity=SparsityConfig())
    inputs = processor.process([[{"role": "user", "content": "list the findings"}]]).tensors
    with counting_flops(model) as flops:
        model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert flops.decode_dense > 0
    assert flops.skipped_in_decode >= 0.3


@torch.no_grad()
def test_rows_not_chosen_are_never_read() -> None:
    """Weights of inactive neurons may be NaN: a kernel that read them would spread it."""
    mlp = _sparse_mlp(0.5)
    x = torch.randn(1, HIDDEN)
    wanted = mlp(x)
    active = mlp.active(mlp.act_fn(mlp.gate_proj(x)))[0]
    mlp.up_proj.weight.data[~active] = torch.nan
    mlp.down_proj.weight.data[:, ~active] = torch.nan
    assert torch.equal(mlp(x), wanted)


@torch.no_grad()
def test_new_weights_are_noticed() -> None:
    """The transposed copy of `down` follows the weight: loading, moving, training change it."""
    mlp = _sparse_mlp(0.5)
    x = torch.randn(1, HIDDEN)
    before = mlp(x)
    mlp.down_proj.weight.mul_(2)
    torch.testing.assert_close(mlp(x), 2 * before)
    mlp.down_proj.weight.data = mlp.down_proj.weight.data * 3
    torch.testing.assert_close(mlp(x), 6 * before)
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight / 6)
    torch.testing.assert_close(mlp(x), before)


def test_a_model_made_in_inference_mode_decodes() -> None:
    wanted, x = _sparse_mlp(0.5), torch.randn(1, HIDDEN)
    with torch.inference_mode():
        torch.testing.assert_close(_sparse_mlp(0.5)(x), wanted(x))


def test_training_reaches_every_weight_and_gives_the_masked_gradient() -> None:
    mlp = _sparse_mlp(0.5)
    x = torch.randn(3, HIDDEN)
    mlp(x).square().sum().backward()
    got = [p.grad.clone() for p in mlp.parameters()]
    mlp.zero_grad()
    gate = mlp.act_fn(mlp.gate_proj(x))
    kept = gate * mlp.active(gate)
    mlp.down_proj(kept * mlp.up_proj(x)).square().sum().backward()
    for a, b in zip(got, mlp.parameters(), strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_decodes_like_it_prefills(dtype: torch.dtype) -> None:
    mlp = _sparse_mlp(0.5).to(dtype)
    x = torch.randn(8, HIDDEN, dtype=dtype)
    one = torch.cat([mlp(t[None]) for t in x])
    torch.testing.assert_close(one, mlp(x), atol=2e-3, rtol=5e-2)
