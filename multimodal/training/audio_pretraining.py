"""Stage 2: the audio tower learns to hear letters (CTC, Graves et al. 2006) in spoken sentences.

The letter head is thrown away; its only purpose is a tower whose frames say what was spoken. In:
utterances of the generated world. Out: `audio.safetensors`. Resumable as stage 1 is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from encoders.audio import AudioTower, log_mel
from multimodal.training.loop import Schedule, Stage, mixed_precision, train
from multimodal.training.world.dialogues import sentences_to_dictate
from multimodal.training.world.dictation import HELD_OUT_VOICES, VOICES, synthesise
from multimodal.training.world.phantom import random_phantom

LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789."  # index 0 is CTC's blank
NUM_HELD_OUT = 200
TOWER = {
    "arch": {
        "d_model": 128, "encoder_layers": 4, "encoder_attention_heads": 4,
        "encoder_ffn_dim": 384, "num_mel_bins": 80, "max_source_positions": 500, "dropout": 0.0,
    },
    "variable_length": True,
}  # fmt: skip


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


def speak_corpus(work_dir: Path, num: int) -> Utterances:
    """Speak `num` sentences, or read those already spoken."""
    from tqdm import tqdm

    folder = work_dir / "speech"
    folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(num), desc="utterances", mininterval=10):
        file = folder / f"{index}.npz"
        if file.is_file():
            continue
        rng = np.random.default_rng((77, index))
        text = sentences_to_dictate(random_phantom(rng).truth, rng)
        voices = HELD_OUT_VOICES if index < NUM_HELD_OUT else VOICES
        speech = synthesise(text, voices[index % len(voices)], rng)
        np.savez(file, mel=log_mel(speech).numpy().astype(np.float16), text=json.dumps(text))
    loaded = [np.load(folder / f"{i}.npz") for i in range(num)]
    return Utterances([f["mel"] for f in loaded], [json.loads(str(f["text"])) for f in loaded])


class CtcModel(nn.Module):
    """Audio tower and letter head."""

    def __init__(self, tower: AudioTower) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(self.tower.width, len(LETTERS) + 1)

    def forward(self, mel: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """`[n, 80, frames]` -> letter logits `[n, ceil(frames / 2), letters + 1]`."""
        return self.head(self.tower(mel, lengths))


def train_audio(
    tower: AudioTower, speech: Utterances, work_dir: Path, schedule: Schedule, *, seed: int = 0,
    batch_size: int = 24,
) -> None:  # fmt: skip
    """Train the tower in place."""
    torch.manual_seed(seed)
    model = CtcModel(tower)
    by_length = np.argsort([m.shape[1] for m in speech.mels])
    by_length = by_length[by_length >= NUM_HELD_OUT]

    def loss(_step: int, rng: np.random.Generator) -> tuple[str, torch.Tensor]:
        first = rng.integers(0, len(by_length) - batch_size)
        mel, lengths, texts = speech.batch(by_length[first : first + batch_size])
        with mixed_precision():
            logits = model(_masked(mel, rng), lengths)
        return "ctc", ctc_loss(logits, lengths, texts)

    def check() -> str:
        return f"letter errors {letter_error_rate(model, speech):.3f}"

    train(Stage("audio", model, loss, check), schedule, work_dir, seed=seed)


def ctc_loss(logits: torch.Tensor, lengths: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """CTC loss per letter."""
    targets = [_letters(text) for text in texts]
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
    mel, lengths, texts = speech.batch(np.arange(num))
    best = model(mel, lengths).argmax(-1)
    model.train()
    wrong = total = 0
    for row, length, text in zip(best, (lengths + 1) // 2, texts, strict=True):
        merged = torch.unique_consecutive(row[: int(length)])
        heard = [i for i in merged.tolist() if i]
        wrong += edit_distance(heard, _letters(text))
        total += len(_letters(text))
    return wrong / total


def edit_distance(a: list[int] | list[str], b: list[int] | list[str]) -> int:
    """Levenshtein distance (torchaudio's)."""
    from torchaudio.functional import edit_distance as distance

    return distance(a, b)


def _letters(text: str) -> list[int]:
    return [LETTERS.index(c) + 1 for c in text.lower() if c in LETTERS]


def _masked(mel: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """SpecAugment (Park et al. 2019): hide a band of mels and a stretch of time."""
    mel = mel.clone()
    band, at = int(rng.integers(0, 16)), int(rng.integers(0, 64))
    mel[:, at : at + band] = 0.0
    stretch, start = int(rng.integers(0, 20)), int(rng.integers(0, mel.shape[2]))
    mel[:, :, start : start + stretch] = 0.0
    return mel
