"""What a report sentence speaks of: the words for findings and sides, in English and Chinese.

In: a sentence and the findings that a model knows. Out: which of them it names, and the side; and the
plainest sentence that denies one. Knows no model and no study.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from multimodal.prompts import Side

Mention = tuple[str, Side | None]

# the narrower words first: what they take of a sentence is not there for the wider ones behind them;
# what stands behind "" is none of the findings
_WORDS = {
    "ground-glass opacity": r"\bground[- ]glass( opacit| change)?|\bggos?\b|磨玻璃",
    "consolidation": r"\bconsolidation|\bopacit|实变",
    "pericardial effusion": r"\bpericardial (effusion|fluid)|\bfluid around the heart|心包",
    "": r"\bjoint effusion|关节[^，。；]{0,3}积液|\bmass effect|占位效应|\bgallstone"
    r"|\bthyroid nodule|\bnodule[^,.;]{0,25}\bthyroid|甲状腺[^，。；]{0,8}结节|\bsplenic infarct|脾[^，。；]{0,4}梗[死塞]"
    r"|\b(gallbladder|bile duct)[^,.;]{0,20}\b(stone|calcul)|\b(stone|calcul)[^,.;]{0,25}\b(gallbladder|bile duct)"
    r"|胆[^，。；]{0,6}结石",
    "pneumothorax": r"\bpneumothora(x|c)|\bpleural air|气胸",
    "pleural effusion": r"\bpleural (effusion|fluid)|\beffusion|胸膜?腔[^，。；]{0,8}(积液|液体)|胸水",
    "nodule": r"\bnodule|结节",
    "mass": r"\bmass(es)?\b|肿块",
    "rib lesion": r"\bribs?\b|肋骨",
    "vertebral lesion": r"\bvertebra|\bbone lesion|椎体",
    "cardiomegaly": r"\bcardiomegaly|\bheart (is|size)|\benlarged heart|\bcardiac (silhouette|enlarge)"
    r"|心影|心脏(增大|不大|大小)",
    "aortic aneurysm": r"(\baort(a|ic) )?\baneurysm( of the ([a-z]+ )?aorta)?|\baorta is (not )?dilated"
    r"|((胸|腹)?主)?动脉瘤",
    "aortic calcification": r"\baort(a|ic)|主动脉",
    "subdural haematoma": r"\bsubdural( ha?ematoma| ha?emorrhage| bleed)?|硬膜下(血肿|出血)?",
    "intracerebral haemorrhage": r"\b(intracerebral |parenchymal )?(ha?emorrhage|bleed)"
    r"|\b(intracerebral|parenchymal) ha?ematoma|出血",
    "infarct": r"\binfarct|梗[死塞]",
    "hydrocephalus": r"\bhydrocephalus|\bventricles|脑积水|脑室",
    "renal cyst": r"\b(renal|kidney) ([a-z]+ )?cyst|\bcysts?\b[^.;]{0,60}\bkidney|肾[^，。；、]{0,12}囊肿",
    "kidney stone": r"\bstones?\b|\bcalcul(us|i)\b|\bnephrolithiasis|结石",
    "liver lesion": r"\bliver|\bhepatic|肝",
    "ascites": r"\bascites|\bfree (intraperitoneal )?fluid|腹水|腹腔[^，。；]{0,3}积液",
}
# the plainest denial of each; `{side}` is filled in
_DENIED_ZH = {
    "nodule": "{side}肺未见结节。",
    "mass": "{side}肺未见肿块。",
    "consolidation": "{side}肺未见实变。",
    "ground-glass opacity": "{side}肺未见磨玻璃影。",
    "pleural effusion": "{side}侧未见胸腔积液。",
    "pneumothorax": "{side}侧未见气胸。",
    "rib lesion": "{side}侧肋骨未见病灶。",
    "cardiomegaly": "心影不大。",
    "pericardial effusion": "未见心包积液。",
    "aortic calcification": "主动脉未见钙化。",
    "vertebral lesion": "椎体未见病灶。",
    "intracerebral haemorrhage": "{side}侧未见脑出血。",
    "subdural haematoma": "{side}侧未见硬膜下血肿。",
    "infarct": "{side}侧未见脑梗死。",
    "hydrocephalus": "未见脑积水。",
    "liver lesion": "肝脏未见病灶。",
    "renal cyst": "{side}肾未见囊肿。",
    "kidney stone": "{side}肾未见结石。",
    "ascites": "未见腹水。",
    "aortic aneurysm": "未见腹主动脉瘤。",
}
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:mm|cm|毫米|厘米)"
_MEASURE = re.compile(
    rf"(?P<number>{_NUMBER})(?P<more>(?:\s*{_UNIT}?\s*(?:[x×*]|by)\s*{_NUMBER})*)"
    rf"(?P<gap>[\s-]*)(?P<unit>{_UNIT})(?![a-z0-9³²])",
    re.IGNORECASE,
)
# from here to there, and what is no finding's width
_NO_SIZE = re.compile(
    r"\d\s*(?:[-–~至到]|to)\s*\d|\b(?:from|above|below|away|shift|distance|volume|thick)|距|移位|厚|体积",
    re.IGNORECASE,
)
_SIDES_ZH = {"right": "右", "left": "左"}
# a letter more or less of these is no misspelling: another meaning
MEANT = set("右左未无不双上下中前后")
_TERMS = {name: re.compile(words) for name, words in _WORDS.items()}
_SIDE = re.compile(r"\b(right|left)\b|(右)|(左)")
_ABOUT = re.compile(r"(?<=[0-9a-z米])\s*左右")  # "5 mm or so"
_BOTH = re.compile(
    r"\b(right|left) (and|or|&) (the )?(right|left)\b"
    r"|\b(right|left) (greater|larger|more) than (the )?(right|left)\b"
    r"|[右左][^，。；]{0,3}[及和与、][右左]|左右(?=[肺肾侧胸])|\bbilateral|\bboth\b|\beither side|双侧|双肺|双肾|两侧|两肺|两肾"
)
_SHARED = re.compile(r"\b(pleural|pericardial) (or|and|nor) (pleural|pericardial) (effusion|fluid)")


def is_chinese(text: str) -> bool:
    """Whether any of it is."""
    return any("一" <= letter <= "鿿" for letter in text)


def deny(name: str, side: Side | None, like: str) -> str:
    """A sentence that denies a finding, in Chinese if `like` is and words for it are known."""
    if is_chinese(like) and name in _DENIED_ZH and ("{side}" in _DENIED_ZH[name]) == bool(side):
        return _DENIED_ZH[name].format(side=_SIDES_ZH.get(side or "", ""))
    return f"No {side} {name}." if side else f"No {name}."


def spoken_of(sentence: str, names: Sequence[str]) -> Mention | None:
    """The first of `mentions`, None if the sentence names none of `names`."""
    return next(mentions(sentence, names), None)


def mentions(sentence: str, names: Sequence[str]) -> Iterator[Mention]:
    """The findings and sides that a sentence names, of those in `names`, each once.

    The side is the one that stands nearest to the finding, both counted in letters; None for both.
    """
    words = _SHARED.sub(r"\1 \4 \2 \3 \4", sentence.lower())
    for shown in (_ABOUT, _BOTH):
        words = shown.sub(lambda m: " " * len(m[0]), words)
    others = {n: re.compile(rf"\b{re.escape(n)}") for n in names if n not in _TERMS}
    for name, term in (others | _TERMS).items():
        if name in names:
            sides = [_nearest_side(words, *found.span()) for found in term.finditer(words)]
            yield from ((name, side) for side in dict.fromkeys(sides))
        words = term.sub(lambda m: " " * len(m[0]), words)


def of_both_sides(sentence: str) -> bool:
    """Whether a sentence speaks of right and left together."""
    return bool(_BOTH.search(_ABOUT.sub("", sentence.lower())))


def measure_in(sentence: str) -> re.Match[str] | None:
    """The one size of a sentence; None of several, of ranges and of distances."""
    found = list(_MEASURE.finditer(sentence))
    return found[0] if len(found) == 1 and not _NO_SIZE.search(sentence) else None


def size_said(sentence: str) -> float | None:
    """The size in mm that a sentence states, the largest of its extents."""
    measure = measure_in(sentence)
    if measure is None:
        return None
    largest = max(map(float, re.findall(_NUMBER, measure[0])))
    return largest * (10 if measure["unit"].lower() in ("cm", "厘米") else 1)


def _nearest_side(words: str, start: int, stop: int) -> Side | None:
    sides: list[tuple[int, Side]] = [
        (min(abs(m.start() - stop), abs(start - m.end())), "right" if m[1] == "right" or m[2] else "left")
        for m in _SIDE.finditer(words)
    ]  # fmt: skip
    return min(sides)[1] if sides else None
