"""Does the demo checkpoint truly read? Measured on generated studies that nobody trained on.

`make eval-demo`, or python -m multimodal.training.evaluation. Every study is written as DICOM,
read back and asked through the same backend as any other. The numbers go to `evaluation.json`
and into the model card, with the checksum of the weights they belong to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encoders.dicom import Volume, load_volume, write_ct_series
from multimodal import prompts
from multimodal.backends import DEMO, Finished, GenerateOptions, Region, collect
from multimodal.local import LocalBackend
from multimodal.messages import Audio, Study, user
from multimodal.prompts import NamedFinding
from multimodal.sparse import counting_flops, set_sparsity
from multimodal.training.audio_pretraining import edit_distance
from multimodal.training.corpus import SHAPES
from multimodal.training.vision_pretraining import auroc
from multimodal.training.world.dialogues import Dialogue, ask, sentences_to_dictate
from multimodal.training.world.dictation import HELD_OUT_VOICES, synthesise
from multimodal.training.world.phantom import Rendered, random_phantom, render
from multimodal.training.world.reports import all_keys

logger = logging.getLogger(__name__)

FIRST_SEED = 500_000  # far beyond every corpus
VERDICTS = (prompts.AGREES, *prompts.ERROR_TYPES)
LEVELS = (0.0, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Case:
    """An unseen study, read back from DICOM, with its truth and its questions."""

    volume: Volume
    rendered: Rendered
    truth: list[NamedFinding]
    questions: tuple[Dialogue, ...]


@dataclass
class Scores:
    """What was asked and what came back, gathered over studies."""

    presence: list[tuple[str, bool, float]] = field(default_factory=list)
    listed: list[tuple[int, int, int]] = field(default_factory=list)  # hits, said, true
    size_error_mm: list[float] = field(default_factory=list)
    side: list[bool] = field(default_factory=list)
    check: list[tuple[str, str, float, bool]] = field(default_factory=list)  # true, said, p, exact
    omission: list[tuple[bool, float, bool]] = field(default_factory=list)
    pointed: list[bool] = field(default_factory=list)
    withheld: list[bool] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """The figures of the model card."""
        keys = sorted({key for key, _, _ in self.presence})
        rows = {k: [(t, p) for key, t, p in self.presence if key == k] for k in keys}
        hits, said, true = (sum(column) for column in zip(*self.listed, strict=True))
        wrong = [(t, s, exact) for t, s, _, exact in self.check if t != prompts.AGREES]
        return {
            "presence balanced accuracy": _mean(_balanced(r) for r in rows.values()),
            "presence AUROC": _mean(
                auroc(np.array([p for _, p in r]), np.array([t for t, _ in r]))
                for r in rows.values()
            ),
            "list F1": 2 * hits / max(said + true, 1),
            "size mean error (mm)": _mean(self.size_error_mm),
            "side accuracy": _mean(self.side),
            "check balanced accuracy": _balanced([(t != prompts.AGREES, p) for t, _, p, _ in self.check]),
            "check error type": _mean(t == s for t, s, _ in wrong),
            "check correction exact": _mean(exact for _, _, exact in wrong),
            "omission balanced accuracy": _balanced([(t, p) for t, p, _ in self.omission]),
            "omission correction exact": _mean(e for t, _, e in self.omission if t),
            "pointing accuracy": _mean(self.pointed),
            "withheld as out of range": _mean(self.withheld),
        }  # fmt: skip

    def per_finding(self) -> dict[str, float]:
        """Balanced accuracy of presence for every (side, finding)."""
        keys = sorted({key for key, _, _ in self.presence})
        return {k: _balanced([(t, p) for key, t, p in self.presence if key == k]) for k in keys}

    def per_mistake(self) -> dict[str, float]:
        """Share of each planted mistake that was noticed, and of true sentences let stand."""
        kinds = sorted({t for t, _, _, _ in self.check})
        return {
            kind: _mean((p >= 0.5) == (kind != prompts.AGREES) for t, _, p, _ in self.check if t == kind)
            for kind in kinds
        }  # fmt: skip


def _mean(values: Any) -> float:
    listed = [float(v) for v in values]
    return float(np.nanmean(listed)) if listed else float("nan")


def _balanced(rows: Sequence[tuple[bool, float]]) -> float:
    """Mean of sensitivity and specificity at probability one half."""
    return _mean(_mean((p >= 0.5) == t for t, p in rows if t == wanted) for wanted in (True, False))


def make_case(seed: int) -> Case:
    """Study `seed`: drawn, written as DICOM CT, read back; its questions drawn from the same seed."""
    rng = np.random.default_rng((FIRST_SEED, seed))
    body = random_phantom(rng)
    rendered = render(body, SHAPES[seed % len(SHAPES)], rng)
    with tempfile.TemporaryDirectory(prefix="crossread-") as folder:
        write_ct_series(rendered.voxels, rendered.affine, Path(folder))
        volume = load_volume(Path(folder))
    tasks = ("size", "side", *("check",) * 5, "omission")
    questions = [ask(task, body.truth, rng) for task in tasks]
    return Case(volume, rendered, body.truth, tuple(q for q in questions if q is not None))


def blanked(case: Case) -> Case:
    """The same study with air where the images were."""
    air = np.full_like(case.volume.voxels, -1000)
    return replace(case, volume=replace(case.volume, voxels=air))


def examine(backend: LocalBackend, case: Case, scores: Scores) -> None:
    """Ask everything about one study."""
    study = Study(case.volume)

    def say(prompt: str, choices: tuple[str, ...] = (), ground: bool = False) -> Finished:
        options = GenerateOptions(max_new_tokens=96, choices=choices, ground=ground)
        return collect(backend.generate([user(study, prompt)], options))

    novelty = backend.novelty(study)
    scores.withheld.append(novelty is not None and novelty.out_of_range)
    listed = say(prompts.LIST_FINDINGS, ground=True)
    named = {(f.name, f.side) for f in prompts.parse_findings(listed.text)}
    true = {(f.name, f.side) for f in case.truth}
    scores.listed.append((len(named & true), len(named), len(true)))
    scores.pointed += [_hits(region, case) for region in listed.regions
                       if (region.finding, region.side) in true]  # fmt: skip
    for name, side in all_keys():
        yes = say(prompts.ask_presence(name, side), ("yes", "no")).choices["yes"]
        scores.presence.append((f"{side or ''} {name}".strip(), (name, side) in true, yes))
    for question in case.questions:
        _mark(question, say, scores)


def _mark(question: Dialogue, say: Callable[..., Finished], scores: Scores) -> None:
    if question.task == "size":
        given = prompts.parse_size_mm(say(question.question).text)
        true = prompts.parse_size_mm(question.answer)
        assert true is not None
        scores.size_error_mm.append(abs(given - true) if given is not None else true)
    elif question.task == "side":
        scores.side.append(say(question.question).text == question.answer)
    elif question.task == "check":
        chances = say(question.question, VERDICTS).choices
        kind = max(chances, key=lambda k: chances[k])
        exact = say(question.question).text == question.answer
        scores.check.append((question.label, kind, 1 - chances[prompts.AGREES], exact))
    elif question.task == "omission":
        chances = say(question.question, (prompts.NOTHING_OMITTED, "omission")).choices
        exact = say(question.question).text == question.answer
        scores.omission.append((question.label == "omission", chances["omission"], exact))


def _hits(region: Region, case: Case) -> bool:
    """Whether the box lies on the finding: right slab of slices, and over its mask there."""
    masks = {(name, str(side)): mask for (name, side), mask in case.rendered.masks.items()}
    mask = masks.get((region.finding, str(region.side)))
    if mask is None or region.source.slice_range is None:
        return False
    x0, y0, x1, y1 = (round(v) for v in region.box)
    start, stop = region.source.slice_range
    return bool(mask[start:stop, max(y0, 0) : y1, max(x0, 0) : x1].any())


def dictations(backend: LocalBackend, num: int) -> dict[str, float]:
    """Word error rate on voices never trained on, and the check of dictated sentences."""
    errors = words = 0
    typed_same = []
    for seed in range(num):
        rng = np.random.default_rng((FIRST_SEED, 7, seed))
        truth = random_phantom(rng).truth
        text = sentences_to_dictate(truth, rng)
        speech = synthesise(text, HELD_OUT_VOICES[seed % len(HELD_OUT_VOICES)], rng)
        message = user(Audio(speech, 16000), prompts.TRANSCRIBE)
        heard = collect(backend.generate([message], GenerateOptions(max_new_tokens=96))).text
        errors += edit_distance(text.split(), heard.split())
        words += len(text.split())
        typed_same.append(text == heard)
    return {
        "dictation word error rate": errors / words,
        "dictation sentences exact": _mean(typed_same),
    }


@torch.inference_mode()
def answer_loss(backend: LocalBackend, cases: Sequence[Case]) -> float:
    """Mean negative log-likelihood per token of the true answers to the checks."""
    total = count = 0.0
    processor = backend.processor
    for case in cases:
        for question in case.questions:
            content = [
                {"type": "dicom", "dicom": case.volume},
                {"type": "text", "text": question.question},
            ]
            inputs = processor.process([[{"role": "user", "content": content}]]).tensors
            answer = processor.tokenizer(
                f"{question.answer}<|end|>", return_tensors="pt", add_special_tokens=False
            ).input_ids  # fmt: skip
            start = inputs["input_ids"].shape[1]
            whole = {k: v for k, v in inputs.items() if k != "attention_mask"}
            whole["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
            logits = backend.model(**whole).logits[0, start - 1 : -1].float()
            total += float(torch.nn.functional.cross_entropy(logits, answer[0], reduction="sum"))
            count += answer.shape[1]
    return total / count


def sparsity_curve(backend: LocalBackend, cases: Sequence[Case]) -> Iterator[dict[str, float]]:
    """Loss, accuracy and executed share of the MLPs' multiply-adds at several sparsities."""
    model = backend.model.language_model
    config = backend.model.config.sparsity
    for level in LEVELS:
        set_sparsity(model, level)
        scores = Scores()
        with counting_flops(model) as flops:
            for case in cases:
                examine(backend, case, scores)
        summary = scores.summary()
        names = ("presence balanced accuracy", "list F1", "check balanced accuracy")
        yield {"sparsity": level, "answer loss": answer_loss(backend, cases),
               **{n: summary[n] for n in names}, "MLP skipped, decoding": flops.skipped_in_decode,
               "MLP skipped, all": flops.skipped}  # fmt: skip
    set_sparsity(model, config["sparsity"])


