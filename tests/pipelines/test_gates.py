"""One model at several sparsities: each twin answers as a model set to it, and none disturbs another."""

from __future__ import annotations

from pathlib import Path

import pytest

from encoders.errors import IncompatibleModel
from multimodal.backends import GenerateOptions, collect
from multimodal.composition import compose
from multimodal.local import LocalBackend
from multimodal.messages import user
from multimodal.sparse import SparsityConfig, set_sparsity
from pipelines.ui.gates import NUM_TWINS, Gates
from tests.makers import FakeBackend

ASKED = [user("is there a right nodule in the report")]
LONG = GenerateOptions(max_new_tokens=24)


@pytest.fixture
def backend(tiny_backbone: Path) -> LocalBackend:
    return LocalBackend(*compose(backbone=tiny_backbone, sparsity=SparsityConfig(sparsity=0.0)))


def test_a_twin_answers_as_a_model_set_to_its_share_and_leaves_the_model_as_it_was(
    backend: LocalBackend, tiny_backbone: Path
):
    gates = Gates(backend)
    shares = (0.0, 0.5, 0.9)
    told = [collect(gates.at(share).generate(ASKED, LONG)).text for share in shares]
    assert len(set(told)) == len(shares)
    for share, text in zip(shares, told, strict=True):
        alone = compose(backbone=tiny_backbone, sparsity=SparsityConfig(sparsity=0.0))
        set_sparsity(alone[0], share)
        assert collect(LocalBackend(*alone).generate(ASKED, LONG)).text == text
    assert backend.sparsity == 0.0
    assert collect(backend.generate(ASKED, LONG)).text == told[0]


def test_twins_hold_the_models_own_weights(backend: LocalBackend):
    twin = backend.at_sparsity(0.5)
    own = {p.data_ptr() for p in backend.model.parameters()}
    assert {p.data_ptr() for p in twin.model.parameters()} == own


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_the_work_told_as_saved_is_what_the_formula_of_the_gate_says(
    backend: LocalBackend, share: float
):
    """Of three equal products two run for the kept neurons only; 64 neurons here."""
    kept = round((1 - share) * 64) / 64
    assert Gates(backend).saving(share) == pytest.approx(2 / 3 * (1 - kept))


def test_only_a_few_twins_are_kept(backend: LocalBackend):
    gates = Gates(backend)
    first = gates.at(0.1)
    for k in range(2, NUM_TWINS + 1):
        gates.at(k / 10)
    assert gates.at(0.1) is first
    for k in range(2, NUM_TWINS + 2):
        gates.at(k / 10)
    assert gates.at(0.1) is not first


def test_a_model_without_gates_is_left_as_it_is(tiny_composite: tuple):
    dense = LocalBackend(*tiny_composite)
    assert Gates(dense).share is None
    with pytest.raises(IncompatibleModel, match="dense"):
        dense.at_sparsity(0.5)
    fake = FakeBackend()
    assert Gates(fake).at(0.5) is fake
    assert Gates(fake).saving(0.5) == 0.0
