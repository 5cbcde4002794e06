"""The training loop and its stages: repeatable, resumable, and the losses are what they claim."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from multimodal.training import ranks, vision_pretraining
from multimodal.training.audio_pretraining import NUM_HELD_OUT, Utterances, edit_distance
from multimodal.training.corpus import (
    HELD_OUT,
    Corpus,
    Frame,
    SliceBatch,
    patch_cover,
    varied,
)
from multimodal.training.loop import FINAL_SHARE, Schedule, Stage, optimisers_of, train
from multimodal.training.muon import Muon
from multimodal.training.vision_pretraining import (
    Contrast,
    auroc,
    dense_loss,
    hardness,
    held_out_auroc,
    patch_targets,
)
from multimodal.training.world.findings import Shown
from multimodal.training.world.phantom import random_phantom, render
from multimodal.training.world.worlds import WORLDS
from tests.served import free_port


def _stage(model: nn.Module) -> Stage[torch.Tensor]:
    def draw(_step: int, rng: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((8, 64)).astype(np.float32))

    def loss(x: torch.Tensor) -> tuple[str, torch.Tensor]:
        return "square", (model(x) - x.sum(1, keepdim=True)).square().mean()

    return Stage("toy", model, draw, loss, lambda: "nothing")


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(64, 64)  # its weight is Muon's, its bias AdamW's


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    """A run cut after its second save and started again draws the same batches."""

    class Killed(Exception):
        pass

    schedule = Schedule(12, lr=0.05, warmup=2, save_every=4)
    whole, cut, resumed = _linear(), _linear(), _linear()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    train(_stage(whole), schedule, tmp_path / "a")
    stage, seen = _stage(cut), []

    def dies(batch: torch.Tensor) -> tuple[str, torch.Tensor]:
        seen.append(batch)
        if len(seen) == 10:
            raise Killed
        return stage.loss(batch)

    with pytest.raises(Killed):
        train(Stage("toy", cut, stage.draw, dies, stage.check), schedule, tmp_path / "b")
    train(_stage(resumed), schedule, tmp_path / "b")
    assert torch.equal(whole.weight, resumed.weight)
    assert not torch.equal(whole.weight, _linear().weight)


def test_muon_turns_the_matrices_inside_and_adamw_all_else() -> None:
    """Muon's update has equal singular values (its orthogonalised gradient), AdamW's has not."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(96, 64), "inside": nn.Linear(64, 96)})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimisers = optimisers_of(model, Schedule(10, lr=0.1, weight_decay=0.0))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimiser in optimisers:
        optimiser.step()
    turned = torch.linalg.svdvals(model["inside"].weight - before["inside.weight"]).detach()
    assert turned.min() > 0.5 * turned.max()
    moved = (model["embed"].weight - before["embed.weight"]).abs().detach()
    assert moved.mean().item() == pytest.approx(0.1, rel=0.05)  # Adam's first step: the rate
    held = [p for o in optimisers for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (80, 80)])
