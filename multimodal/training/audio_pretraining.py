"""Stage 2: the audio tower learns to hear letters (CTC, Graves et al. 2006) in spoken sentences.

The letter head is thrown away; its only purpose is a tower whose frames say what was spoken. In:
utterances of the generated world. Out: the tower, trained in place. Chinese is heard character by
character.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from encoders.audio import AudioTower, log_mel
from multimodal.training.loop import Schedule, Stage, mixed_precision, move, train
from multimodal.training.world.dialogues import sentences_to_dictate
from multimodal.training.world.dictation import HELD_OUT_VOICES, VOICES, synthesise
from multimodal.training.world.reports import Writer
from multimodal.training.world.worlds import World

LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789."
NUM_HELD_OUT = 200
MAX_FRAMES = 1000  # the ten seconds of the tower's window; what takes longer is not spoken


@dataclass(frozen=True)
class Utterances:
    """Spoken sentences on disk: the first `NUM_HELD_OUT` by voices never trained on."""

    mels: list[np.ndarray]
    texts: list[str]

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Padded log-mel `[n, 80, frames]`, lengths `[n]`, texts."""
        mels = [torch.from_numpy(self.mels[i].astype(np.float32)) for i in indices]
        lengths = torch.tensor([m.shape[1] for m in mels])
        longest = int(lengths.max())
        padded = [nn.functional.pad(m, (0, longest - m.shape[1])) for m in mels]
        return torch.stack(padded), lengths, [self.texts[i] for i in indices]

    def of_one_length(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Which `n` to learn from next: about as long as each other, as silence behind costs as much.

        Every other time all hold a figure: most of what is misheard is numbers.
        """
        order = self._with_figures if rng.random() < 0.5 else self._by_length
        if len(order) < n:
            order = self._by_length
        first = rng.integers(0, max(len(order) - n + 1, 1))
        return order[first : first + n]

    @cached_property
    def _by_length(self) -> np.ndarray:
        order = np.argsort([mel.shape[1] for mel in self.mels])
        return order[order >= NUM_HELD_OUT]

    @cached_property
    def _with_figures(self) -> np.ndarray:
        held = [any(c.isdigit() for c in self.texts[i]) for i in self._by_length]
        return self._by_length[np.array(held, bool)]

    @property
    def letters(self) -> str:
        """Every letter, figure and Chinese character that is spoken, in one fixed order."""
        spoken = {c for text in self.texts for c in text.lower()}
        return LETTERS + "".join(sorted(c for c in spoken if "一" <= c <= "鿿"))


def dictate(
    world: World, rng: np.random.Generator, number: int, *, held_out: bool
) -> tuple[str, np.ndarray]:
    """A sentence of a random study, and its recording; voices come in turn."""
    truth, vocabulary = world.truth(rng)
    writer = Writer(truth, rng, vocabulary)
    text = sentences_to_dictate(writer)
    voices = (HELD_OUT_VOICES if held_out else VOICES)[writer.language]
    voice = voices[number % len(voices)]
    return text, synthesise(text, voice, rng, microphone=vocabulary.rich and rng.random() < 0.7)


def speak_corpus(work_dir: Path, world: World, num: int, num_workers: int = 2) -> Utterances:
    """Speak `num` sentences, or read those already spoken."""
    from tqdm import tqdm

    folder = work_dir / "speech"
    folder.mkdir(parents=True, exist_ok=True)

    def speak(index: int) -> None:
        file = folder / f"{index}.npz"
        if file.is_file():
            return
        rng = np.random.default_rng((77, index))
        mel = None
        while mel is None or mel.shape[1] > MAX_FRAMES:
            text, speech = dictate(world, rng, index, held_out=index < NUM_HELD_OUT)
            mel = log_mel(speech)
        beside = folder / f"{index}.new.npz"
        np.savez(beside, mel=mel.numpy().astype(np.float16), text=json.dumps(text))
        beside.replace(file)

    with ThreadPoolExecutor(num_workers) as pool:  # espeak-ng works in processes of its own
        list(tqdm(pool.map(speak, range(num)), total=num, desc="utterances", mininterval=10))
    loaded = [np.load(folder / f"{i}.npz") for i in range(num)]
    return Utterances([f["mel"] for f in loaded], [json.loads(str(f["text"])) for f in loaded])


class CtcModel(nn.Module):
    """Audio tower and letter head."""

    def __init__(self, tower: AudioTower, num_letters: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(self.tower.width, num_letters + 1)

    def forward(self, mel: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """`[n, 80, frames]` -> letter logits `[n, ceil(frames / 2), letters + 1]`."""
        return self.head(self.tower(mel, lengths))


_Batch = tuple[torch.Tensor, torch.Tensor, list[str]]


def train_audio(
    tower: AudioTower, speech: Utterances, work_dir: Path, schedule: Schedule, *, seed: int = 0
) -> None:
    """Train the tower in place."""
    torch.manual_seed(seed)
    device, letters = next(tower.parameters()).device, speech.letters
    model = CtcModel(tower, len(letters)).to(device)

    def draw(_step: int, rng: np.random.Generator) -> _Batch:
        mel, lengths, texts = speech.batch(speech.of_one_length(rng, schedule.batch_size))
        return masked(mel, rng), lengths, texts

    def loss(batch: _Batch) -> tuple[str, torch.Tensor]:
        mel, lengths, texts = batch
        with mixed_precision(device):
            logits = model(move(mel, device), move(lengths, device))
        return "ctc", ctc_loss(logits, lengths, texts, letters)

    def check() -> str:
        return f"letter errors {letter_error_rate(model, speech):.3f}"

    train(Stage("audio", model, draw, loss, check), schedule, work_dir, seed=seed)


def ctc_loss(
    logits: torch.Tensor, lengths: torch.Tensor, texts: Sequence[str], letters: str
) -> torch.Tensor:
    """CTC loss per letter; index 0 is the blank."""
    targets = [_indices(text, letters) for text in texts]
    return nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        torch.tensor([i for t in targets for i in t]),
        (lengths + 1) // 2,
        torch.tensor([len(t) for t in targets]),
        zero_infinity=True,
    )


@torch.no_grad()
def letter_error_rate(model: CtcModel, speech: Utterances, num: int = 64) -> float:
    """Edit distance per letter of the greedy CTC reading, on voices never trained on."""
    model.eval()
    device, letters = next(model.parameters()).device, speech.letters
    mel, lengths, texts = speech.batch(np.arange(min(num, len(speech.texts))))
    best = model(mel.to(device), lengths.to(device)).argmax(-1).cpu()
    model.train()
    wrong = total = 0
    for row, length, text in zip(best, (lengths + 1) // 2, texts, strict=True):
        merged = torch.unique_consecutive(row[: int(length)])
        heard = [i for i in merged.tolist() if i]
        wrong += edit_distance(heard, _indices(text, letters))
        total += len(_indices(text, letters))
    return wrong / total


def edit_distance(a: list[int] | list[str], b: list[int] | list[str]) -> int:
    """Levenshtein distance (torchaudio's)."""
    from torchaudio.functional import edit_distance as distance

    return distance(a, b)


def _indices(text: str, letters: str) -> list[int]:
    return [letters.index(c) + 1 for c in text.lower() if c in letters]


def masked(mel: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """SpecAugment (Park et al. 2019): hide a band of mels and a stretch of time."""
    mel = mel.clone()
    band, at = int(rng.integers(0, 16)), int(rng.integers(0, 64))
    mel[:, at : at + band] = 0.0
    stretch, start = int(rng.integers(0, 20)), int(rng.integers(0, mel.shape[2]))
    mel[:, :, start : start + stretch] = 0.0
    return mel
