"""Reports over the ground truth of a study: varied wording in English and Chinese.

A sentence knows the finding it speaks of, so that mistakes can be planted and answers checked.
Which findings, languages and wordings there are is a `Vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multimodal.prompts import NamedFinding, Side, sided_keys
from multimodal.training.world.phantom import FINDINGS
from multimodal.training.world.wording import (
    HEADINGS,
    NAMES_ZH,
    NOTHING,
    PLACES_ZH,
    SIDES,
    TECHNIQUES,
    WORDING,
    Language,
)

Key = tuple[str, Side | None]


@dataclass(frozen=True)
class Vocabulary:
    """What may be said of a kind of study.

    Attributes:
        findings: (name, has sides), in the order of the finding head's channels.
        sizes_mm: usual sizes of the findings whose size is stated.
        weights: how often a finding comes beside the others, 1 where it is not listed.
        languages: of reports and questions.
        rich: every wording, with places and hedges, or the plain ones only.
        region: what the study shows, for the technique section.
        elsewhere: findings of other regions, which such a study never shows.
    """

    findings: tuple[tuple[str, bool], ...]
    sizes_mm: Mapping[str, tuple[float, float]]
    weights: Mapping[str, float] = field(default_factory=dict)
    languages: tuple[Language, ...] = ("en",)
    rich: bool = False
    region: str = "chest"
    elsewhere: tuple[tuple[str, bool], ...] = ()

    def language(self, rng: np.random.Generator) -> Language:
        """One of its languages at random; nothing is drawn where there is one only."""
        one = len(self.languages) == 1
        return self.languages[0 if one else rng.integers(len(self.languages))]

    def pick(self, keys: Sequence[Key], rng: np.random.Generator) -> Key:
        """One key at random, as often as its finding comes in studies."""
        weights = np.array([self.weights.get(name, 1.0) for name, _ in keys])
        return keys[rng.choice(len(keys), p=weights / weights.sum())]

    def size(self, name: str, rng: np.random.Generator) -> float | None:
        """A usual size in whole mm, None where none is stated."""
        usual = self.sizes_mm.get(name)
        return None if usual is None else float(round(np.exp(rng.uniform(*np.log(usual)))))


# of the first checkpoint's world: `phantom`, in plain English
PHANTOM = Vocabulary(FINDINGS, {"nodule": (11.0, 30.0)})


@dataclass(frozen=True)
class Sentence:
    """A statement of a report: what it speaks of, whether it denies it, and its wording.

    A denial without a side denies both. `style` picks template and unit, so that the same sentence
    can be said of another finding.
    """

    about: NamedFinding
    denied: bool = False
    style: tuple[int, bool] = (0, False)
    language: Language = "en"
    rich: bool = False

    @property
    def text(self) -> str:
        """The words."""
        templates = self._templates()
        template = templates[self.style[0] % len(templates)]
        sides = SIDES[self.language]
        side, place = sides[self.about.side or "right"], self._place or ""
        words = {
            "side": side,
            "Side": side.capitalize(),
            "place": place,
            "Place": place.capitalize(),
        }
        return template.format(size=format_size(self.about.size_mm, self.style[1]), **words)

    @property
    def _place(self) -> str | None:
        place: str | None = getattr(self.about, "place", None)
        if place == "middle lobe" and self.about.side == "left":
            return None  # a left lung has none
        return place if place is None or self.language == "en" else PLACES_ZH.get(place, place)

    def _templates(self) -> tuple[str, ...]:
        words = WORDING[self.language][self.about.name]
        if self.denied:
            whole = self.about.side is None and bool(words.nowhere)
            templates = words.nowhere if whole else words.absent
            return templates + words.unsure if self.rich and not whole else templates
        if not self.rich:
            return words.present
        placed = self._place is not None
        return words.present + tuple(t for t in words.more if placed or "lace}" not in t)

    def said_of(self, about: NamedFinding) -> Sentence:
        """The same wording about another finding of that name."""
        return replace(self, about=about)


def format_size(size_mm: float | None, in_cm: bool) -> str:
    """`14 mm` or `1.4 cm`."""
    if size_mm is None:
        return ""
    return f"{size_mm / 10:.1f} cm" if in_cm else f"{size_mm:.0f} mm"


def all_keys(vocabulary: Vocabulary = PHANTOM) -> list[Key]:
    """Every (finding, side) there is."""
    return sided_keys(vocabulary.findings)


def absent_keys(truth: Sequence[NamedFinding], vocabulary: Vocabulary = PHANTOM) -> list[Key]:
    """Every (finding, side) that a study does not show."""
    present = {(f.name, f.side) for f in truth}
    return [key for key in all_keys(vocabulary) if key not in present]


class Writer:
    """Says things of one study: of its truth, in the words of a vocabulary, in one language."""

    def __init__(
        self,
        truth: Sequence[NamedFinding],
        rng: np.random.Generator,
        vocabulary: Vocabulary = PHANTOM,
    ) -> None:
        self.truth, self.rng, self.vocabulary = list(truth), rng, vocabulary
        self.language = vocabulary.language(rng)

    def say(self, about: NamedFinding, *, denied: bool = False) -> Sentence:
        """A random wording."""
        style = int(self.rng.integers(60)), bool(self.rng.random() < 0.4)
        return Sentence(about, denied, style, self.language, self.vocabulary.rich)

    def plainly(self, about: NamedFinding) -> str:
        """The one wording a correction uses for a finding that the report lacks."""
        return Sentence(about, language=self.language).text

    def deny(self, key: Key, others: Sequence[NamedFinding]) -> Sentence:
        """A random denial, at times of both sides where none of `others` shows the finding."""
        name, side = key
        whole = self.rng.random() < 0.4 and all(f.name != name for f in others)
        return self.say(NamedFinding(name, None if whole else side), denied=True)

    def deny_absent(self) -> Sentence:
        """A denial of something that the study does not show."""
        absent = absent_keys(self.truth, self.vocabulary)
        return self.deny(self.vocabulary.pick(absent, self.rng), self.truth)

    def invent(self, keys: Sequence[Key]) -> Sentence:
        """That one of `keys` is there."""
        name, side = self.vocabulary.pick(keys, self.rng)
        return self.say(NamedFinding(name, side, self.vocabulary.size(name, self.rng)))

    def report(self) -> list[Sentence]:
        """Every finding stated and some absent ones denied, in random order."""
        absent = absent_keys(self.truth, self.vocabulary)
        count = min(len(absent), int(self.rng.integers(1, 4)))
        denied = [absent[i] for i in self.rng.permutation(len(absent))[:count]]
        sentences = [self.say(finding) for finding in self.truth]
        sentences += [self.deny(key, self.truth) for key in denied]
        return [sentences[i] for i in self.rng.permutation(len(sentences))]

    def sections(self, sentences: Sequence[str], claimed: Sequence[NamedFinding]) -> str:
        """A full report around the statements: technique, findings, and an impression.

        The impression repeats what the report itself claims: it must not betray a mistake.
        """
        techniques = TECHNIQUES[self.language][self.vocabulary.region]
        technique = techniques[self.rng.integers(len(techniques))]
        chinese = self.language == "zh"
        bodies = (technique, ("" if chinese else " ").join(sentences), self._impression(claimed))
        return "\n\n".join(
            f"{heading}{'：' if chinese else ': '}{body}"
            for heading, body in zip(HEADINGS[self.language], bodies, strict=True)
        )

    def _impression(self, claimed: Sequence[NamedFinding]) -> str:
        if self.language == "zh":
            named = [f"{SIDES['zh'].get(f.side or '', '')}{NAMES_ZH[f.name]}" for f in claimed]
            return "；".join(named) + "。" if named else NOTHING["zh"]
        names = [f"{f.side} {f.name}" if f.side else f.name for f in claimed]
        return ", ".join(names).capitalize() + "." if names else "No acute abnormality."
