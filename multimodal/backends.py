"""One protocol for everything that runs a model: messages in, events out.

`multimodal.local` runs composites, `multimodal.native` checkpoints of transformers,
`multimodal.remote` asks a server. Knows no pipeline and no report, and loads nothing heavy until a model is asked
for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from encoders.errors import InvalidMessage, InvalidOption
from encoders.features import Modality, Problem, Source
from multimodal.measures import Measured
from multimodal.messages import Message, Study
from multimodal.prompts import Side
from multimodal.review import Key, ReviewWeights

DEMO = Path(__file__).parent / "demo"
Reason = Literal["stop", "length", "timeout", "cancelled"]


@dataclass(frozen=True)
class GenerateOptions:
    """How to answer one request; a backend honours an option or refuses it by its name.

    With `choices` the answer is the likeliest of them and `Finished.choices` holds the
    probability of each, or nothing where the backend cannot tell. With `ground` the regions of
    the finding head come along.

    Attributes:
        top_k: of how many of the likeliest tokens one is drawn; 0 for all.
        min_p: least probability of a token, as a share of the likeliest one's.
        repetition_penalty: divides the odds of tokens of prompt and answer (arXiv 1909.05858).
        presence_penalty: taken off the logits of tokens that the answer holds.
        frequency_penalty: the same for each time that it holds them.
        seed: the same seed draws the same answer, whoever else asks; None draws afresh.
        logprobs: how many of the likeliest tokens to tell with each token; None tells nothing.
        json_schema: JSON text of a JSON schema that the answer has to fulfil.
        queue_s: longest wait until the request is begun; then it ends with reason "timeout".
        deadline_s: longest time for all of it; then it ends with reason "timeout".
        tenant: whose request it is; what is kept of it is used for the same tenant only.

    Raises:
        InvalidMessage: a value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    choices: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    json_schema: str | None = None
    ground: bool = False
    queue_s: float | None = None
    deadline_s: float | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and up to 1"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0; 1 is none"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "from -2 to 2"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "from -2 to 2"),
            "logprobs": (self.logprobs is None or 0 <= self.logprobs <= 20, "from 0 to 20"),
            "stop": ("" not in self.stop, "strings that are not empty"),
            "choices": ("" not in self.choices, "strings that are not empty"),
            "json_schema": (not self.json_schema or _is_object(self.json_schema), "a JSON object"),
            "queue_s": (self.queue_s is None or self.queue_s > 0, "more than 0 seconds"),
            "deadline_s": (self.deadline_s is None or self.deadline_s > 0, "more than 0 seconds"),
        }
        for name, (good, wanted) in rules.items():
            if not good:
                raise InvalidMessage(f"{name} is {getattr(self, name)!r}; use {wanted}")
        if self.choices and self.json_schema:
            raise InvalidMessage("choices and json_schema exclude each other; leave one out")


def refuse_options(options: GenerateOptions, names: Iterable[str], backend: str) -> None:
    """Refuse what a backend cannot honour, rather than ignore it.

    Raises:
        InvalidOption: one of these options is set, the first by name.
    """
    for name in names:
        if getattr(options, name) != getattr(GenerateOptions, name):
            raise InvalidOption(f"{backend} does not know the option {name}; leave it out")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@dataclass(frozen=True)
class Logprob:
    """One token of an answer: its text and log-probability, and those of the likeliest tokens.

    They are the model's own: before temperature, penalties and limits to the choice of tokens.
    """

    text: str
    logprob: float
    id: int | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Token:
    """A piece of the answer's text; with `GenerateOptions.logprobs`, the tokens it came with.

    Tokens of text that is still held back (a character of several, the beginning of a stop
    string) come at once, with an empty text.
    """

    text: str
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Region:
    """Where a finding is seen best, there or not: box (x0, y0, x1, y1) in pixels of the stored slice
    of `source`, the size that it would have, and how likely all that is seen makes it.
    """

    finding: str
    side: Side | None
    score: float
    source: Source
    box: tuple[float, float, float, float]
    size_mm: float | None = None
    presence: float | None = None


def seen_in(regions: Iterable[Region]) -> dict[Key, float]:
    """How likely every region's finding is by what is seen, as `multimodal.review` takes it."""
    return {(r.finding, r.side): r.presence for r in regions if r.presence is not None}


def measured_in(regions: Iterable[Region]) -> dict[Key, float]:
    """The size in mm of every region, as `multimodal.review` takes it."""
    return {(r.finding, r.side): r.size_mm for r in regions if r.size_mm}


