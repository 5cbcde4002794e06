"""Does the demo checkpoint truly read? Measured on generated studies that nobody trained on.

`make eval-demo`, or python -m multimodal.training.evaluation; resumes after a kill. Every study is
written as DICOM, read back and asked through the same backend as any other. The numbers go to
`evaluation.json` and into the model card, with the checksum of the weights they belong to.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import pickle
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encoders.audio import RATE_HZ
from multimodal import prompts
from multimodal.backends import DEMO, Region
from multimodal.heard import how_surely, write_down
from multimodal.local import LocalBackend
from multimodal.measuring import median_mm
from multimodal.messages import Study
from multimodal.review import OMISSION, ReviewWeights, sizes_of
from multimodal.sparse import counting_flops, set_sparsity
from multimodal.terms import is_chinese
from multimodal.training.audio_pretraining import dictate, edit_distance
from multimodal.training.card import card_table, write_card
from multimodal.training.cases import (
    FIRST_SEED,
    Case,
    Talk,
    blanked,
    make_case,
    processes,
    world_of,
)
from multimodal.training.measures import Asked, Pointed, Scores, mean
from multimodal.training.probes import hidden_regions, reading_time, strange_studies
from multimodal.training.reviews import judge, judge_report, without_typos
from multimodal.training.world.dialogues import Dialogue
from multimodal.training.world.reports import all_keys

logger = logging.getLogger(__name__)

LEVELS = (0.0, 0.3, 0.5, 0.7, 0.9)
CURVE_STUDIES = 20  # at each; what the gate loses at its default is measured on many more
CURVE = ("presence balanced accuracy", "list F1", "check balanced accuracy")
GATED = (
    *CURVE, "side accuracy", "omission balanced accuracy", "report AUROC", "report correction exact"
)  # fmt: skip
FORMAT = 6  # of what is kept
CHUNK = 10  # studies that a process examines before it tells what it found
FEW = 80  # studies at most for what is asked of each many times over
DICTATED = 200  # studies at most whose reports are spoken


def examine(backend: LocalBackend, case: Case, scores: Scores) -> None:
    """Ask everything about one study."""
    talk = Talk(backend, case)
    novelty = backend.novelty(Study(case.volume))
    if novelty is not None:
        scores.novelty.append(novelty.score / novelty.limit)
    named = {(f.name, f.side) for f in prompts.parse_findings(talk.listed.text)}
    true = {(f.name, f.side) for f in case.truth}
    scores.listed.append((len(named & true), len(named), len(true)))
    answers = talk.presence(all_keys(case.vocabulary))
    weights = ReviewWeights.read(backend.model.config.review_weights)
    presence = talk.believed(answers, weights)
    for region in talk.listed.regions:
        key = (region.finding, region.side)
        if key in true:
            scores.pointed.append(Pointed(presence[key] >= 0.5, *_hits(region, case)))
    for (name, side), answer in answers.items():
        words, said = f"{side or ''} {name}".strip(), answer.text == "yes"
        scores.presence.append(Asked(words, (name, side) in true, said, presence[name, side]))
    elsewhere = all_keys(replace(case.vocabulary, findings=case.vocabulary.elsewhere))
    others = talk.presence(elsewhere)
    scores.elsewhere += [answer.text == "yes" for answer in others.values()]
    presence |= talk.believed(others, weights)
    _mark(case.questions, talk, scores)
    for size in talk.sizes(case.truth):
        told = sizes_of(size.name, size.said, size.measured_mm, weights)
        scores.sizes.append((size.true_mm, median_mm(told) or 0.0))
    scores.check += judge([q for q in case.questions if q.task == "check"], talk)
    scores.reports.append(judge_report(case.report, talk, presence, weights))


def _mark(questions: Sequence[Dialogue], talk: Talk, scores: Scores) -> None:
    """Questions whose answer is written, sentences to check aside."""
    written = [q for q in questions if q.task != "check"]
    for question, given in zip(written, talk.ask_all([q.question for q in written]), strict=True):
        exact = given.text == question.answer
        if question.task == "side":
            scores.side.append(exact)
        elif question.task == "omission":
            chances = talk.ask(question.question, OMISSION).choices
            scores.omission.append((question.label == "omission", chances["omission"], exact))


def _hits(region: Region, case: Case) -> tuple[bool, bool]:
    """Whether the slice named shows the finding, and whether the box there lies over it."""
    mask, index = case.masks.get((region.finding, str(region.side))), region.source.slice_index
    if mask is None or index is None:
        return False, False
    x0, y0, x1, y1 = (round(v) for v in region.box)
    inside = mask[index, max(y0, 0) : y1, max(x0, 0) : x1]
    return bool(mask[index].any()), bool(inside.any())


def dictations(model: Path, num: int) -> dict[str, float]:
    """Word error rate on voices never trained on, per language; Chinese by character."""
    backend = _backend(model)
    world = world_of(backend.model.config)
    errors: dict[str, int] = {}
    words: dict[str, int] = {}
    same = []
    for seed in range(num):
        text, speech = dictate(
            world, np.random.default_rng((FIRST_SEED, 7, seed)), seed, held_out=True
        )
        heard = write_down(backend, speech, RATE_HZ)[0].text
        chinese = is_chinese(text)
        name = "Chinese character" if chinese else "word"
        right, given = (list(t) if chinese else t.split() for t in (text, heard))
        errors[name] = errors.get(name, 0) + edit_distance(right, given)
        words[name] = words.get(name, 0) + len(right)
        same.append(text == heard)
    rates = {
        f"dictation {name} error rate": errors[name] / words[name]
        for name in sorted(words, reverse=True)
    }
    return rates | {"dictation sentences exact": mean(same)}


def dictated_reports(model: Path, seeds: range) -> tuple[Scores, Scores]:
    """Reports judged as typed and as heard from a voice never trained on, sentence by sentence."""
    from multimodal.training.world.dictation import HELD_OUT_VOICES, synthesise

    typed, dictated = Scores(), Scores()
    backend, cases = _backend(model), _cases(model, seeds)
    weights = ReviewWeights.read(backend.model.config.review_weights)
    for number, case in zip(seeds, cases, strict=True):
        talk, rng = Talk(backend, case), np.random.default_rng((FIRST_SEED, 8, number))
        known = replace(
            case.vocabulary, findings=case.vocabulary.findings + case.vocabulary.elsewhere
        )
        presence = talk.believed(talk.presence(all_keys(known)), weights)
        report, lines, sure = without_typos(case.report), [], []
        for line in report.lines:
            voices = HELD_OUT_VOICES["zh" if is_chinese(line.text) else "en"]
            speech = synthesise(line.text, voices[number % len(voices)], rng)
            told, pieces = write_down(backend, speech, RATE_HZ)
            lines.append(replace(line, text=told.text))
            sure += how_surely(pieces, ["".join(piece.text for piece in pieces)])
        heard = replace(report, lines=tuple(lines))
        typed.reports.append(judge_report(report, talk, presence, weights))
        dictated.reports.append(judge_report(heard, talk, presence, weights, surely=sure))
    return typed, dictated


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


@contextmanager
def _sparsity_of(backend: LocalBackend, level: float) -> Iterator[None]:
    backbone = backend.model.language_model
    set_sparsity(backbone, level)
    try:
        yield
    finally:
        set_sparsity(backbone, backend.model.config.sparsity["sparsity"])


def examine_dense(model: Path, seeds: range) -> Scores:
    """Some studies seen with every neuron at work."""
    backend, scores = _backend(model), Scores()
    with _sparsity_of(backend, 0.0):
        for case in _cases(model, seeds):
            examine(backend, case, scores)
    return scores


def lost_by_gate(gated: Scores, dense: Scores) -> dict[str, dict[str, float]]:
    """Of every task, the figure with the gate at its default and without; what it loses, in points."""
    ours, theirs = gated.summary(), dense.summary()
    return {
        name: {
            "gate": ours[name],
            "dense": theirs[name],
            "points lost": 100 * (theirs[name] - ours[name]),
        }
        for name in GATED
    }


def at_sparsity(model: Path, level: float, num_studies: int) -> dict[str, float]:
    """Loss, accuracy and executed share of the MLPs' multiply-adds at one sparsity."""
    backend, cases, scores = _backend(model), _cases(model, range(num_studies)), Scores()
    with _sparsity_of(backend, level):
        with counting_flops(backend.model.language_model) as flops:
            for case in cases:
                examine(backend, case, scores)
        loss = answer_loss(backend, cases)
    summary = scores.summary()
    return {"sparsity": level, "answer loss": loss,
            **{n: summary[n] for n in CURVE}, "MLP skipped, decoding": flops.skipped_in_decode,
            "MLP skipped, all": flops.skipped}  # fmt: skip


