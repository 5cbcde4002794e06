"""What a report sentence speaks of: the words for findings and sides, in English and Chinese.

In: a sentence and the findings that a model knows. Out: which of them it names, and the side. Knows
no model and no study.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from multimodal.prompts import Side

Mention = tuple[str, Side | None]

# the narrower words first: what they take of a sentence is not there for the wider ones behind them
_WORDS = {
    "ground-glass opacity": r"\bground[- ]glass( opacit| change)?|磨玻璃",
    "consolidation": r"\bconsolidation|\bopacit|实变",
    "pericardial effusion": r"\bpericardial (effusion|fluid)|\bfluid around the heart|心包",
    "": r"\bjoint effusion|关节.{0,3}积液",
    "pneumothorax": r"\bpneumothorax|\bpleural air|气胸",
    "pleural effusion": r"\bpleural (effusion|fluid)|\beffusion|胸腔.{0,8}(积液|液体)|胸水",
    "nodule": r"\bnodule|结节",
    "mass": r"\bmass(es)?\b|肿块",
    "rib lesion": r"\bribs?\b|肋骨",
    "vertebral lesion": r"\bvertebra|\bbone lesion|椎体",
    "cardiomegaly": r"\bcardiomegaly|\bheart (is|size)|\benlarged heart|\bcardiac (silhouette|enlarge)"
    r"|心影|心脏(增大|大小)",
    "aortic aneurysm": r"(\baort(a|ic) )?\baneurysm|\baorta is (not )?dilated|(主|腹主)?动脉瘤",
    "aortic calcification": r"\baort(a|ic)|主动脉",
    "subdural haematoma": r"\bsubdural|硬膜下",
    "intracerebral haemorrhage": r"\b(intracerebral |parenchymal )?(ha?emorrhage|bleed)|出血",
    "infarct": r"\binfarct|梗死",
    "hydrocephalus": r"\bhydrocephalus|\bventricles|脑积水|脑室",
    "renal cyst": r"\b(renal|kidney) cyst|\bcyst\b.{0,60}\bkidney|肾.{0,12}囊肿",
    "kidney stone": r"\bstones?\b|\bcalcul(us|i)\b|结石",
    "liver lesion": r"\bliver|\bhepatic|肝",
    "ascites": r"\bascites|\bfree (intraperitoneal )?fluid|腹水|腹腔.{0,3}积液",
}
_TERMS = {name: re.compile(words) for name, words in _WORDS.items()}
_SIDE = re.compile(r"\b(right|left)\b|(右)|(左)")


def spoken_of(sentence: str, names: Sequence[str]) -> Mention | None:
    """The first of `mentions`, None if the sentence names none of `names`."""
    return next(mentions(sentence, names), None)


def mentions(sentence: str, names: Sequence[str]) -> Iterator[Mention]:
    """The findings and sides that a sentence names, of those in `names`.

    The side is the one that stands nearest to the finding, both counted in letters.
    """
    words = sentence.lower()
    others = {n: re.compile(rf"\b{re.escape(n)}") for n in names if n not in _TERMS}
    for name, term in (others | _TERMS).items():
        found = term.search(words)
        if found is None:
            continue
        if name in names:
            yield name, _nearest_side(words, *found.span())
        words = term.sub(lambda m: " " * len(m[0]), words)


def _nearest_side(words: str, start: int, stop: int) -> Side | None:
    sides: list[tuple[int, Side]] = [
        (min(abs(m.start() - stop), abs(start - m.end())), "right" if m[1] == "right" or m[2] else "left")
        for m in _SIDE.finditer(words)
    ]  # fmt: skip
    return min(sides)[1] if sides else None