@dataclass(frozen=True)
class Usage:
    """What one request cost; `encoded_media` counts media encoded anew, not taken from the cache.

    `media_tokens` are those of the prompt that stand for media, by modality; None where the backend
    cannot tell them from words.
    """

    prompt_tokens: int
    new_tokens: int
    encoded_media: int
    timings_s: Mapping[str, float] = field(default_factory=dict)
    media_tokens: Mapping[Modality, int] | None = field(default_factory=dict)


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
    """The last event of a request.

    `reason` "stop" is the model's end or a stop string, "length" `max_new_tokens`, "timeout"
    `queue_s` or `deadline_s`, "cancelled" a backend that was closed.
    """

    text: str
    reason: Reason
    usage: Usage
    choices: Mapping[str, float] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do. `findings` pairs each finding name with whether it has sides.

    `weights_sha256` and `preprocessing` say what makes its answers; empty where it can't tell.
    A model that does not know the forms of `multimodal.prompts` must be told how to answer.
    `one_by_one` is why requests are not run together, empty where they are. `json_schema` is whether
    an answer can be held to a schema for certain (a server may refuse). `review` weighs what it says of
    a sentence against what it sees, where that was fitted.
    """

    name: str
    modalities: frozenset[Modality]
    findings: tuple[tuple[str, bool], ...]
    max_len: int
    grounds: bool
    weights_sha256: str = ""
    preprocessing: str = ""
    knows_forms: bool = True
    one_by_one: str = ""
    json_schema: bool = False
    review: ReviewWeights | None = None


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


@dataclass(frozen=True)
class MediaSize:
    """How large a medium is, told from its headers alone: nothing of it was decoded.

    Attributes:
        pixels: of its largest picture, rows times columns.
        frames: pictures, slices or video frames it holds.
        seconds: of sound or video.
        wanted: pictures that are to be shown at most; 0 for as many as the model takes.
    """

    modality: Modality
    pixels: int = 0
    frames: int = 0
    seconds: float = 0.0
    wanted: int = 0

    def num_shown(self, most: int) -> int:
        """Pictures that a model sees of it which takes so many at most."""
        return min(self.frames, most, self.wanted or most)


@dataclass(frozen=True)
class Estimate:
    """What a request will take, before any work: tokens of prompt and answer at most, its media.

    `prompt_tokens` is exact for words, pictures and whole stacks; a study with gaps in it, or a
    long recording, may take a few less. Of a remote model it is a guess.
    """

    prompt_tokens: int
    new_tokens: int
    media: tuple[MediaSize, ...] = ()


@dataclass(frozen=True)
class Load:
    """How busy a backend is.

    Attributes:
        running: requests being answered.
        waiting: requests accepted and not begun.
        slots: requests answered at the same time at most; 0 where the backend does not say.
        kv_used: share of the memory for keys and values that running requests hold, 0 to 1.
        backlog_tokens: prompt tokens accepted and not yet run.
        tokens_per_s: prompt and answer tokens run in a second, as measured; 0 before the first.
        chunk: prompt tokens of one step at most, as chosen just now; 0 where nothing is chosen.
        counters: totals since the start, by name (`failed`, `reused_tokens`, ...).
        measured: more of them, and distributions, by name and label.
    """

    running: int = 0
    waiting: int = 0
    slots: int = 0
    kv_used: float = 0.0
    backlog_tokens: int = 0
    tokens_per_s: float = 0.0
    chunk: int = 0
    counters: Mapping[str, float] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)


class Backend(Protocol):
    """Anything that answers messages; several threads may ask at once."""

    def capabilities(self) -> Capabilities:
        """What this backend can do."""
        ...

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        """The answer as events, `Finished` last; errors are raised here or in place of an event.

        Closing the iterator (`close()`) cancels the request.
        """
        ...

    def estimate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Estimate:
        """What `generate` would take, told from headers; nothing is decoded or counted in.

        Raises:
            ContextOverflow: prompt and answer do not fit the model's context.
            InputError: a medium that is missing, or not what it claims to be.
        """
        ...

    def load(self) -> Load:
        """How busy this backend is now.

        Raises:
            ModelUnavailable: it will answer no more; load it again.
        """
        ...

    def novelty(self, study: Study) -> Novelty | None:
        """How unlike the validated studies this one is; None where the model does not say."""
        ...

    def close(self) -> None:
        """Let go of threads, memory and processes; requests under way end as cancelled."""
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
    objective: str | None = None,
    tensor_parallel: int = 1,
    device_map: str | None = None,
) -> Backend:
    """The backend for a model folder, Hub id or server; None loads the shipped demo checkpoint.

    A folder or Hub id may hold a composite or any checkpoint of transformers that answers in words.
    A server is the address of an OpenAI-compatible API, `https://host/v1`, with `#name` behind it
    where it serves several models. `objective` is the engine's: "ttft", "throughput" or "even".
    `tensor_parallel` is the number of processes, of a device each, that a language model's layers are
    split over. `device_map` puts the modules of a checkpoint of transformers on several devices: a plan
    of accelerate ("auto", ...) or a JSON file.

    Raises:
        InvalidOption: device, dtype, sparsity, objective, tensor_parallel or device_map for a server, an
            address that cannot be used, sparsity for a checkpoint that is no composite, device_map for
            one, tensor_parallel for a model that does more than read or with fewer devices.
        RemoteError: the server cannot be used.
        ModelNotFound: no model there.
        IncompatibleModel: a model this project cannot run.
    """
    if isinstance(model, str) and model.startswith(("http://", "https://")):
        from multimodal.remote import RemoteBackend

        given = (device, dtype, sparsity, objective, tensor_parallel, device_map)
        if given != ("auto", "auto", None, None, 1, None):
            raise InvalidOption(
                "a server runs its model its own way: leave out device, dtype, sparsity, objective,"
                " tensor_parallel, device_map"
            )
        return RemoteBackend(model)
    from multimodal.configuration import MultimodalConfig
    from multimodal.loading import read_config

    if isinstance(read_config(model or DEMO), MultimodalConfig):
        from multimodal.local import LocalBackend

        if tensor_parallel != 1:
            raise InvalidOption(
                "tensor_parallel is for language models that only read; leave it out for a composite"
            )
        if device_map is not None:
            raise InvalidOption(
                "device_map is for checkpoints of transformers; a composite lies on one device, so leave"
                " it out"
            )
        return LocalBackend.from_pretrained(
            model or DEMO, device=device, dtype=dtype, sparsity=sparsity, objective=objective
        )
    from multimodal.native import NativeBackend

    if sparsity is not None:
        raise InvalidOption("sparsity is for composites; leave it out, or join one by compose()")
    return NativeBackend.from_pretrained(
        model or DEMO, device=device, dtype=dtype, objective=objective,
        tensor_parallel=tensor_parallel, device_map=device_map,
    )  # fmt: skip
