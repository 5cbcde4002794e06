"""Stage 5: projectors and language model learn to answer about what the frozen towers see and hear.

Tower features are computed once and kept; a last stage may train the vision tower along, its
pictures encoded anew and its dense targets kept on. A training sequence is one study followed by many
questions that cannot see each other (a block mask), so each question must look at the images and
none can copy an earlier answer. The sparse gate is on from the first step. The studies are others than
neighbours and region head learned from: of those they are surer than they will be of any new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from encoders.errors import InvalidOption
from multimodal.modeling import MultimodalForConditionalGeneration, trainable
from multimodal.processing import AUDIO, IMAGE, REGION, STUDY, STUDY_END, MultimodalProcessor
from multimodal.prompts import TRANSCRIBE
from multimodal.training import ranks
from multimodal.training.audio_pretraining import NUM_HELD_OUT, Utterances, speak_corpus
from multimodal.training.corpus import Corpus, open_corpus
from multimodal.training.loop import Schedule, Stage, mixed_precision, move, train
from multimodal.training.vision_pretraining import dense_loss, patches_shown
from multimodal.training.world.dialogues import Dialogue, ask

SHORT = (*("presence",) * 10, "list", *("size",) * 2, *("side",) * 2)
QUESTIONS = (
    *("presence",) * 6, "list", *("size",) * 2, "side", *("check",) * 5, "omission", "describe",
)  # fmt: skip
NAMING = 0.3  # of the steps: short questions alone, whose answers must come from the pictures


@dataclass(frozen=True)
class Packed:
    """Studies with their questions as one batch: ids, labels, positions, branches `[b, l]`.

    `weights` `[b, l]` is what each label counts: long answers more than short ones, but less than
    by their length, or "yes" and "no" would be drowned by corrected sentences.
    """

    studies: list[int]
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    branch: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Seen:
    """What is seen of the studies of a batch: features, or pictures with their dense targets."""

    geometry: torch.Tensor
    features: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    cover: torch.Tensor | None = None


@dataclass(frozen=True)
class Heard:
    """Recordings and their words as one batch."""

    mel: torch.Tensor
    lengths: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor


Batch = tuple[Packed, Seen] | Heard


def encode_corpus(
    model: MultimodalForConditionalGeneration,
    work_dir: Path,
    *,
    crowded: bool = False,
    most: int | None = None,
) -> np.ndarray:
    """Tower features of every study, float16 `[studies, views, patches, width]`; computed once.

    Args:
        crowded: of the crowded corpus.
        most: of no more than that many studies, the first.
    """
    from numpy.lib.format import open_memmap
    from tqdm import tqdm

    corpus, name = open_corpus(work_dir, crowded=crowded), ("features", "crowd_features")[crowded]
    file, mark = work_dir / f"{name}.npy", work_dir / f"{name}.done"
    if mark.is_file():
        return np.load(file, mmap_mode="r")
    tower = model.vision_tower.eval()
    device = next(tower.parameters()).device
    patches = tower.grid[0] * tower.grid[1]
    num_studies = min(corpus.num_studies, most or corpus.num_studies)
    shape = (num_studies, corpus.num_views, patches, tower.width)
    if ranks.rank() == 0:
        open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
    ranks.wait()
    features = np.load(file, mmap_mode="r+")
    with torch.inference_mode():
        for i in tqdm(
            range(ranks.rank(), num_studies, ranks.count()), desc="encode", mininterval=10
        ):
            pixels = torch.from_numpy(np.array(corpus.views[i])).to(device)
            features[i] = tower(tower.preprocess.normalise(pixels)).half().cpu().numpy()
    ranks.wait()
    mark.touch()
    return features


def train_language(
    model: MultimodalForConditionalGeneration,
    processor: MultimodalProcessor,
    work_dir: Path,
    schedule: Schedule,
    *,
    together: bool = False,
    seed: int = 0,
) -> None:
    """Train the projectors and the backbone in place; `together` all that sees too.

    Raises:
        InvalidOption: nothing was spoken to learn from.
    """
    corpus = open_corpus(work_dir)
    num_spoken = len(list((work_dir / "speech").glob("*.npz")))
    if num_spoken <= NUM_HELD_OUT:
        raise InvalidOption(
            f"{work_dir} holds {num_spoken} recordings, {NUM_HELD_OUT} of which are kept aside;"
            " run the stage 'speech' first, with more --utterances"
        )
    speech = speak_corpus(work_dir, corpus.world, num_spoken)
    features = None if together else encode_corpus(model, work_dir)
    torch.manual_seed(seed)
    frozen: tuple[str, ...] = ("audio_tower", "region_head")  # nothing here tells it sizes
    if not together:
        frozen += ("vision_tower", "neighbours", "finding")
    trainable(model, lambda name: not name.startswith(frozen))
    packer = Packer(processor, model, corpus, features, speech)

    def draw(step: int, rng: np.random.Generator) -> Batch:
        if step % 4 == 3:
            return packer.draw_speech(rng, 3 * schedule.batch_size)
        is_naming = not together and step < NAMING * schedule.steps
        return packer.draw_studies(rng, schedule.batch_size, SHORT if is_naming else QUESTIONS)

    def loss(batch: Batch) -> tuple[str, torch.Tensor]:
        with mixed_precision(model.device):
            if isinstance(batch, Heard):
                return "speech", packer.speech_loss(batch)
            return "study", packer.study_loss(*batch)

    name = "together" if together else "language"
    kept = (lambda k: "audio_tower" not in k) if together else (lambda k: "_tower" not in k)
    stage = Stage(name, model, draw, loss, packer.held_out_accuracy, kept)
    train(stage, schedule, work_dir, seed=seed)


class Packer:
    """Turns studies, questions and recordings into losses of the model."""

    def __init__(
        self,
        processor: MultimodalProcessor,
        model: MultimodalForConditionalGeneration,
        corpus: Corpus,
        features: np.ndarray | None,
        speech: Utterances,
    ) -> None:
        """Without `features` the pictures are encoded with every batch."""
        self.processor, self.model, self.corpus = processor, model, corpus
        self.features, self.speech = features, speech
        num = model.config.tokens_per_view
        study = (
            STUDY
            + IMAGE * (num * corpus.num_views)
            + REGION * len(model.config.regions)
            + STUDY_END
        )
        self.prefix = self.encode(f"<|user|>{study}")
        self.end = self.encode("<|end|>")
        self.turn = self.encode("<|end|><|assistant|>")

    @cached_property
    def _shown(self) -> torch.Tensor:
        return patches_shown(self.corpus)

    def encode(self, text: str) -> list[int]:
        """Text as token ids, nothing added."""
        return self.processor.tokenizer.encode(text, add_special_tokens=False)

    def draw_studies(
        self, rng: np.random.Generator, batch_size: int, tasks: Sequence[str] = QUESTIONS
    ) -> tuple[Packed, Seen]:
        """Random studies with random questions."""
        studies = self.corpus.for_telling()
        few = len(studies) < batch_size
        indices = rng.choice(studies, batch_size, replace=few).tolist()
        asked = [self.questions(i, rng, tasks) for i in indices]
        self.fill(indices, asked, rng, tasks)
        return self.pack(indices, asked), self.look(indices)

    def fill(
        self, indices: Sequence[int], asked: Sequence[list[Dialogue]], rng: np.random.Generator,
        tasks: Sequence[str],
    ) -> None:  # fmt: skip
        """Ask on where a row would be padded to the longest."""
        lengths = [sum(self.length(d) for d in row) for row in asked]
        longest = max(lengths)
        for index, row, length in zip(indices, asked, lengths, strict=True):
            truth, vocabulary = self.corpus.truth[index], self.corpus.vocabulary[index]
            while length < longest:
                task = tasks[int(rng.integers(len(tasks)))]
                dialogue = ask(task, truth, rng, vocabulary)
                if dialogue is not None:
                    length += self.length(dialogue)
                    if length <= longest:
                        row.append(dialogue)

    def length(self, dialogue: Dialogue) -> int:
        """Tokens of a question with its answer."""
        words = len(self.encode(dialogue.question)) + len(self.encode(dialogue.answer))
        return words + len(self.turn) + len(self.end)

    def questions(
        self, index: int, rng: np.random.Generator, tasks: Sequence[str] = QUESTIONS
    ) -> list[Dialogue]:
        """One of every kind that a study gives ground for."""
        truth, vocabulary = self.corpus.truth[index], self.corpus.vocabulary[index]
        asked = (ask(task, truth, rng, vocabulary) for task in tasks)
        return [dialogue for dialogue in asked if dialogue is not None]

    def look(self, indices: Sequence[int]) -> Seen:
        """What is seen of some studies."""
        geometry = torch.from_numpy(np.stack([self.corpus.geometry[i] for i in indices]))
        if self.features is not None:
            return Seen(geometry, torch.from_numpy(np.stack([self.features[i] for i in indices])))
        pixels = torch.from_numpy(np.stack([self.corpus.views[i] for i in indices]))
        cover = torch.from_numpy(np.stack([self.corpus.cover[i] for i in indices]))
        return Seen(geometry, pixels=pixels, cover=cover)

    def pack(self, indices: Sequence[int], dialogues: Sequence[Sequence[Dialogue]]) -> Packed:
        """One row a study: the shared prefix, then branches that see it and themselves only."""
        rows = []
        for asked in dialogues:
            ids, labels = list(self.prefix), [-100] * len(self.prefix)
            positions, branch = list(range(len(ids))), [0] * len(ids)
            weights = [0.0] * len(ids)
            for number, dialogue in enumerate(asked, 1):
                question = self.encode(dialogue.question) + self.turn
                answer = self.encode(dialogue.answer) + self.end
                start = len(self.prefix)
                ids += question + answer
                labels += [-100] * len(question) + answer
                positions += range(start, start + len(question) + len(answer))
                branch += [number] * (len(question) + len(answer))
                weights += [0.0] * len(question) + [len(answer) ** -0.5] * len(answer)
            rows.append((ids, labels, positions, branch, weights))
        longest = max(len(row[0]) for row in rows)
        padded = (
            torch.tensor([row[i] + [fill] * (longest - len(row[0])) for row in rows])
            for i, fill in enumerate((0, -100, 0, -1, 0.0))
        )
        return Packed(list(indices), *padded)

    def study_loss(self, packed: Packed, seen: Seen) -> torch.Tensor:
        """The answers' loss, and the patches' where the pictures are encoded anew."""
        hidden, features = self.study_hidden(packed, seen)
        labels = move(packed.labels, hidden.device)[:, 1:]
        answered = labels != -100  # few of a row's tokens: only they are worth logits
        logits = self.model.get_output_embeddings()(hidden[:, :-1][answered])
        weights = move(packed.weights, hidden.device)[:, 1:][answered]
        loss = weighted_loss(logits, labels[answered], weights)
        if seen.cover is None:
            return loss
        studies = features.unflatten(0, (len(packed.studies), -1))
        _, patches = self.model.see_patches(studies)
        presence, log_size = (told.flatten(0, 1) for told in patches)
        cover = move(seen.cover, self.model.device).flatten(0, 1).float() / 255.0
        unknown = torch.full_like(cover[:, 0], float("nan"))
        return loss + dense_loss(
            presence, log_size, cover, unknown, shown=move(self._shown, cover.device)
        )

    def study_hidden(
        self, packed: Packed, seen: Seen, blank: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states `[b, l, hidden]` and features; `blank` puts zeros in their place."""
        model, device = self.model, self.model.device
        if seen.features is not None:
            features = move(seen.features, device).flatten(0, 1).float()
        else:
            assert seen.pixels is not None
            tower = model.vision_tower
            studies = move(seen.pixels, device)
            features = tower(torch.cat([tower.preprocess.normalise(one) for one in studies]))
        features = features * (0.0 if blank else 1.0)
        study = torch.arange(len(packed.studies), device=device).repeat_interleave(
            self.corpus.num_views
        )
        geometry = move(seen.geometry, device).flatten(0, 1)
        views, regions = model.project_images(features, geometry, study)
        ids = move(packed.ids, device)
        embeds = model.get_input_embeddings()(ids)
        views, regions = views.to(embeds.dtype), regions.to(embeds.dtype)
        embeds = model.splice(embeds, ids == model.config.image_token_id, views, "image")
        embeds = model.splice(embeds, ids == model.config.region_token_id, regions, "region")
        output = model.language_model.get_decoder()(
            inputs_embeds=embeds, attention_mask=_mask(move(packed.branch, device), embeds.dtype),
            position_ids=move(packed.positions, device), use_cache=False,
        )  # fmt: skip
        return output.last_hidden_state, features

    def draw_speech(self, rng: np.random.Generator, n: int) -> Heard:
        """Random recordings with their words."""
        return self.recordings(self.speech.of_one_length(rng, n))

    def recordings(self, indices: np.ndarray) -> Heard:
        """Recordings with their words."""
        mel, lengths, texts = self.speech.batch(indices)
        rows, labels = [], []
        for length, text in zip(lengths.tolist(), texts, strict=True):
            tokens = -(-((length + 1) // 2) // self.model.config.audio_stack)
            question = self.encode(f"<|user|>{AUDIO * tokens}{TRANSCRIBE}") + self.turn
            answer = self.encode(text) + self.end
            rows.append(question + answer)
            labels.append([-100] * len(question) + answer)
        longest = max(map(len, rows))
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
        wanted = torch.tensor([r + [-100] * (longest - len(r)) for r in labels])
        return Heard(mel, lengths, ids, wanted)

    def speech_loss(self, batch: Heard) -> torch.Tensor:
        """The words' loss."""
        logits = self.speech_logits(batch)
        labels = move(batch.labels, logits.device)[:, 1:]
        return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels.flatten())

    def speech_logits(self, batch: Heard) -> torch.Tensor:
        """Of every token of the recordings, `[n, l, vocabulary]`."""
        model, device = self.model, self.model.device
        frames = model.encode_audio(move(batch.mel, device), move(batch.lengths, device))
        heard = torch.cat([model.audio_projector(f.float()) for f in frames])
        ids = move(batch.ids, device)
        embeds = model.get_input_embeddings()(ids)
        sound = ids == model.config.audio_token_id
        embeds = model.splice(embeds, sound, heard.to(embeds.dtype), "audio")
        return model.language_model(inputs_embeds=embeds, use_cache=False).logits

    @torch.no_grad()
    def held_out_accuracy(self, num: int = 24) -> str:
        """Whole answers right (teacher-forced) per task on held-out studies, seeing | blind."""
        self.model.eval()
        rng = np.random.default_rng(5)
        indices = list(self.corpus.held_out(num))
        asked = [self.questions(i, rng) for i in indices]
        packed, seen = self.pack(indices, asked), self.look(indices)
        report = []
        for blank in (False, True):
            with mixed_precision(self.model.device):
                hidden, _ = self.study_hidden(packed, seen, blank)
                best = self.model.get_output_embeddings()(hidden).argmax(-1).cpu()
            right = self._right(best, packed, asked)
            report.append(" ".join(f"{t} {np.mean(v):.2f}" for t, v in sorted(right.items())))
        self.model.train()
        return " | blind ".join(report)

    @staticmethod
    def _right(
        best: torch.Tensor, packed: Packed, asked: Sequence[Sequence[Dialogue]]
    ) -> dict[str, list[bool]]:
        right: dict[str, list[bool]] = {}
        for row, dialogues in enumerate(asked):
            wanted, given = packed.labels[row, 1:], best[row, :-1]
            good = (wanted == given) | (wanted == -100)
            # an answer is a run of labels; runs come in the order of the questions
            answered = wanted != -100
            starts = (answered & ~torch.cat([torch.tensor([False]), answered[:-1]])).nonzero()
            for start, dialogue in zip(starts.flatten().tolist(), dialogues, strict=True):
                stop = start
                while stop < len(wanted) and answered[stop]:
                    stop += 1
                right.setdefault(dialogue.task, []).append(bool(good[start:stop].all()))
        return right


def weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of tokens `[n, vocab]` against `[n]`, the mean by weights `[n]`."""
    lost = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return (lost * weights).sum() / weights.sum()


def _mask(branch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Who may look at whom, `[b, 1, l, l]`: back, and never into another question."""
    order = torch.arange(branch.shape[1], device=branch.device)
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    allowed = same & (order[None, :, None] >= order[None, None, :])
    mask = torch.zeros(allowed.shape, dtype=dtype, device=branch.device)
    return mask.masked_fill(~allowed, torch.finfo(torch.bfloat16).min)[:, None]
