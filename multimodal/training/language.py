"""Stage 3: projectors and language model learn to answer about what the frozen towers see and hear.

Tower features are computed once and kept. A training sequence is one study followed by many
questions that cannot see each other (a block mask), so each question must look at the images and
none can copy an earlier answer. The sparse gate is on from the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from multimodal.modeling import MultimodalForConditionalGeneration, trainable
from multimodal.processing import AUDIO, IMAGE, REGION, STUDY, STUDY_END, MultimodalProcessor
from multimodal.prompts import TRANSCRIBE
from multimodal.training.audio_pretraining import NUM_HELD_OUT, Utterances, speak_corpus
from multimodal.training.corpus import NUM_VIEWS, Corpus, open_corpus
from multimodal.training.loop import Schedule, Stage, mixed_precision, train
from multimodal.training.world.dialogues import Dialogue, ask

QUESTIONS = (
    *("presence",) * 2, "list", *("size",) * 2, "side", *("check",) * 6, "omission", "describe",
)  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """Studies with their questions as one batch: ids, labels, positions, mask `[b, 1, l, l]`."""

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


def encode_corpus(model: MultimodalForConditionalGeneration, work_dir: Path) -> np.ndarray:
    """Tower features of every study, float16 `[studies, 16, patches, width]`; computed once."""
    from numpy.lib.format import open_memmap
    from tqdm import tqdm

    corpus = open_corpus(work_dir)
    file, mark = work_dir / "features.npy", work_dir / "features.done"
    if mark.is_file():
        return np.load(file, mmap_mode="r")
    tower = model.vision_tower.eval()
    patches = tower.grid[0] * tower.grid[1]
    shape = (corpus.num_studies, NUM_VIEWS, patches, tower.width)
    features = open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
    with torch.inference_mode():
        for i in tqdm(range(corpus.num_studies), desc="encode", mininterval=10):
            pixels = tower.preprocess.normalise(torch.from_numpy(np.array(corpus.views[i])))
            features[i] = tower(pixels).half().numpy()
    mark.touch()
    return features


def train_language(
    model: MultimodalForConditionalGeneration,
    processor: MultimodalProcessor,
    work_dir: Path,
    schedule: Schedule,
    *,
    seed: int = 0,
    batch_size: int = 8,
) -> None:
    """Train the projectors and the backbone in place."""
    corpus, features = open_corpus(work_dir), encode_corpus(model, work_dir)
    speech = speak_corpus(work_dir, len(list((work_dir / "speech").glob("*.npz"))))
    torch.manual_seed(seed)
    trainable(model, lambda name: not name.startswith(("vision_tower", "audio_tower", "finding")))
    packer = Packer(processor, model, corpus, features, speech)

    def loss(step: int, rng: np.random.Generator) -> tuple[str, torch.Tensor]:
        kind = "speech" if step % 4 == 3 else "study"
        with mixed_precision():
            return kind, packer.loss(kind, rng, batch_size)

    stage = Stage("language", model, loss, packer.held_out_accuracy, lambda k: "_tower" not in k)
    train(stage, schedule, work_dir, seed=seed)


class Packer:
    """Turns studies, questions and recordings into losses of the model."""

    def __init__(
        self,
        processor: MultimodalProcessor,
        model: MultimodalForConditionalGeneration,
        corpus: Corpus,
        features: np.ndarray,
        speech: Utterances,
    ) -> None:
        self.processor, self.model, self.corpus = processor, model, corpus
        self.features, self.speech = features, speech
        num = model.config.tokens_per_view
        study = STUDY + IMAGE * (num * NUM_VIEWS) + REGION * len(model.config.regions) + STUDY_END
        self.prefix = self.encode(f"<|user|>{study}")
        self.end = self.encode("<|end|>")
        self.turn = self.encode("<|end|><|assistant|>")

    def encode(self, text: str) -> list[int]:
        """Text as token ids, nothing added."""
        return self.processor.tokenizer.encode(text, add_special_tokens=False)

    def loss(self, kind: str, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """The loss of one random batch of studies or of recordings."""
        if kind == "speech":
            return self._speech_loss(rng, 3 * batch_size)
        indices = rng.choice(self.corpus.training(), batch_size, replace=False)
        dialogues = []
        for index in indices:
            asked = [ask(task, self.corpus.truth[index], rng) for task in QUESTIONS]
            dialogues.append([d for d in asked if d is not None])
        packed = self.pack(dialogues)
        return self.study_logits(indices.tolist(), packed)[1]

    def pack(self, dialogues: Sequence[Sequence[Dialogue]]) -> Packed:
        """One row a study: the shared prefix, then branches that see it and themselves only."""
        rows = []
        for asked in dialogues:
            ids, labels = list(self.prefix), [-100] * len(self.prefix)
            positions, branch = list(range(len(ids))), [0] * len(ids)
            for number, dialogue in enumerate(asked, 1):
                question = self.encode(dialogue.question) + self.turn
                answer = self.encode(dialogue.answer) + self.end
                start = len(self.prefix)
                ids += question + answer
                labels += [-100] * len(question) + answer
                positions += range(start, start + len(question) + len(answer))
                branch += [number] * (len(question) + len(answer))
            rows.append((ids, labels, positions, branch))
        longest = max(len(row[0]) for row in rows)
        padded = [
            torch.tensor([row[i] + [fill] * (longest - len(row[0])) for row in rows])
            for i, fill in enumerate((0, -100, 0, -1))
        ]
        ids_, labels_, positions_, branch_ = padded
        order = torch.arange(longest)
        same = (branch_[:, :, None] == branch_[:, None, :]) | (branch_[:, None, :] == 0)
        allowed = same & (order[None, :, None] >= order[None, None, :])
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.bfloat16).min)
        return Packed(ids_, labels_, positions_, mask[:, None])

    def study_logits(
        self, indices: Sequence[int], packed: Packed, blank: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and loss of a packed batch; `blank` replaces the images' features by zeros."""
        model, width = self.model, self.features.shape[-1]
        features = torch.from_numpy(
            self.features[np.sort(indices)][np.argsort(np.argsort(indices))]
        )
        geometry = torch.from_numpy(np.stack([self.corpus.geometry[i] for i in indices]))
        features = features.float() * (0.0 if blank else 1.0)
        study = torch.arange(len(indices)).repeat_interleave(NUM_VIEWS)
        views, regions = model.project_images(
            features.reshape(len(study), -1, width), geometry.flatten(0, 1), study
        )
        embeds = model.get_input_embeddings()(packed.ids)
        views, regions = views.to(embeds.dtype), regions.to(embeds.dtype)
        embeds = model.splice(embeds, packed.ids == model.config.image_token_id, views, "image")
        embeds = model.splice(embeds, packed.ids == model.config.region_token_id, regions, "region")
        output = model.language_model(
            inputs_embeds=embeds, attention_mask=packed.mask.to(embeds.dtype),
            position_ids=packed.positions, labels=packed.labels, use_cache=False,
        )  # fmt: skip
        return output.logits, output.loss

    def _speech_loss(self, rng: np.random.Generator, n: int) -> torch.Tensor:
        indices = rng.integers(NUM_HELD_OUT, len(self.speech.texts), n)
        mel, lengths, texts = self.speech.batch(indices)
        model = self.model
        with torch.no_grad():
            frames = model.encode_audio(mel, lengths)
        heard = [model.audio_projector(f.float()) for f in frames]
        rows, labels = [], []
        for sound, text in zip(heard, texts, strict=True):
            question = self.encode(f"<|user|>{AUDIO * len(sound)}{TRANSCRIBE}") + self.turn
            answer = self.encode(text) + self.end
            rows.append(question + answer)
            labels.append([-100] * len(question) + answer)
        longest = max(map(len, rows))
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
        wanted = torch.tensor([r + [-100] * (longest - len(r)) for r in labels])
        embeds = model.get_input_embeddings()(ids)
        sound_mask = ids == model.config.audio_token_id
        embeds = model.splice(embeds, sound_mask, torch.cat(heard).to(embeds.dtype), "audio")
        return model.language_model(inputs_embeds=embeds, labels=wanted, use_cache=False).loss

    @torch.no_grad()
    def held_out_accuracy(self, num: int = 24) -> str:
        """Whole answers right (teacher-forced) per task on held-out studies, seeing | blind."""
        self.model.eval()
        rng = np.random.default_rng(5)
        indices = list(self.corpus.held_out(num))
        asked = [
            [d for d in (ask(t, self.corpus.truth[i], rng) for t in QUESTIONS) if d is not None]
            for i in indices
        ]
        packed = self.pack(asked)
        report = []
        for blank in (False, True):
            with mixed_precision():
                logits, _ = self.study_logits(indices, packed, blank)
            right = self._right(logits.argmax(-1), packed, asked)
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
