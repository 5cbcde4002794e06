"""The processor: chat messages and media in, token ids and tensors out, every token's source kept.

A media part stands in the prompt as one word (`<image>`, `<video>`, `<audio>`, `<study>`); here it
grows into as many placeholder tokens as its features will take, counted before anything is encoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from encoders.errors import InvalidMessage, PlaceholderMismatch
from encoders.features import Problem, Source, Span
from encoders.picture import open_picture
from multimodal.drawing import wanted_views
from multimodal.messages import Message, Study, from_openai, value_of

if TYPE_CHECKING:
    from encoders.dicom import ViewProfile
    from encoders.vision import Preprocess
    from multimodal.backends import MediaSize
    from multimodal.configuration import MultimodalConfig

IMAGE, VIDEO, AUDIO, STUDY = "<image>", "<video>", "<audio>", "<study>"
REGION, STUDY_END = "<region>", "</study>"
SPECIAL_TOKENS = (IMAGE, AUDIO, STUDY, REGION, STUDY_END)
_WORD = re.compile("|".join((IMAGE, VIDEO, AUDIO, STUDY)))
_OTHER_WINDOW = Problem(
    "OTHER_WINDOW", "this model learned from its own windows and was asked to look through another"
)
_KINDS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO, "dicom": STUDY}
NUM_VIDEO_FRAMES = 8

# ChatML-like; message contents are plain strings by the time a template sees them.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Medium:
    """One prepared media part: its pictures or sound, its words, and where each token came from."""

    kind: Literal["image", "video", "audio", "dicom"]
    words: str
    sources: tuple[Source | None, ...]
    pixels: torch.Tensor | None = None  # [n, channels, H, W] normalised
    geometry: torch.Tensor | None = None  # [n, 11]
    log_mel: tuple[torch.Tensor, ...] = ()  # each [mel, frames]
    problems: tuple[Problem, ...] = ()
    views: np.ndarray | None = None  # [n, 3, H, W] uint8, as shown
    labels: tuple[str, ...] = ()  # one per view, for models that read words between pictures


@dataclass(frozen=True)
class Inputs:
    """What a model takes (`tensors`) and what its tokens stand for (`layout`, one per sample)."""

    tensors: BatchFeature
    layout: tuple[tuple[Span, ...], ...]
    problems: tuple[Problem, ...] = ()
    media: tuple[tuple[Medium, ...], ...] = field(default=(), repr=False)


class MultimodalProcessor(ProcessorMixin):
    """Tokenizer, picture and sound preparation of a composite.

    Args:
        tokenizer: the backbone's, with `SPECIAL_TOKENS` added.
        senses: what `senses_of(config)` took from the model's configuration.
        chat_template: Jinja text; the tokenizer's own where None.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        senses: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.senses = dict(senses or {})
        template = chat_template or getattr(tokenizer, "chat_template", None) or CHAT_TEMPLATE
        super().__init__(tokenizer, chat_template=template)

    @property
    def model_input_names(self) -> list[str]:
        """Every tensor `__call__` may return."""
        media = ["pixel_values", "image_geometry", "image_study", "input_features"]
        return ["input_ids", "attention_mask", *media, "feature_lengths"]

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = True,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render chat messages (dicts with content parts) and, if asked, prepare their media.

        Besides text, image, video and audio a part may be `{"type": "dicom", "dicom": path}`.
        `processor_kwargs` are those of `__call__`, `kwargs` variables of the template.

        Raises:
            InvalidMessage: a part this project does not know.
        """
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        chats = [conversation] if single else conversation
        flat = [self.flatten(from_openai(chat)) for chat in chats]
        options = dict(processor_kwargs or {})
        options["return_tensors"] = kwargs.pop(
            "return_tensors", options.pop("return_tensors", "pt")
        )
        texts = [
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=chat_template or self.chat_template,
                tokenize=False,
                **kwargs,
            )
            for messages, _ in flat
        ]
        if not tokenize:
            return texts[0] if single else texts
        media = [[self.prepare(kind, value) for kind, value in parts] for _, parts in flat]
        inputs = self.join(texts, media, **_checked_options(**options))
        return inputs.tensors if return_dict else inputs.tensors["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        dicom: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prompts with `<image>`, `<video>`, `<audio>`, `<study>` words and their media -> tensors.

        Media come as one list over all prompts, in order, per kind. Of transformers' options
        `padding` is honoured and `return_tensors` must be "pt"; others are refused.

        Raises:
            PlaceholderMismatch: words and media differ in number.
            InvalidMessage: no prompt, or an option that is not honoured.
        """
        options = _checked_options(**kwargs)
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts:
            raise InvalidMessage("a prompt is needed: pass text with a placeholder for each medium")
        given = {
            "image": _listed(images), "video": _listed(videos),
            "audio": _listed(audio), "dicom": _listed(dicom),
        }  # fmt: skip
        wanted = [[_kind_of(word) for word in _WORD.findall(t)] for t in texts]
        for kind, values in given.items():
            places = sum(kinds.count(kind) for kinds in wanted)
            if places != len(values):
                raise PlaceholderMismatch(
                    f"the prompt has {places} {_KINDS[kind]} placeholders but {len(values)}"
                    f" {kind} inputs were given; write one {_KINDS[kind]} for each"
                )
        queues = {kind: iter(values) for kind, values in given.items()}
        media = [[self.prepare(kind, next(queues[kind])) for kind in kinds] for kinds in wanted]
        return self.join(texts, media, **options).tensors

    def process(self, chats: Sequence[Sequence[Mapping[str, Any]]]) -> Inputs:
        """Chats (dict messages) -> `Inputs` with layout, ready for an answer to be generated."""
        flat = [self.flatten(from_openai(chat)) for chat in chats]
        media = [[self.prepare(kind, value) for kind, value in parts] for _, parts in flat]
        return self.join([self.render(messages) for messages, _ in flat], media)

    def flatten(
        self, messages: Sequence[Message]
    ) -> tuple[list[dict[str, str]], list[tuple[str, Any]]]:
        """Messages with plain-string contents, media as their words, and the media in order.

        Raises:
            InvalidMessage: text with a placeholder word or control token, which would be obeyed.
        """
        control = {*_KINDS.values(), *SPECIAL_TOKENS, *self.tokenizer.all_special_tokens}
        plain, media = [], []
        for index, message in enumerate(messages):
            words = []
            for kind, value in map(value_of, message.parts):
                if kind != "text":
                    media.append((kind, value))
                elif found := sorted(token for token in control if token in value):
                    raise InvalidMessage(
                        f"the text of messages[{index}] holds {found[0]!r}, which this model takes"
                        " for a control token; remove it"
                    )
                words.append(value if kind == "text" else _KINDS[kind])
            plain.append({"role": message.role, "content": "".join(words)})
        return plain, media

    def render(self, messages: list[dict[str, str]]) -> str:
        """Plain-string messages as the prompt that asks for the assistant's turn."""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )

    def prepare(self, kind: str, value: Any) -> Medium:
        """Decode one media part and count its tokens."""
        return _PREPARE[kind](self, value)

    def num_tokens(self, text: str, sizes: Sequence[MediaSize]) -> int:
        """Tokens of a rendered prompt whose media were only measured, at most.

        Exact but where a study has gaps, or a recording is cut into windows.
        """
        return len(self.ids_of(text, [(size.modality, self._words_of(size)) for size in sizes]))

    def ids_of(self, text: str, media: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of one rendered prompt; media as (kind, placeholders).

        Raises:
            PlaceholderMismatch: words and media differ in number.
        """
        return self.tokenizer(_grow(text, media), add_special_tokens=False)["input_ids"]

    def join(
        self, texts: Sequence[str], media: Sequence[Sequence[Medium]], padding: bool = True
    ) -> Inputs:
        """Prompts and prepared media -> padded tensors and layout.

        Raises:
            PlaceholderMismatch: words and media differ in number.
        """
        grown = [
            _grow(text, [(m.kind, m.words) for m in parts])
            for text, parts in zip(texts, media, strict=True)
        ]
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        tensors = self.tokenizer(
            grown, padding=padding, return_tensors="pt", add_special_tokens=False
        )
        data = {k: tensors[k] for k in ("input_ids", "attention_mask")}
        data.update(_batched([m for parts in media for m in parts]))
        layout = tuple(
            self._layout(ids, parts) for ids, parts in zip(data["input_ids"], media, strict=True)
        )
        problems = tuple(p for parts in media for m in parts for p in m.problems)
        return Inputs(BatchFeature(data), layout, problems, tuple(tuple(m) for m in media))

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def _layout(self, ids: torch.Tensor, parts: Sequence[Medium]) -> tuple[Span, ...]:
        """Runs of tokens with one source: media tokens in order, by their placeholder ids."""
        convert = self.tokenizer.convert_tokens_to_ids
        media_ids = torch.tensor([convert(token) for token in SPECIAL_TOKENS])
        places = torch.isin(ids, media_ids).nonzero().flatten().tolist()
        sources = [(index, source) for index, part in enumerate(parts) for source in part.sources]
        spans: list[Span] = []
        last: tuple[int, Source] | None = None
        for place, (index, source) in zip(places, sources, strict=True):
            if source is None:
                continue
            if spans and spans[-1].stop == place and last == (index, source):
                spans[-1] = Span(spans[-1].start, place + 1, spans[-1].source)
            else:
                spans.append(Span(place, place + 1, replace(source, part=index)))
            last = (index, source)
        return tuple(spans)

    def _words_of(self, size: MediaSize) -> str:
        """The placeholders of a medium of this size; see `prepare`, which knows it decoded."""
        if size.modality == "audio":
            from encoders.audio import RATE_HZ, num_audio_tokens

            sense = self._sense("audio")
            samples = math.ceil(size.seconds * RATE_HZ)
            # cuts fall into the last third of a window, and each rounds its tokens up
            cuts = math.ceil(samples / (sense["window_seconds"] * RATE_HZ * 2 / 3)) - 1
            within = samples <= int(sense["window_seconds"] * RATE_HZ)
            return AUDIO * (num_audio_tokens(samples, sense["stack"]) + (0 if within else cuts))
        n = self._sense("vision")["tokens_per_view"]
        if size.modality == "dicom":
            return self._study_words(size.num_shown(self._profile().num_views))
        return IMAGE * (n * size.num_shown(NUM_VIDEO_FRAMES))

    def _study_words(self, num_views: int) -> str:
        sense = self._sense("vision")
        views = IMAGE * (sense["tokens_per_view"] * num_views)
        return STUDY + views + REGION * sense["num_regions"] + STUDY_END

    def _profile(self) -> ViewProfile:
        from encoders.dicom import PROFILES

        return PROFILES[self._sense("vision")["view_profile"]]

    # --- one method per kind of part -------------------------------------------------------

    def _preprocess(self) -> Preprocess:
        from encoders.vision import Preprocess

        return Preprocess.read(self._sense("vision")["preprocess"])

    def _sense(self, name: str) -> Mapping[str, Any]:
        from encoders.errors import IncompatibleModel

        if self.senses.get(name) is None:
            raise IncompatibleModel(f"this model has no {name} tower; compose one with {name}=…")
        return self.senses[name]

    def _image(self, value: Any) -> Medium:
        picture, problems = open_picture(value)
        pixels = self._preprocess().from_images([picture])
        n = self._sense("vision")["tokens_per_view"]
        sources = (Source("image"),) * n
        return Medium("image", IMAGE * n, sources, pixels, torch.zeros(1, 11), problems=problems)

    def _video(self, value: Any) -> Medium:
        from encoders.video import sample_frames

        frames = sample_frames(Path(value), NUM_VIDEO_FRAMES)
        pixels = self._preprocess().from_images([image for image, _ in frames])
        n = self._sense("vision")["tokens_per_view"]
        sources = tuple(Source("video", seconds=(s, s)) for _, s in frames for _ in range(n))
        geometry = torch.zeros(len(frames), 11)
        return Medium("video", IMAGE * (n * len(frames)), sources, pixels, geometry)

    def _audio(self, value: Any) -> Medium:
        from encoders.audio import chunk_speech, load_speech, log_mel

        sense = self._sense("audio")
        samples, rate = value if isinstance(value, tuple) else (value, None)
        if rate is None and isinstance(samples, np.ndarray):
            rate = 16000
        speech = load_speech(samples, rate)
        chunks = chunk_speech(speech, sense["window_seconds"])
        mels = tuple(log_mel(chunk, sense["num_mel_bins"]) for _, _, chunk in chunks)
        counts = [-(-((mel.shape[1] + 1) // 2) // sense["stack"]) for mel in mels]
        sources = tuple(
            Source("audio", seconds=(start, stop))
            for (start, stop, _), count in zip(chunks, counts, strict=True)
            for _ in range(count)
        )
        return Medium("audio", AUDIO * sum(counts), sources, log_mel=mels)

    def _dicom(self, value: Any) -> Medium:
        from encoders.dicom import Views
        from encoders.dicom.pictures import viewable

        part = value if isinstance(value, Study) else Study(value)
        views: Any = part.study
        if not isinstance(views, Views):
            views = wanted_views(part, viewable(views), self._profile())
        prepare = self._preprocess()
        stack = bool(views.geometry.any())  # not pictures of several projections
        pixels = (prepare.normalise if stack else prepare.normalise_apart)(
            torch.from_numpy(views.pixels)
        )
        n, regions = (self._sense("vision")[k] for k in ("tokens_per_view", "num_regions"))
        words = self._study_words(len(views.sources))
        sources = (None, *(s for s in views.sources for _ in range(n)), *(None,) * (regions + 1))
        return Medium(
            "dicom",
            words,
            sources,
            pixels,
            torch.from_numpy(views.geometry),
            problems=views.problems if part.window is None else (*views.problems, _OTHER_WINDOW),
            views=views.pixels,
            labels=views.labels,
        )


_PREPARE = {
    "image": MultimodalProcessor._image,
    "video": MultimodalProcessor._video,
    "audio": MultimodalProcessor._audio,
    "dicom": MultimodalProcessor._dicom,
}


def senses_of(config: MultimodalConfig) -> dict[str, Any]:
    """What the processor must know of a model: sizes and token counts of its towers."""
    senses: dict[str, Any] = {}
    if config.vision_config is not None:
        senses["vision"] = {
            "preprocess": dict(config.vision_config["preprocess"]),
            "tokens_per_view": config.tokens_per_view,
            "num_regions": len(config.regions),
            "view_profile": config.view_profile,
        }
    if config.audio_config is not None:
        senses["audio"] = {
            "window_seconds": config.audio_config["window_seconds"],
            "num_mel_bins": config.audio_config["num_mel_bins"],
            "stack": config.audio_stack,
        }
    return senses


def _checked_options(
    padding: bool | str = True, return_tensors: str = "pt", **others: Any
) -> dict[str, bool]:
    """The options that `join` honours; anything else is refused rather than ignored."""
    if others:
        raise InvalidMessage(
            f"the processor does not know the option {min(others)!r}; leave it out"
        )
    if return_tensors != "pt":
        raise InvalidMessage(f"return_tensors is {return_tensors!r}; only 'pt' is made")
    if padding not in (True, False, "longest"):
        raise InvalidMessage(f"padding is {padding!r}; use True (to the longest) or False")
    return {"padding": bool(padding)}


def _kind_of(word: str) -> str:
    return next(kind for kind, w in _KINDS.items() if w == word)


def _grow(text: str, media: Sequence[tuple[str, str]]) -> str:
    """A prompt with each medium's word grown into its placeholders; media as (kind, placeholders)."""
    words = _WORD.findall(text)
    if REGION in text or STUDY_END in text:
        raise PlaceholderMismatch(
            f"{REGION} and {STUDY_END} come with a study; write {STUDY} in their place"
        )
    kinds = [kind for kind, _ in media]
    if [_kind_of(w) for w in words] != kinds:
        raise PlaceholderMismatch(
            f"the prompt's placeholders {words} do not match the media given {kinds};"
            " plain text may not contain placeholder words"
        )
    queue = iter(media)
    return _WORD.sub(lambda _: next(queue)[1], text)


def _listed(values: Any) -> list[Any]:
    """Nothing, one item, a list or a list of lists -> a flat list."""
    if values is None:
        return []
    if not isinstance(values, list | tuple) or _is_recording(values):
        return [values]
    return [v for item in values for v in (item if isinstance(item, list) else [item])]


def _is_recording(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray)


def _batched(media: Sequence[Medium]) -> dict[str, torch.Tensor]:
    """Prepared media of a batch as the model's tensors."""
    data: dict[str, torch.Tensor] = {}
    pictures = [m for m in media if m.pixels is not None]
    if pictures:
        data["pixel_values"] = torch.cat([m.pixels for m in pictures if m.pixels is not None])
        data["image_geometry"] = torch.cat([m.geometry for m in pictures if m.geometry is not None])
        study, count = [], 0
        for medium in pictures:
            assert medium.pixels is not None
            is_study = medium.kind == "dicom"
            study += [count if is_study else -1] * medium.pixels.shape[0]
            count += is_study
        data["image_study"] = torch.tensor(study)
    mels = [mel for m in media for mel in m.log_mel]
    if mels:
        longest = max(mel.shape[1] for mel in mels)
        data["input_features"] = torch.stack(
            [torch.nn.functional.pad(mel, (0, longest - mel.shape[1])) for mel in mels]
        )
        data["feature_lengths"] = torch.tensor([mel.shape[1] for mel in mels])
    return data
