"""Makes small real things for tests: DICOM series, checkpoints of the real classes, a fake backend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from encoders.dicom import write_ct_series
from multimodal.backends import (
    Capabilities,
    Estimate,
    Finished,
    GenerateOptions,
    Load,
    Logprob,
    Novelty,
    Token,
    Usage,
)
from multimodal.messages import Message, Study
from multimodal.prompts import SIZES
from multimodal.review import ReviewWeights
from multimodal.sizes import measure_media


def peak_mib() -> float:
    """This process's own peak memory; getrusage would give a child that of its parent at least."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


BLOCKS_SHAPE = (24, 64, 48)
BLOCKS_SPACING = (4.0, 1.5, 2.0)  # slice, row, column in mm
# (LPS centre in mm relative to the volume's middle, HU): left, back and head each have their own
BLOCKS = {
    "left": ((30.0, 0.0, 0.0), 300),
    "back": ((0.0, 30.0, 0.0), 600),
    "head": ((0.0, 0.0, 30.0), 900),
}


def write_blocks(
    folder: Path,
    row: Sequence[float] = (1, 0, 0),
    column: Sequence[float] = (0, 1, 0),
    patient_position: str = "HFS",
    shape: tuple[int, int, int] = BLOCKS_SHAPE,
) -> tuple[np.ndarray, np.ndarray]:
    """Three blocks in a patient, written with the given row and column direction cosines.

    Returns the voxels and the (slice, row, column) -> LPS affine written.
    """
    normal = np.cross(row, column)
    ds, dr, dc = BLOCKS_SPACING
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
        normal * ds,
        np.array(column) * dr,
        np.array(row) * dc,
    )
    middle = (np.array(shape) - 1) / 2
    affine[:3, 3] = -(affine[:3, :3] @ middle) + [5.0, -7.0, 11.0]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    mm = grid @ affine[:3, :3].T + affine[:3, 3] - [5.0, -7.0, 11.0]
    voxels = np.full(shape, -1000, np.int16)
    voxels[(np.abs(mm) < 40).all(-1)] = 0
    for centre, hu in BLOCKS.values():
        voxels[(np.abs(mm - centre) < 9).all(-1)] = hu
    write_ct_series(voxels, affine, folder, patient_position=patient_position)
    return voxels, affine


def centre_of(volume: Any, hu: int) -> np.ndarray:
    """LPS mm of the mean voxel with this value."""
    index = np.argwhere(volume.voxels == hu).mean(0)
    return volume.at(index)


WORDS = [
    "is",
    "there",
    "a",
    "the",
    "right",
    "left",
    "lung",
    "nodule",
    "effusion",
    "report",
    "agrees",
    "yes",
    "no",
    "findings",
    "mm",
    "large",
    "how",
    "list",
    "transcribe",
    "recording",
    "user",
    "assistant",
    "system",
    "direction",
    "insertion",
    "remove",
    "of",
    "and",
    "in",
]


def tokenizer() -> Any:
    """A word-level tokenizer with an end token, of the fast class every checkpoint uses."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "<pad>", "</s>", *WORDS, *"0123456789.?!:;,-<>|"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        padding_side="left",
    )


_SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "num_key_value_heads": 4,
}  # fmt: skip
BACKBONES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "mistral": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8}, "phi3": {},
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": _MLA, "deepseek_v3": _MLA,
}  # fmt: skip
DENSE_GATED = ("llama", "qwen2", "qwen3", "mistral", "gemma2")
EXPERTS = ("qwen2_moe", "olmoe", "deepseek_v2", "deepseek_v3")


def backbone(kind: str) -> Any:
    """A random causal language model of a real class."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=96,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=2,
        **{**_SMALL, **BACKBONES[kind]},
    )
    return AutoModelForCausalLM.from_config(config).eval()


