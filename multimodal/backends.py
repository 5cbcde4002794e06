"""One protocol for everything that runs a model: messages in, events out.

`multimodal.local` runs composites, `multimodal.remote` asks a server; native checkpoints are to
stand beside them. Knows no pipeline and no report, and loads nothing heavy until a model is asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from encoders.errors import InvalidMessage, InvalidOption
from encoders.features import Modality, Problem, Source
from multimodal.messages import Message, Study

DEMO = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class GenerateOptions:
    """How to answer one request.

    With `choices` the answer is the likeliest of them and `Finished.choices` holds the
    probability of each, or nothing where the backend cannot tell. With `ground` the regions of
    the finding head come along.

    Raises:
        InvalidMessage: a value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    choices: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    ground: bool = False

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and up to 1"),
            "stop": ("" not in self.stop, "strings that are not empty"),
            "choices": ("" not in self.choices, "strings that are not empty"),
        }
        for name, (good, wanted) in rules.items():
            if not good:
                raise InvalidMessage(f"{name} is {getattr(self, name)!r}; use {wanted}")


@dataclass(frozen=True)
class Token:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Region:
    """Where a finding is seen: box (x0, y0, x1, y1) in pixels of the stored slice of `source`."""

    finding: str
    side: str | None
    score: float
    source: Source
    box: tuple[float, float, float, float]
    size_mm: float | None = None


@dataclass(frozen=True)
class Usage:
    """What one request cost; `encoded_media` counts media encoded anew, not taken from the cache."""

    prompt_tokens: int
    new_tokens: int
    encoded_media: int
    timings_s: Mapping[str, float] = field(default_factory=dict)


def total_usage(spent: Iterable[Usage]) -> dict[str, int]:
    """What several requests cost together: `questions` is their number."""
    listed = list(spent)
    return {
        "questions": len(listed),
        "prompt_tokens": sum(u.prompt_tokens for u in listed),
        "new_tokens": sum(u.new_tokens for u in listed),
        "encoded_media": sum(u.encoded_media for u in listed),
    }


@dataclass(frozen=True)
class Finished:
    """The last event of a request."""

    text: str
    reason: Literal["stop", "length"]
    usage: Usage
    choices: Mapping[str, float] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do. `findings` pairs each finding name with whether it has sides.

    `weights_sha256` and `preprocessing` say what makes its answers; empty where it can't tell.
    A model that does not know the forms of `multimodal.prompts` must be told how to answer.
    """

    name: str
    modalities: frozenset[Modality]
    findings: tuple[tuple[str, bool], ...]
    max_len: int
    grounds: bool
    weights_sha256: str = ""
    preprocessing: str = ""
    knows_forms: bool = True


@dataclass(frozen=True)
class Novelty:
    """How far a study lies from what the model was validated on; out of range above `limit`."""

    score: float
    limit: float
    reasons: tuple[str, ...] = ()

    @property
    def out_of_range(self) -> bool:
        """Whether confident answers must be withheld."""
        return self.score > self.limit


class Backend(Protocol):
    """Anything that answers messages."""

    def capabilities(self) -> Capabilities:
        """What this backend can do."""
        ...

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events, `Finished` last."""
        ...

    def novelty(self, study: Study) -> Novelty | None:
        """How unlike the validated studies this one is; None where the model does not say."""
        ...


def collect(events: Iterator[Token | Finished]) -> Finished:
    """Run an answer to its end and return the last event."""
    finished = None
    for event in events:
        if isinstance(event, Finished):
            finished = event
    assert finished is not None, "a backend must end with Finished"
    return finished


def load_backend(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    sparsity: float | None = None,
) -> Backend:
    """The backend for a model folder, Hub id or server; None loads the shipped demo checkpoint.

    A server is the address of an OpenAI-compatible API, `https://host/v1`, with `#name` behind it
    where it serves several models.

    Raises:
        InvalidOption: device, dtype or sparsity for a server, or an address that cannot be used.
        RemoteError: the server cannot be used.
        ModelNotFound: no model there.
        IncompatibleModel: a model this project cannot run.
    """
    if isinstance(model, str) and model.startswith(("http://", "https://")):
        from multimodal.remote import RemoteBackend

        if (device, dtype, sparsity) != ("auto", "auto", None):
            raise InvalidOption(
                "a server runs its model its own way: leave out device, dtype, sparsity"
            )
        return RemoteBackend(model)
    from multimodal.local import LocalBackend

    return LocalBackend.load(model or DEMO, device=device, dtype=dtype, sparsity=sparsity)