def hiding(model: Path, num_studies: int) -> dict[str, float]:
    """What `hidden_regions` finds on some studies."""
    return hidden_regions(_backend(model), _cases(model, range(num_studies)))


@lru_cache(maxsize=1)
def _backend(model: Path) -> LocalBackend:
    """The checkpoint, once in each process."""
    return LocalBackend.from_pretrained(model, device="cpu")


@lru_cache(maxsize=1)
def _cases(model: Path, seeds: range) -> list[Case]:
    """Unseen studies; the last ones asked for stay, as several tables are made of the same."""
    return [make_case(world_of(_backend(model).model.config), seed) for seed in seeds]


def examine_some(model: Path, seeds: range, few: int) -> tuple[Scores, Scores, Scores]:
    """Some studies seen as they are; the first `few` blanked and with another's images too."""
    backend, cases = _backend(model), _cases(model, seeds)
    seeing, blind, shuffled = Scores(), Scores(), Scores()
    for number, case in enumerate(cases):
        examine(backend, case, seeing)
        if seeds[number] >= few:
            continue
        examine(backend, blanked(case), blind)
        other = cases[number - 1].volume
        examine(backend, replace(case, volume=other, masks={}), shuffled)
    return seeing, blind, shuffled


def kept(file: Path, measure: Callable[..., Any], *args: Any) -> Any:
    """What was measured before a kill, or measured now and kept in a file."""
    if file.is_file():
        return pickle.loads(file.read_bytes())
    found, beside = measure(*args), file.with_suffix(".new")
    beside.write_bytes(pickle.dumps(found))
    beside.replace(file)  # a kill never leaves half a file
    return found