def save_backbone(kind: str, folder: Path) -> Path:
    """`backbone(kind)` and its tokenizer in the Hub's format."""
    backbone(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A random CLIP with its image processor."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(1)
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    text = {**vision, "vocab_size": 50, "num_hidden_layers": 1}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_whisper(folder: Path) -> Path:
    """A random Whisper with a window of four seconds."""
    import torch
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(2)
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=80,
        max_source_positions=200, vocab_size=60, max_target_positions=32,
        pad_token_id=1, bos_token_id=2, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    return folder


def tiny_composite(folder: Path) -> tuple[Any, Any]:
    """`compose` of the tiny CLIP, Whisper and Llama, with a finding head of two findings."""
    import torch

    from multimodal.composition import compose

    for name in ("clip", "whisper", "llama"):
        (folder / name).mkdir()
    save_clip(folder / "clip")
    save_whisper(folder / "whisper")
    save_backbone("llama", folder / "llama")
    torch.manual_seed(3)
    return compose(
        str(folder / "clip"), str(folder / "whisper"), folder / "llama",
        findings=(("nodule", True), ("cardiomegaly", False)),
    )  # fmt: skip


NEAR = Novelty(0.0, 1.0)


@dataclass
class FakeBackend:
    """Answers from a script and remembers what it was asked.

    `answers` maps a word of the prompt to the text given back; `chances` likewise to the
    probability of the first choice. `sure` is how likely words of an answer are, for who asks.
    """

    answers: dict[str, str] = field(default_factory=dict)
    chances: dict[str, float] = field(default_factory=dict)
    findings: tuple[tuple[str, bool], ...] = (("nodule", True), ("cardiomegaly", False))
    modalities: frozenset[str] = frozenset({"text", "image", "audio", "dicom"})
    regions: tuple[Any, ...] = ()
    far: Novelty | None = NEAR
    review: ReviewWeights | None = None
    sure: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closed: bool = False

    def capabilities(self) -> Capabilities:
        return Capabilities(  # type: ignore[arg-type]
            "fake", self.modalities, self.findings, 4096, bool(self.findings), review=self.review
        )

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        options = options or GenerateOptions()
        prompt = messages[-1].text
        self.asked.append(prompt)
        usage = Usage(len(prompt.split()), 1, 0)
        regions = self.regions if options.ground else ()
        if options.choices:
            first = next(
                (p for word, p in self.chances.items() if word in prompt),
                0.01 if "yes" in options.choices or options.choices == SIZES else 0.99,
            )
            rest = (1 - first) / (len(options.choices) - 1)
            chances = {c: first if i == 0 else rest for i, c in enumerate(options.choices)}
            kind = self._answer(prompt).partition(":")[0]
            if (
                kind in chances and kind != options.choices[0]
            ):  # the scripted error is the likeliest
                chances = {c: first if i == 0 else 0.0 for i, c in enumerate(options.choices)}
                chances[kind] = 1 - first
            yield Finished(max(chances, key=lambda c: chances[c]), "stop", usage, chances, regions)
            return
        text = self._answer(prompt)
        for word in text.split(" "):
            told = options.logprobs is not None and word in self.sure
            yield Token(word + " ", (Logprob(word, math.log(self.sure[word])),) if told else ())
        yield Finished(text, "stop", usage, {}, regions)

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        words = sum(len(message.text.split()) for message in messages)
        return Estimate(
            words, (options or GenerateOptions()).max_new_tokens, measure_media(messages)
        )

    def load(self) -> Load:
        return Load()

    def close(self) -> None:
        self.closed = True

    def novelty(self, study: Study) -> Novelty | None:
        return self.far

    def _answer(self, prompt: str) -> str:
        return next((a for word, a in self.answers.items() if word in prompt), "no findings")


def write_sr(file: Path, *sentences: str) -> Path:
    """A Basic Text SR (PS3.3 A.35.1) of these sentences, with a patient's name in its header."""
    import pydicom
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.BasicTextSRStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[file.name])
    report = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    report.SOPClassUID, report.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    report.Modality, report.PatientName, report.ValueType = "SR", "Zebra^Quagga", "CONTAINER"
    report.ContentSequence = []
    for sentence in sentences:
        item = Dataset()
        item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", sentence
        report.ContentSequence.append(item)
    report.save_as(file, enforce_file_format=True)
    return file
