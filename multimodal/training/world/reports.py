"""Reports over the ground truth of a phantom: varied wording, closed vocabulary, English.

A sentence knows the finding it speaks of, so that mistakes can be planted and answers checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multimodal.prompts import NamedFinding, Side
from multimodal.training.world.phantom import FINDINGS

_PRESENT = {
    "nodule": (
        "There is a {size} nodule in the {side} lung.",
        "A {size} {side} lung nodule is seen.",
        "{Side} lung nodule measuring {size}.",
        "Solid nodule of {size} in the {side} lung.",
        "A nodule in the {side} lung measures {size}.",
    ),
    "consolidation": (
        "There is consolidation in the {side} lung.",
        "{Side} lung consolidation is present.",
        "Airspace opacity in the {side} lung, consistent with consolidation.",
        "{Side} consolidation.",
    ),
    "pleural effusion": (
        "There is a {side} pleural effusion.",
        "{Side} pleural effusion is noted.",
        "Pleural fluid is seen on the {side}.",
        "{Side}-sided pleural effusion.",
    ),
    "pneumothorax": (
        "There is a {side} pneumothorax.",
        "{Side} pneumothorax is present.",
        "Free pleural air on the {side}, in keeping with pneumothorax.",
        "{Side}-sided pneumothorax.",
    ),
    "cardiomegaly": (
        "The heart is enlarged.",
        "There is cardiomegaly.",
        "Cardiomegaly is noted.",
        "Enlarged heart.",
    ),
    "aortic calcification": (
        "There is aortic calcification.",
        "Calcified plaques are seen in the aorta.",
        "The aorta is calcified.",
        "Calcification of the aorta.",
    ),
}
_ABSENT = {
    "nodule": ("No nodule is seen in the {side} lung.", "There is no {side} lung nodule."),
    "consolidation": (
        "No consolidation in the {side} lung.",
        "The {side} lung is free of consolidation.",
    ),
    "pleural effusion": ("No {side} pleural effusion.", "There is no pleural fluid on the {side}."),
    "pneumothorax": ("No {side} pneumothorax.", "There is no pneumothorax on the {side}."),
    "cardiomegaly": (
        "The heart is normal in size.",
        "No cardiomegaly.",
        "The heart is not enlarged.",
    ),
    "aortic calcification": ("No aortic calcification.", "The aorta is not calcified."),
}
_ABSENT_ANYWHERE = {
    "nodule": ("No nodule is seen.", "There is no lung nodule.", "No pulmonary nodule."),
    "consolidation": ("No consolidation.", "The lungs are free of consolidation."),
    "pleural effusion": ("No pleural effusion.", "There is no pleural effusion."),
    "pneumothorax": ("No pneumothorax.", "There is no pneumothorax."),
}
TECHNIQUES = (
    "CT of the chest was performed.",
    "Axial CT of the chest without contrast.",
    "CT of the chest with contrast.",
)


@dataclass(frozen=True)
class Sentence:
    """A statement of a report: what it speaks of, whether it denies it, and its wording.

    A denial without a side denies both. `style` picks template and unit, so that the same sentence can be said of another finding.
    """

    about: NamedFinding
    denied: bool = False
    style: tuple[int, bool] = (0, False)

    @property
    def text(self) -> str:
        """The words."""
        templates = (_ABSENT if self.denied else _PRESENT)[self.about.name]
        if self.denied and self.about.side is None:
            templates = _ABSENT_ANYWHERE.get(self.about.name, templates)
        side = self.about.side or "right"
        template = templates[self.style[0] % len(templates)]
        return template.format(
            side=side, Side=side.capitalize(), size=format_size(self.about.size_mm, self.style[1])
        )

    def said_of(self, about: NamedFinding) -> Sentence:
        """The same wording about another finding of that name."""
        return replace(self, about=about)


def format_size(size_mm: float | None, in_cm: bool) -> str:
    """`14 mm` or `1.4 cm`."""
    if size_mm is None:
        return ""
    return f"{size_mm / 10:.1f} cm" if in_cm else f"{size_mm:.0f} mm"


def all_keys() -> list[tuple[str, Side | None]]:
    """Every (finding, side) of this world."""
    return [
        (name, side)
        for name, sided in FINDINGS
        for side in (("right", "left") if sided else (None,))
    ]


def absent_keys(truth: Sequence[NamedFinding]) -> list[tuple[str, Side | None]]:
    """Every (finding, side) that a study does not show."""
    present = {(f.name, f.side) for f in truth}
    return [key for key in all_keys() if key not in present]


def say(about: NamedFinding, rng: np.random.Generator, *, denied: bool = False) -> Sentence:
    """A random wording."""
    return Sentence(about, denied, (int(rng.integers(12)), bool(rng.random() < 0.4)))


def deny(
    name: str, side: Side | None, others: Sequence[NamedFinding], rng: np.random.Generator
) -> Sentence:
    """A random denial, at times of both sides where none of `others` shows the finding."""
    whole = rng.random() < 0.4 and all(f.name != name for f in others)
    return say(NamedFinding(name, None if whole else side), rng, denied=True)


def write_report(truth: Sequence[NamedFinding], rng: np.random.Generator) -> list[Sentence]:
    """Every finding stated and some absent ones denied, in random order."""
    absent = absent_keys(truth)
    count = min(len(absent), int(rng.integers(1, 4)))
    denials = [absent[i] for i in rng.permutation(len(absent))[:count]]
    sentences = [say(finding, rng) for finding in truth]
    sentences += [deny(name, side, truth, rng) for name, side in denials]
    return [sentences[i] for i in rng.permutation(len(sentences))]


def report_text(
    sentences: Sequence[str], truth: Sequence[NamedFinding], rng: np.random.Generator
) -> str:
    """A full report with its sections, for people and files."""
    technique = TECHNIQUES[rng.integers(len(TECHNIQUES))]
    names = [f"{f.side} {f.name}" if f.side else f.name for f in truth]
    impression = ", ".join(names).capitalize() + "." if names else "No acute abnormality."
    return (
        f"TECHNIQUE: {technique}\n\nFINDINGS: {' '.join(sentences)}\n\nIMPRESSION: {impression}\n"
    )
