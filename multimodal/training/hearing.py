"""Stage 6: the audio tower and its projector learn to be understood by a language model left as it is.

Nothing that is said of images can change by it, so hearing may go on learning for itself.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from multimodal.modeling import MultimodalForConditionalGeneration, trainable
from multimodal.processing import MultimodalProcessor
from multimodal.training.audio_pretraining import NUM_HELD_OUT, masked, speak_corpus
from multimodal.training.corpus import open_corpus
from multimodal.training.language import Heard, Packer
from multimodal.training.loop import Schedule, Stage, mixed_precision, train

HEARING = ("audio_tower", "audio_projector")


def train_hearing(
    model: MultimodalForConditionalGeneration,
    processor: MultimodalProcessor,
    work_dir: Path,
    schedule: Schedule,
    *,
    num_spoken: int,
    seed: int = 0,
) -> None:
    """Train tower and projector in place on recordings of `num_spoken` sentences."""
    corpus = open_corpus(work_dir)
    speech = speak_corpus(work_dir, corpus.world, num_spoken)
    torch.manual_seed(seed)
    trainable(model, lambda name: name.startswith(HEARING))
    packer = Packer(processor, model, corpus, None, speech)

    def draw(_step: int, rng: np.random.Generator) -> Heard:
        heard = packer.draw_speech(rng, schedule.batch_size)
        return replace(heard, mel=masked(heard.mel, rng))

    def loss(batch: Heard) -> tuple[str, torch.Tensor]:
        with mixed_precision(model.device):
            return "speech", packer.speech_loss(batch)

    def check() -> str:
        return f"tokens right {tokens_right(packer):.4f}"

    stage = Stage("hearing", model, draw, loss, check, lambda name: name.startswith(HEARING))
    train(stage, schedule, work_dir, seed=seed)


@torch.no_grad()
def tokens_right(packer: Packer) -> float:
    """Share of the words' tokens foretold rightly (teacher-forced), of voices never trained on."""
    packer.model.eval()
    heard = packer.recordings(np.arange(min(NUM_HELD_OUT, len(packer.speech.texts))))
    with mixed_precision(packer.model.device):
        best = packer.speech_logits(heard).argmax(-1)[:, :-1].cpu()
    packer.model.train()
    wanted = heard.labels[:, 1:]
    return float((best == wanted)[wanted != -100].float().mean())