def evaluate(
    model: Path, num_studies: int, num_dictations: int, num_workers: int = 1, *, work: Path
) -> dict[str, Any]:
    """Everything the model card tells; `num_workers` processes share the studies.

    What is done is kept in `work`, under the checksum of what is measured, and not done again.
    """
    from tqdm import tqdm

    few = min(max(num_studies // 5, 2), FEW)
    parts = [range(i, min(i + CHUNK, num_studies)) for i in range(0, num_studies, CHUNK)]
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    config = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    done = work / f"{weights[:12]}-{config[:12]}-{FORMAT}"
    done.mkdir(parents=True, exist_ok=True)
    with processes(num_workers) as pool:

        def begin(name: str, measure: Callable[..., Any], *args: Any) -> Future[Any]:
            return pool.submit(kept, done / f"{name}.pkl", measure, model, *args)

        studies = [
            begin(
                f"studies-{part.start}-{part.stop}-{min(few, part.stop)}", examine_some, part, few
            )
            for part in parts
        ]
        heard = begin(f"dictations-{num_dictations}", dictations, num_dictations)
        spoken = min(max(num_studies // 5, 2), DICTATED)
        dictated = [
            begin(f"dictated-{part.start}-{part.stop}", dictated_reports, part)
            for part in parts
            if part.start < spoken
        ]
        hidden = begin(f"hidden-{few}", hiding, few)
        dense = [
            begin(f"dense-{part.start}-{part.stop}", examine_dense, part)
            for part in parts[: max(len(parts) // 10, 1)]
        ]
        some = min(few, CURVE_STUDIES)
        curve = [begin(f"sparsity-{level}-{some}", at_sparsity, level, some) for level in LEVELS]
        tasks: list[Future[Any]] = [*studies, heard, *dictated, hidden, *dense, *curve]
        for task in tqdm(as_completed(tasks), total=len(tasks), desc="evaluation"):
            task.result()  # an error ends it all at once
    ways = zip(*(part.result() for part in studies), strict=True)
    seeing, blind, shuffled = (Scores.joined(way) for way in ways)
    gated = Scores.joined(part.result()[0] for part in studies[: len(dense)])
    recorded = Path(os.environ.get("CROSSREAD_SHARED_DATA", "../shared/data"))
    backend = _backend(model)
    world = world_of(backend.model.config)
    found = {
        "weights_sha256": weights,
        "world": world.name,
        "studies": num_studies,
        "machine": f"{platform.machine()}, {num_workers} processes",
        "seeing": seeing.summary() | heard.result(),
        "blanked": blind.summary(),
        "shuffled": shuffled.summary(),
        "dictated": {
            f"{name}, {way}": value
            for number, way in enumerate(("typed", "dictated"))
            for name, value in Scores.joined(p.result()[number] for p in dictated)
            .of_reports()
            .items()
        },
        "presence per finding": seeing.per_finding(),
        "mistakes": seeing.per_mistake(),
        "hiding the region": hidden.result(),
        "out of range": strange_studies(backend, seeing.novelty, recorded),
        "reading": reading_time(backend, world),
        "sparsity": [level.result() for level in curve],
        "few_studies": few,
        "dictated_studies": parts[len(dictated) - 1].stop,
        "sparsity_studies": some,
        "gate": lost_by_gate(gated, Scores.joined(part.result() for part in dense)),
        "gate_studies": parts[len(dense) - 1].stop,
    }
    backend.close()
    for held in (_backend, _cases):  # a process that goes on needs its memory for other things
        held.cache_clear()
    return found


def main() -> None:
    """Command line of the evaluation."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--studies", type=int, default=120)
    parser.add_argument("--dictations", type=int, default=120)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path(".work/evaluation"))
    options = parser.parse_args()
    found = evaluate(
        options.model, options.studies, options.dictations, options.workers, work=options.work
    )
    write_card(options.model, found)
    logger.info("\n%s", card_table(found))


if __name__ == "__main__":
    main()
