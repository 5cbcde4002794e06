"""The processor: chat messages and media in, token ids and tensors out, every token's source kept.

A media part stands in the prompt as one word (`<image>`, `<video>`, `<audio>`, `<study>`); here it
grows into as many placeholder tokens as its features will take, counted before anything is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from encoders.errors import InvalidMessage, PlaceholderMismatch
from encoders.features import Problem, Source, Span

if TYPE_CHECKING:
    from encoders.vision import Preprocess
    from multimodal.configuration import MultimodalConfig

IMAGE, VIDEO, AUDIO, STUDY = "<image>", "<video>", "<audio>", "<study>"
REGION, STUDY_END = "<region>", "</study>"
SPECIAL_TOKENS = (IMAGE, AUDIO, STUDY, REGION, STUDY_END)
_WORD = re.compile("|".join((IMAGE, VIDEO, AUDIO, STUDY)))
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
    pixels: torch.Tensor | None = None  # [n, 3, H, W] normalised
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

        Raises:
            InvalidMessage: a part this project does not know.
        """
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        chats = [conversation] if single else conversation
        add_prompt = kwargs.pop("add_generation_prompt", False)
        go_on = kwargs.pop("continue_final_message", False)
        flat = [_flatten(chat) for chat in chats]
        texts = [
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=chat_template or self.chat_template,
                tokenize=False,
                add_generation_prompt=add_prompt,
                continue_final_message=go_on,
            )
            for messages, _ in flat
        ]
        if not tokenize:
            return texts[0] if single else texts
        media = [[self.prepare(kind, value) for kind, value in parts] for _, parts in flat]
        inputs = self.join(texts, media)
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

        Media come as one list over all prompts, in order, per kind.

        Raises:
            PlaceholderMismatch: words and media differ in number.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
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
        return self.join(texts, media).tensors

    def process(self, chats: Sequence[Sequence[Mapping[str, Any]]]) -> Inputs:
        """Chats (dict messages) -> `Inputs` with layout, ready for an answer to be generated."""
        flat = [_flatten(chat) for chat in chats]
        media = [[self.prepare(kind, value) for kind, value in parts] for _, parts in flat]
        return self.join([self.render(messages) for messages, _ in flat], media)

    def render(self, messages: list[dict[str, str]]) -> str:
        """Plain-string messages as the prompt that asks for the assistant's turn."""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )

    def prepare(self, kind: str, value: Any) -> Medium:
        """Decode one media part and count its tokens."""
        return _PREPARE[kind](self, value)

    def join(
        self, texts: Sequence[str], media: Sequence[Sequence[Medium]], padding: bool = True
    ) -> Inputs:
        """Prompts and prepared media -> padded tensors and layout.

        Raises:
            PlaceholderMismatch: words and media differ in number.
        """
        grown = [self._grow(text, parts) for text, parts in zip(texts, media, strict=True)]
        side = getattr(self.tokenizer, "padding_side", "left")
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
        assert side in ("left", "right")
        return Inputs(BatchFeature(data), layout, problems, tuple(tuple(m) for m in media))

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def _grow(self, text: str, parts: Sequence[Medium]) -> str:
        words = _WORD.findall(text)
        if [_kind_of(w) for w in words] != [p.kind for p in parts]:
            raise PlaceholderMismatch(
                f"the prompt's placeholders {words} do not match the media given"
                f" {[p.kind for p in parts]}; plain text may not contain placeholder words"
            )
        queue = iter(parts)
        return _WORD.sub(lambda _: next(queue).words, text)

    def _layout(self, ids: torch.Tensor, parts: Sequence[Medium]) -> tuple[Span, ...]:
        """Runs of tokens with one source: media tokens in order, by their placeholder ids."""
        convert = self.tokenizer.convert_tokens_to_ids
        media_ids = torch.tensor([convert(token) for token in SPECIAL_TOKENS])
        places = torch.isin(ids, media_ids).nonzero().flatten().tolist()
        sources = [(index, source) for index, part in enumerate(parts) for source in part.sources]
        spans: list[Span] = []
        for place, (index, source) in zip(places, sources, strict=True):
            if source is None:
                continue
            from dataclasses import replace

            here = replace(source, part=index)
            if spans and spans[-1].stop == place and spans[-1].source == here:
                spans[-1] = Span(spans[-1].start, place + 1, here)
            else:
                spans.append(Span(place, place + 1, here))
        return tuple(spans)

    # --- one method per kind of part -------------------------------------------------------

    def _preprocess(self) -> Preprocess:
        from encoders.vision import Preprocess

        values = self._sense("vision")["preprocess"]
        return Preprocess(
            values["size"], tuple(values["mean"]), tuple(values["std"]), values["interpolation"]
        )

    def _sense(self, name: str) -> Mapping[str, Any]:
        from encoders.errors import IncompatibleModel

        if self.senses.get(name) is None:
            raise IncompatibleModel(f"this model has no {name} tower; compose one with {name}=…")
        return self.senses[name]

    def _image(self, value: Any) -> Medium:
        pixels = self._preprocess().from_images([_open_image(value)])
        n = self._sense("vision")["tokens_per_view"]
        return Medium("image", IMAGE * n, (Source("image"),) * n, pixels, torch.zeros(1, 11))

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
        source = Path(samples) if isinstance(samples, str) else samples
        speech = load_speech(source, rate)
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
        from encoders.dicom.views import PROFILES, Views, make_views

        sense = self._sense("vision")
        views = value
        problems: tuple[Problem, ...] = ()
        if not isinstance(value, Views):
            volume = _open_volume(value)
            problems = volume.problems
            views = make_views(volume, PROFILES[sense["view_profile"]])
        pixels = self._preprocess().normalise(torch.from_numpy(views.pixels))
        n, regions = sense["tokens_per_view"], sense["num_regions"]
        words = STUDY + IMAGE * (n * len(views.sources)) + REGION * regions + STUDY_END
        sources = (None, *(s for s in views.sources for _ in range(n)), *(None,) * (regions + 1))
        return Medium(
            "dicom",
            words,
            sources,
            pixels,
            torch.from_numpy(views.geometry),
            problems=(*problems, *views.problems),
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


def _flatten(
    chat: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, str]], list[tuple[str, Any]]]:
    """Messages with plain-string contents, and the media parts in order."""
    messages, media = [], []
    for index, message in enumerate(chat):
        content = message["content"]
        if isinstance(content, str):
            messages.append({"role": message["role"], "content": content})
            continue
        words = []
        for part in content:
            kind = part.get("type")
            if kind == "text":
                words.append(part["text"])
                continue
            value = next((part[k] for k in (kind, "url", "path") if part.get(k) is not None), None)
            if kind not in _KINDS or value is None:
                raise InvalidMessage(
                    f"messages[{index}] has a part of type {kind!r} without a usable value;"
                    f" known parts are text, {', '.join(_KINDS)}"
                )
            words.append(_KINDS[kind])
            media.append((kind, value))
        messages.append({"role": message["role"], "content": "".join(words)})
    return messages, media


def _kind_of(word: str) -> str:
    return next(kind for kind, w in _KINDS.items() if w == word)


def _listed(values: Any) -> list[Any]:
    """Nothing, one item, a list or a list of lists -> a flat list."""
    if values is None:
        return []
    if not isinstance(values, list | tuple) or _is_recording(values):
        return [values]
    return [v for item in values for v in (item if isinstance(item, list) else [item])]


def _is_recording(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray)


def _open_image(value: Any) -> Any:
    from PIL import Image, UnidentifiedImageError

    from encoders.errors import MissingInput, UnreadableImage

    if isinstance(value, np.ndarray):
        return Image.fromarray(value)
    if not isinstance(value, str | Path):
        return value
    path = Path(value)
    if not path.is_file():
        raise MissingInput(f"image {path.name!r} does not exist; check the path")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UnreadableImage(
            f"{path.name!r} is not a picture that can be decoded; save it as PNG or JPEG"
        ) from error


def _open_volume(value: Any) -> Any:
    from encoders.dicom import scan
    from encoders.dicom.volume import Volume, load_volume

    if isinstance(value, Volume):
        return value
    return load_volume(scan(Path(value)).default())


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