def evaluate(model: Path, num_studies: int, num_dictations: int) -> dict[str, Any]:
    """Everything the model card tells."""
    from tqdm import tqdm

    backend = LocalBackend.from_pretrained(model, device="cpu")
    seeing, blind = Scores(), Scores()
    for seed in tqdm(range(num_studies), desc="studies"):
        case = make_case(seed)
        examine(backend, case, seeing)
        examine(backend, blanked(case), blind)
    few = [make_case(seed) for seed in range(max(num_studies // 5, 2))]
    return {
        "weights_sha256": hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest(),
        "studies": num_studies,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "seeing": seeing.summary() | dictations(backend, num_dictations),
        "blanked": blind.summary(),
        "presence per finding": seeing.per_finding(),
        "check per mistake": seeing.per_mistake(),
        "sparsity": list(sparsity_curve(backend, few)),
        "sparsity_studies": len(few),
    }


def card_table(found: dict[str, Any]) -> str:
    """The numbers as Markdown, for between the card's marks."""
    lines = ["| | with images | images blanked |", "|---|---|---|"]
    for name, value in found["seeing"].items():
        blind = found["blanked"].get(name)
        lines.append(f"| {name} | {value:.3f} | {'' if blind is None else f'{blind:.3f}'} |")
    lines += ["", "| presence, balanced accuracy | |", "|---|---|"]
    lines += [f"| {k} | {v:.3f} |" for k, v in found["presence per finding"].items()]
    lines += ["", "| sentence | judged rightly |", "|---|---|"]
    lines += [f"| {k} | {v:.3f} |" for k, v in found["check per mistake"].items()]
    heads = list(found["sparsity"][0])
    lines += ["", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(f"{row[h]:.3f}" for h in heads) + " |" for row in found["sparsity"]]
    count, few = found["studies"], found["sparsity_studies"]
    checksum = found["weights_sha256"][:16]
    lines += ["", f"{count} unseen studies ({few} for the sparsity table), {found['machine']};"
              f" weights SHA-256 {checksum}…. Made by `make eval-demo`."]  # fmt: skip
    return "\n".join(lines)


def write_card(folder: Path, found: dict[str, Any]) -> None:
    """Put the numbers between the marks of the model card, and into `evaluation.json`."""
    (folder / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- numbers -->")
    _, _, after = rest.partition("<!-- end of numbers -->")
    numbers = f"<!-- numbers -->\n{card_table(found)}\n<!-- end of numbers -->"
    card.write_text(before + numbers + after, encoding="utf-8")


def main() -> None:
    """Command line of the evaluation."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--studies", type=int, default=120)
    parser.add_argument("--dictations", type=int, default=120)
    options = parser.parse_args()
    found = evaluate(options.model, options.studies, options.dictations)
    write_card(options.model, found)
    logger.info("\n%s", card_table(found))


if __name__ == "__main__":
    main()