def test_our_muon_steps_as_torchs_does(shape: tuple[int, int]) -> None:
    """Torch's turns in bfloat16, which keeps three digits."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    both = (
        Muon([ours], 0.05, 0.1),
        torch.optim.Muon([theirs], 0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimiser in both:
            optimiser.step()
    assert (ours - theirs).abs().max() < 0.02 * (ours - start).abs().max()


def test_batches_drawn_ahead_by_many_threads_come_in_the_order_of_the_steps(
    tmp_path: Path,
) -> None:
    one, many = _linear(), _linear()
    for model, workers in ((one, 1), (many, 5)):
        folder = tmp_path / str(workers)
        folder.mkdir()
        train(_stage(model), Schedule(11, lr=0.05, warmup=2, num_workers=workers), folder)
    assert torch.equal(one.weight, many.weight)


def test_a_stage_of_no_steps_leaves_its_model_as_it_is(tmp_path: Path) -> None:
    model = _linear()
    train(_stage(model), Schedule(0, lr=0.05, num_workers=3), tmp_path)
    assert torch.equal(model.weight, _linear().weight)


def _train_rank(rank: int, folder: str, port: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    ranks.join()
    model = _linear()
    train(_stage(model), Schedule(5, lr=0.05, warmup=2, save_every=5), Path(folder))
    torch.save(model.state_dict(), Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns_from_both_their_batches(tmp_path: Path) -> None:
    port = free_port()
    torch.multiprocessing.spawn(_train_rank, args=(str(tmp_path), port), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    model = _linear()
    both = _stage(model)

    def draw(step: int, rng: np.random.Generator) -> torch.Tensor:
        other = np.random.default_rng((0, step, 1))
        return torch.cat([both.draw(step, rng), both.draw(step, other)])

    (tmp_path / "one").mkdir()
    alone = Stage("toy", model, draw, both.loss, both.check)
    train(alone, Schedule(5, lr=0.05, warmup=2), tmp_path / "one")
    assert torch.equal(first["weight"], second["weight"])
    # where Muon turns in bfloat16, sums in another order may end a bit apart
    assert torch.allclose(first["weight"], model.weight, atol=2e-3)
    assert not torch.allclose(first["weight"], _linear().weight, atol=2e-2)


def test_the_rate_warms_up_and_falls_to_its_last_share() -> None:
    schedule = Schedule(1000, lr=2.0, warmup=10)
    assert schedule.rate(0) == pytest.approx(0.2)
    assert max(schedule.rate(s) for s in range(1000)) == pytest.approx(2.0, rel=0.02)
    assert schedule.rate(1000) == pytest.approx(2.0 * FINAL_SHARE)


def test_dense_loss_is_the_focal_loss_over_the_patches_that_should_show_it() -> None:
    torch.manual_seed(0)
    logits, cover = torch.randn(2, 5, 3), torch.zeros(2, 5, 3)
    cover[0, 1, 2], cover[1, 3, 0] = 1.0, 0.5
    unknown, shown = torch.full((2, 3), float("nan")), torch.tensor([0.5, 2.0, 0.25])
    right = torch.where(cover > 0, logits.sigmoid(), 1 - logits.sigmoid())
    focal = -((1 - right) ** 2) * right.log()
    wanted = (focal.sum((0, 1)) / (2 * shown)).mean()
    given = dense_loss(logits, torch.zeros(2, 5, 3), cover, unknown, shown=shown)
    assert given.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_hundredth_of_a_patch_makes_it_half_sure_and_a_fiftieth_whole() -> None:
    targets = patch_targets(torch.tensor([0.0, 1 / 102, 1 / 51, 1.0]))
    assert targets.tolist() == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_focal_loss_meets_a_small_target_with_less_than_half_of_it() -> None:
    """Why a patch that a small nodule touches has to be told whole."""
    chances = torch.linspace(0.01, 0.99, 99)
    least = {}
    for target in (0.3, 0.5):
        wanted = torch.full_like(chances, target)
        loss = sigmoid_focal_loss(chances.logit(), wanted, alpha=-1, gamma=2)
        least[target] = float(chances[loss.argmin()])
    assert least[0.3] < 0.15
    assert least[0.5] == pytest.approx(0.5, abs=0.01)


def test_dense_loss_pulls_sizes_only_where_the_finding_is() -> None:
    size = torch.zeros(1, 4, 1, requires_grad=True)
    cover = torch.tensor([0.0, 1.0, 0.0, 0.5]).view(1, 4, 1)
    millimetres = torch.full((1, 1), 20.0)
    dense_loss(torch.zeros(1, 4, 1), size, cover, millimetres, shown=torch.ones(1)).backward()
    assert size.grad is not None
    assert (size.grad.flatten() != 0).tolist() == [False, True, False, True]


def test_every_finding_counts_the_same_however_many_patches_show_it() -> None:
    """A head that knows nothing is pulled as hard towards a nodule's patch as towards ascites'."""
    cover = torch.zeros(2, 40, 2)
    cover[:, 0, 0], cover[:, :20, 1] = 1.0, 1.0
    logits = torch.full((2, 40, 2), -8.0, requires_grad=True)
    unknown = torch.full((2, 2), float("nan"))
    shown = torch.tensor([1.0, 20.0])
    dense_loss(logits, torch.zeros(2, 40, 2), cover, unknown, shown=shown).backward()
    pull = logits.grad.sum((0, 1))  # type: ignore[union-attr]
    assert pull[0].item() == pytest.approx(pull[1].item(), rel=0.02)


def test_the_heads_auroc_is_of_each_side_and_of_the_findings_own_region() -> None:
    """A head that reads the truth is perfect, one that sees its mirror image is as wrong as can be."""
    corpus = _TwoStudies()
    assert held_out_auroc(_Reads(corpus, mirrored=False), corpus) == {"nodule": 1.0, "stone": 1.0}  # type: ignore[arg-type]
    assert held_out_auroc(_Reads(corpus, mirrored=True), corpus)["nodule"] == 0.0  # type: ignore[arg-type]


class _TwoStudies:
    """Two chests with a nodule on one side and two abdomens, one with a stone in the middle."""

    world = SimpleNamespace(findings=(("nodule", True), ("stone", False)))
    vocabulary = [SimpleNamespace(findings=(f,)) for f in (("nodule", True), ("stone", False))] * 2

    def __init__(self) -> None:
        cover = np.zeros((4, 1, 4, 4, 2), np.uint8)
        cover[0, 0, 1, 0, 0], cover[2, 0, 2, 3, 0], cover[1, 0, 2, 1, 1] = 255, 40, 9
        cover[3, 0, :, :, 0] = 255  # of another region: counts for nobody
        self.cover, self.views = cover.reshape(4, 1, 16, 2), np.arange(4)[:, None, None, None, None]

    def held_out(self, num: int) -> range:
        """All of them."""
        return range(4)


class _Reads(torch.nn.Module):
    """Takes a study's number for its picture, and answers with its truth."""

    def __init__(self, corpus: _TwoStudies, *, mirrored: bool) -> None:
        super().__init__()
        self.here = torch.nn.Parameter(torch.zeros(1))
        squares = torch.from_numpy(corpus.cover).float().view(4, 1, 4, 4, 2)
        self.answers = (squares.flip(3) if mirrored else squares).reshape(4, 1, 16, 2)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The truth twice."""
        answer = self.answers[int(pixels.flatten()[0])]
        return answer, answer


def test_slices_move_by_whole_patches_and_their_targets_with_them() -> None:
    rng = np.random.default_rng(0)
    cover = rng.integers(20, 220, (3, 144, 2)).astype(np.uint8)
    shown = cover.reshape(3, 12, 12, 2)[..., 0].repeat(8, 1).repeat(8, 2)
    views = np.stack([shown] * 3, 1)
    apart = 0
    for seed in range(9):
        mirrored = np.array([False, True, False])
        moved, target = varied(views, cover, mirrored, np.random.default_rng(seed))
        again = target.reshape(3, 12, 12, 2)[..., 0].repeat(8, 1).repeat(8, 2)
        moves = set()
        for picture, wanted, before in zip(moved, again, shown, strict=True):
            gain, offset = np.polyfit(wanted.ravel(), picture[1].ravel(), 1)
            assert 0.94 < gain < 1.06
            assert abs(offset) < 6.5
            assert (
                np.abs(gain * wanted + offset - picture).max() < 1.1
            )  # else target and picture part
            assert sorted(wanted.ravel()) == sorted(before.ravel())
            moves.add(np.argwhere(wanted != before).tobytes())
        apart += len(moves) > 1
    assert apart > 5  # slices of one batch move each its own way


def test_a_mirrored_slice_shows_on_the_right_what_the_left_one_shows() -> None:
    cover = np.zeros((2, 144, 1), np.uint8)
    cover[:, 5 * 12 + 3] = 255  # row 5, column 3
    views = np.zeros((2, 3, 96, 96), np.uint8)
    views[:, :, 40:48, 24:32] = 200
    rng = np.random.default_rng(2)
    (plain, turned), (here, there) = varied(views, cover, np.array([False, True]), rng)
    (row, column), (other_row, other_column) = (
        np.argwhere(square.reshape(12, 12))[0] for square in (here, there)
    )
    assert abs(column - 3) <= 1
    assert abs(other_column - 8) <= 1
    for picture, r, c in ((plain, row, column), (turned, other_row, other_column)):
        lit = np.argwhere(picture[0] > 100) // 8
        assert {tuple(p) for p in lit.tolist()} == {(r, c)}


def test_a_caption_tells_the_side_that_the_picture_shows() -> None:
    nodule, heart = Shown("nodule", "left", 12.0, "upper lobe"), Shown("cardiomegaly", None)
    body = WORLDS["body"]
    chest = next(v for v in body.vocabularies if v.region == "chest")
    corpus = SimpleNamespace(world=body, truth=[[nodule, heart]], vocabulary=[chest])
    names = [name for name, _ in body.findings]
    cover = torch.zeros(2, 144, len(names))
    cover[:, 3, names.index("nodule")] = 1.0
    nothing = torch.zeros(0)
    batch = SliceBatch([0, 0], [False, True], nothing, cover, nothing)
    told: list[str] = []

    def encode(text: str, *, add_special_tokens: bool) -> list[int]:
        told.append(text)
        return [1]

    for seed in range(20):
        tokenizer, rng = SimpleNamespace(encode=encode), np.random.default_rng(seed)
        vision_pretraining._captions(corpus, batch, tokenizer, rng)  # type: ignore[arg-type]
    for text, side, other in zip(told, ["left", "right"] * 20, ["right", "left"] * 20, strict=True):
        words = {"left": ("left", "左"), "right": ("right", "右")}
        assert any(word in text.lower() for word in words[side]), text
        assert not any(word in text.lower() for word in words[other]), text


def test_auroc_equals_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(scores, np.ones(60, bool)))


def test_edit_distance_counts_edits() -> None:
    assert edit_distance(["a", "b", "c"], ["a", "c", "d"]) == 2


def test_patch_targets_are_what_the_masks_cover_in_a_slabs_maximum() -> None:
    """As a MIP shows a nodule that lies in one slice of its slab."""
    rng = np.random.default_rng(3)
    drawn = render(random_phantom(rng, [("pleural effusion", "left")]), (32, 96, 96), rng)
    cover = patch_cover(drawn, WORLDS["phantom"], Frame("crossread-ct-mip"))
    mask = drawn.masks["pleural effusion", "left"]
    assert cover.shape == (16, 144, 6)
    slabs = mask.reshape(16, 2, 96, 96).max(1)
    assert cover[..., 2].mean() == pytest.approx(slabs.mean(), rel=5e-3)  # in 255 steps
    assert cover[3, 12 * 8 + 7, 2] == pytest.approx(slabs[3, 64:72, 56:64].mean(), abs=2e-3)
    assert cover[..., [0, 1, 3, 4, 5]].max() == 0


def test_patch_targets_do_not_depend_on_the_matrix_a_study_is_drawn_on() -> None:
    body = random_phantom(np.random.default_rng(4), [("consolidation", "right")])
    covers = [
        patch_cover(render(body, shape, np.random.default_rng(0)), WORLDS["phantom"], Frame())
        for shape in ((32, 192, 192), (40, 224, 224), (45, 250, 250))
    ]
    for other in covers[1:]:
        assert np.abs(covers[0] - other).mean() < 2e-3
        assert np.corrcoef(covers[0].ravel(), other.ravel())[0, 1] > 0.98


def test_patch_targets_of_the_larger_pictures_are_those_of_the_smaller_more_finely() -> None:
    """32 views of 14 x 14 patches of 16 pixels: two views' maximum is a view of the small profile."""
    rng = np.random.default_rng(5)
    drawn = render(random_phantom(rng, [("cardiomegaly", None)]), (64, 224, 224), rng)
    large = patch_cover(drawn, WORLDS["phantom"], Frame("crossread-ct-large", 14))[..., 4]
    small = patch_cover(drawn, WORLDS["phantom"], Frame("crossread-ct-mip"))[..., 4]
    assert large.shape == (32, 196)
    mask = drawn.masks["cardiomegaly", None]
    assert large.mean(1) == pytest.approx(mask.reshape(32, 2, -1).max(1).mean(1), abs=2e-3)
    assert small.mean(1) == pytest.approx(mask.reshape(16, 4, -1).max(1).mean(1), abs=2e-3)


