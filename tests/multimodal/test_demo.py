"""The shipped checkpoint: card and weights belong together, it beats itself blindfolded, it abstains."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
import pytest

from multimodal.backends import DEMO, load_backend
from multimodal.measuring import Measuring
from multimodal.messages import Study
from multimodal.training.evaluation import card_table

pytestmark = pytest.mark.skipif(
    not (DEMO / "evaluation.json").is_file(), reason="needs the measured demo checkpoint"
)


@pytest.fixture(scope="module")
def measured() -> dict:
    return json.loads((DEMO / "evaluation.json").read_text())


def test_the_cards_numbers_are_those_of_the_weights_that_lie_beside_it(measured: dict) -> None:
    weights = (DEMO / "model.safetensors").read_bytes()
    assert measured["weights_sha256"] == sha256(weights).hexdigest()
    assert card_table(measured) in (DEMO / "README.md").read_text()


def test_the_checkpoint_is_small_enough_to_ship() -> None:
    assert sum(f.stat().st_size for f in DEMO.rglob("*") if f.is_file()) < 64 * 2**20


def test_it_is_past_guessing_on_every_task_and_blind_without_its_images(measured: dict) -> None:
    """A guesser has 0.5 balanced accuracy; what needs the images must fall when they are blanked."""
    seeing, blind = measured["seeing"], measured["blanked"]
    for task in ("presence", "check", "omission"):
        name = f"{task} balanced accuracy"
        assert seeing[name] > 0.6
        assert seeing[name] > blind[name] + 0.05
        assert seeing[name] > measured["shuffled"][name] + 0.05
    for name in ("list F1", "side accuracy", "evidence slice, claimed or not"):
        assert seeing[name] > blind[name] + 0.2
    assert blind["presence AUROC"] < 0.6
    assert seeing["evidence slice"] > 0.9
    assert seeing["evidence box"] > 0.85
    assert seeing["report AUROC"] > 0.95
    assert seeing["dictation word error rate"] < 0.15
    assert seeing["dictation Chinese character error rate"] < 0.15
    assert seeing["claimed of another region"] < 0.02
    assert seeing["withheld as out of range"] < 0.02


def test_it_claims_nothing_of_studies_of_another_kind(measured: dict) -> None:
    """Every distance beyond the limit of 1; the AUROC compares them with generated studies."""
    strange = measured["out of range"]
    assert strange["AUROC"] >= 0.99
    assert strange["confident findings claimed"] == 0
    assert all(value > 1 for name, value in strange.items() if name.endswith("least distance"))


def test_hiding_what_it_names_matters_more_than_hiding_anything_else(measured: dict) -> None:
    hidden = measured["hiding the region"]
    assert (
        hidden["probability falls by, where named"] > 3 * hidden["probability falls by, elsewhere"]
    )


def test_its_stated_probabilities_were_calibrated_and_its_card_tells_what_is_left(
    measured: dict,
) -> None:
    config = json.loads((DEMO / "config.json").read_text())
    assert all(temperature != 1.0 for temperature, _ in config["choice_calibration"].values())
    assert measured["seeing"]["check ECE"] < 0.1
    assert measured["seeing"]["presence ECE"] < 0.03
    assert measured["seeing"]["report ECE"] < 0.03
    weights = config["review_weights"]
    assert min(weights["said"], weights["seen"]) > 0  # both are heeded
    spread = Measuring.read(weights["measure"]).spread
    assert min(weights["measure"]["words"], *spread.values()) > 0.01
    assert "nodule" in spread
    assert "pneumothorax" not in spread
    assert all(added < 0.5 for added in weights["verdicts"].values())


def test_at_its_default_the_gate_skips_a_third_of_decoding_and_costs_little(measured: dict) -> None:
    rows = {row["sparsity"]: row for row in measured["sparsity"]}
    assert rows[0.5]["MLP skipped, decoding"] > 0.3
    dense, half = (rows[s]["presence balanced accuracy"] for s in (0.0, 0.5))
    assert half > dense - 0.03


def test_any_to_any_of_transformers_runs_it_on_a_dicom_study() -> None:
    import transformers

    import multimodal

    multimodal.register()
    pipe = transformers.pipeline("any-to-any", model=str(DEMO))
    content = [
        {"type": "dicom", "dicom": str(DEMO / "sample" / "study")},
        {"type": "text", "text": "Is there a left pleural effusion?"},
    ]
    chat = [{"role": "user", "content": content}]
    (answer,) = pipe(text=chat, max_new_tokens=4, return_full_text=False, do_sample=False)
    assert answer["generated_text"].strip() == "yes"


def test_photographs_noise_and_small_real_ct_are_out_of_its_range(tmp_path) -> None:
    import pydicom.data

    from encoders.dicom import write_ct_series

    backend = load_backend()
    rng = np.random.default_rng(0)
    noise = rng.integers(-1000, 1000, (32, 96, 96)).astype(np.int16)
    affine = np.array([[0, 0, 4.0, 0], [0, 4.0, 0, 0], [7.0, 0, 0, 0], [0, 0, 0, 1]])
    write_ct_series(noise, affine, tmp_path)
    for study in (tmp_path, pydicom.data.get_testdata_file("CT_small.dcm")):
        novelty = backend.novelty(Study(study))
        assert novelty is not None
        assert novelty.out_of_range
    inside = backend.novelty(Study(DEMO / "sample" / "study"))
    assert inside is not None
    assert not inside.out_of_range