def test_a_slice_and_its_own_sentence_lose_least_against_each_other() -> None:
    """With slices and sentences in one order the contrast is lower than with them shuffled."""
    torch.manual_seed(0)
    contrast = Contrast(32, 20)
    features = torch.randn(6, 4, 32)
    words = torch.randint(1, 20, (6, 5))
    optimiser = torch.optim.Adam(contrast.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        contrast(features, words).backward()
        optimiser.step()
    assert contrast(features, words) < 0.2
    assert contrast(features, words.roll(1, 0)) > 2.0
    padded = torch.cat([words, torch.zeros(6, 3, dtype=torch.long)], 1)
    assert contrast(features, padded).item() == pytest.approx(
        contrast(features, words).item(), abs=1e-4
    )


class _Crowd(Corpus):
    """Sixty studies of four pictures, which all show one of two findings, by the study's number.

    Where the first is shown its patch is bright; of the second nothing is to be seen.
    """

    def __init__(self) -> None:
        self.num_studies, self.num_views = HELD_OUT + 60, 4
        studies = np.arange(self.num_studies)
        self.cover = np.zeros((self.num_studies, 4, 4, 2), np.uint8)
        self.cover[studies, :, 1, studies % 2] = 255
        self.views = np.zeros((self.num_studies, 4, 3, 8, 8), np.uint8)
        self.views[studies % 2 == 0, ..., :4, 4:] = 200
        self.size_mm = np.full((self.num_studies, 2), np.nan, np.float32)
        self._shown = None


def test_slices_show_each_finding_as_often_as_its_weight_says() -> None:
    drawn = _Crowd().slices(np.random.default_rng(0), 3000, np.array([0.9, 0.1]))
    shown = drawn.cover.amax(1).mean(0).tolist()
    # a third are any slices, half of which show it
    assert shown == pytest.approx([0.9 * 2 / 3 + 1 / 6, 0.1 * 2 / 3 + 1 / 6], abs=0.03)


def test_slices_bring_those_beside_them_upside_down_as_often_as_not() -> None:
    corpus = _Crowd()
    num = corpus.num_studies
    corpus.views = np.zeros((num, 4, 3, 8, 8), np.uint8)
    corpus.views[:, :, 0] = 60 * np.arange(4)[:, None, None]  # told by its height
    drawn = corpus.slices(np.random.default_rng(0), 1200).pixels.float().mean((2, 3)) / 60
    heights = drawn.round().long()
    own, first, second = heights[:, 0], heights[:, 3], heights[:, 4]
    below, above = (own - 1).clamp(min=0), (own + 1).clamp(max=3)
    upright = (first == below) & (second == above)
    turned = (first == above) & (second == below)
    assert (upright | turned).all()
    inner = (own > 0) & (own < 3)
    assert 0.4 < upright[inner].float().mean() < 0.6


class _SeesBright(nn.Module):
    """Sure of the first finding by its brightness, and torn about the second."""

    def __init__(self) -> None:
        super().__init__()
        self.here = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 `[n, 3, 8, 8]` -> logits `[n, 4, 2]`, twice."""
        patches = nn.functional.avg_pool2d(pixels[:, 0].float(), 4).flatten(1)
        answer = torch.stack([torch.where(patches > 100, 9.0, -9.0), torch.zeros_like(patches)], -1)
        return answer, answer


def test_findings_are_weighed_by_the_root_of_what_a_tower_loses_in_them() -> None:
    """Torn, a patch loses a quarter of log 2, and each of four does; half of the slices show one."""
    easy, hard = hardness(_SeesBright(), _Crowd())  # type: ignore[arg-type]
    assert easy < 1e-3
    assert hard == pytest.approx(math.sqrt(4 * 0.25 * math.log(2) / 0.5), rel=0.03)


def test_recordings_of_a_batch_are_of_one_length_and_none_of_a_voice_kept_aside() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.arange(100, 100 + NUM_HELD_OUT + 50))
    speech = Utterances([np.zeros((1, n), np.float16) for n in lengths], [""] * len(lengths))
    drawn = [speech.of_one_length(rng, 6) for _ in range(600)]
    learned = np.sort(lengths[NUM_HELD_OUT:])
    for batch in drawn:
        chosen = lengths[batch]
        assert len(set(batch.tolist())) == 6
        assert np.searchsorted(learned, chosen.max()) - np.searchsorted(learned, chosen.min()) == 5
    assert min(np.concatenate(drawn)) >= NUM_HELD_OUT
    assert len(set(np.concatenate(drawn).tolist())) == 50


def test_every_other_batch_of_recordings_is_of_numbers_where_there_are_enough() -> None:
    rng = np.random.default_rng(0)
    texts = [
        f"A nodule of {n} mm." if n % 5 == 0 else "No nodule." for n in range(NUM_HELD_OUT + 50)
    ]
    speech = Utterances([np.zeros((1, 9), np.float16)] * len(texts), texts)
    drawn = [[speech.texts[i] for i in speech.of_one_length(rng, 10)] for _ in range(600)]
    of_numbers = np.mean([all("mm" in text for text in batch) for batch in drawn])
    assert of_numbers == pytest.approx(0.5, abs=0.07)  # 600 tosses of a coin: 3.4 sigma
    assert min(speech.of_one_length(rng, 11)) >= NUM_HELD_OUT  # ten hold a number: all serve
