"""Messages as a native checkpoint's own processor takes them: its template, its tensors, our sources.

Media become pictures, sound and frames; the template says where they stand in the text; the layout
says which tokens stand for which picture. Runs no model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from encoders.errors import IncompatibleModel, InvalidMessage
from encoders.features import Modality, Problem, Source, Span
from multimodal import prompts
from multimodal.drawing import picture_of, sound_of, study_views, view_pictures
from multimodal.measures import Measures
from multimodal.messages import Audio, Image, Message, Part, Study, Text, Video, value_of
from multimodal.native_families import Family
from multimodal.processing import NUM_VIDEO_FRAMES

Kind = Literal["image", "video", "audio"]
_PICTURE_SHARE = 0.75  # of the context, that a study's pictures may take; the rest is for words
_NUM_KEPT = 8  # studies drawn already


@dataclass(frozen=True)
class Shown:
    """A medium as a processor takes it: pictures, one recording or one video of frames.

    `labels` stand beside the items, none or one each; `sources` say where each came from.
    """

    kind: Kind
    items: tuple[Any, ...]
    sources: tuple[Source, ...]
    key: str
    labels: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What a model takes for a conversation, and what its tokens stand for.

    Attributes:
        text: as the template wrote it, each medium one placeholder.
        tensors: the processor's.
        layout: runs of media tokens and the picture, sound or video that each stands for.
        media_tokens: of the prompt, by position: whether it stands for a medium.
        media_key: digest of all media; "" without any.
        kinds: of the media, in order.
    """

    text: str
    tensors: Mapping[str, torch.Tensor]
    layout: tuple[Span, ...]
    media_tokens: torch.Tensor
    media_key: str
    kinds: tuple[Kind, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Of each medium, in order: a study is shown as pictures, but the layout knows better."""
        told = {span.source.part: span.source.modality for span in self.layout}
        return tuple(told.get(part, kind) for part, kind in enumerate(self.kinds))

    @property
    def tokens_by_modality(self) -> Mapping[Modality, int] | None:
        """How many tokens stand for media of each modality; None where the layout does not tell."""
        told: Counter[Modality] = Counter()
        for span in self.layout:
            told[span.source.modality] += span.stop - span.start
        return dict(told) if told.total() == int(self.media_tokens.sum()) else None


class Prompter:
    """Writes prompts for one model.

    Args:
        processor: transformers' processor, or the tokenizer of a model that only reads.
        family: how its family wants to be asked.
        name: the model's, for errors.
        max_len: tokens of its context.
    """

    def __init__(self, processor: Any, family: Family, name: str, max_len: int) -> None:
        self.processor, self.family, self.name, self._max_len = processor, family, name, max_len
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.measures = Measures()
        self._kept: dict[str, Shown] = {}
        self._lists = True
        self._lists = self._reads_lists()
        kinds: tuple[Kind, ...] = ("image", "video", "audio")
        self.kinds = frozenset(kind for kind in kinds if self._places(kind))
        self._interleaves = "image" not in self.kinds or self._keeps_order()

    @property
    def modalities(self) -> frozenset[Modality]:
        """What it can be asked about."""
        extra: set[Modality] = {"text", "dicom"} if "image" in self.kinds else {"text"}
        return frozenset({*self.kinds, *extra})

    def write(
        self, messages: Sequence[Message], choices: Sequence[str] = (), tenant: str = ""
    ) -> Prompt:
        """A conversation as the model takes it, asking for one of `choices` if there are any.

        Raises:
            IncompatibleModel: a medium that this model does not take.
            InputError: a medium that cannot be read, or a text that the model would obey.
        """
        self._refuse(messages)
        turns: list[dict[str, Any]] = []
        media: list[Shown] = []
        for message in self._folded(messages):
            content: list[dict[str, Any]] = []
            for part in message.parts:
                if isinstance(part, Text):
                    _add_text(content, part.text)
                    continue
                shown = self._show(part, tenant)
                media.append(shown)
                content += self._placed(shown)
            turns.append({"role": message.role, "content": content})
        if choices:
            _add_text(turns[-1]["content"], prompts.ONE_OF.format(choices=", ".join(choices)))
        return self._prompt(self.render(turns), media)

    def render(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """Turns with parts as the prompt that asks for the assistant's.

        Raises:
            InvalidMessage: the template refuses them, saying why.
            IncompatibleModel: there is no template.
        """
        import jinja2

        if not self._lists:
            turns = [{**t, "content": "".join(map(self._word, t["content"]))} for t in turns]
        template = self.family.chat_template
        owners = (self.processor, self.tokenizer)
        asker = next((o for o in owners if getattr(o, "chat_template", None)), None)
        if template is not None:
            asker = self.tokenizer
        if asker is None:
            raise IncompatibleModel(
                f"{self.name!r} has no chat template: choose the instruction-tuned checkpoint"
            )
        try:
            return asker.apply_chat_template(
                list(turns), chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise InvalidMessage(f"{self.name} refuses the conversation: {error}") from error

    def sample(self, kind: Kind, seed: int = 0) -> Prompt:
        """A short prompt with a small medium of this kind, to try the model with."""
        from PIL.Image import fromarray

        chance = np.random.default_rng(seed)
        picture = fromarray(chance.integers(0, 256, (64, 64, 3), np.uint8))
        if kind == "image":
            shown = self._show(Image(picture), "")
        elif kind == "audio":
            shown = self._show(Audio(chance.uniform(-1, 1, 16000).astype(np.float32), 16000), "")
        else:
            shown = self._film([(picture, float(second)) for second in range(4)])
        words = {"type": "text", "text": "word"}
        return self._prompt(
            self.render([{"role": "user", "content": [{"type": kind}, words]}]), [shown]
        )

    def encode_choice(self, choice: str, prompt: Prompt | None = None) -> list[int]:
        """A choice's tokens; after a colon the answer begins with a space."""
        lead = " " if prompt and prompt.text.endswith(":") else ""
        return self.tokenizer.encode(lead + choice, add_special_tokens=False)

    # --- what the template does with a part -----------------------------------------------------

    def _reads_lists(self) -> bool:
        """Whether contents may be lists of parts; some templates of old want plain strings."""
        turn = {"role": "user", "content": [{"type": "text", "text": "word"}]}
        try:
            text = self.render([turn])
        except (InvalidMessage, TypeError):
            return False
        return "word" in text and "'type'" not in text

    def _word(self, part: Mapping[str, Any]) -> str:
        return part["text"] if part["type"] == "text" else self._token(part["type"])

    def _token(self, kind: str) -> str:
        return getattr(self.processor, f"{kind}_token", None) or ""

    def _places(self, kind: Kind) -> bool:
        """Whether the processor takes this kind and the template gives it a place."""
        tools = {
            "image": ("image_processor",), "video": ("video_processor",),
            "audio": ("feature_extractor", "audio_processor"),
        }  # fmt: skip
        if not any(getattr(self.processor, tool, None) for tool in tools[kind]):
            return False
        words = {"type": "text", "text": "word"}
        try:
            with_part = self.render([{"role": "user", "content": [{"type": kind}, words]}])
        except (InvalidMessage, TypeError):
            return False
        return len(with_part) > len(self.render([{"role": "user", "content": [words]}]))

    def _keeps_order(self) -> bool:
        """Whether words between pictures stay between them; some templates put pictures first."""
        words = [{"type": "text", "text": f"word{i}"} for i in range(2)]
        picture = {"type": "image"}
        text = self.render([{"role": "user", "content": [words[0], picture, words[1], picture]}])
        middle = text[text.find("word0") + 5 : text.find("word1")]
        return bool(middle.strip())

    # --- messages -> parts ----------------------------------------------------------------------

    def _refuse(self, messages: Sequence[Message]) -> None:
        control = {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        for index, message in enumerate(messages):
            for part in message.parts:
                kind, value = value_of(part)
                if kind not in self.modalities:
                    raise IncompatibleModel(self._lacks(kind))
                if kind == "text" and (found := sorted(t for t in control if t in value)):
                    raise InvalidMessage(
                        f"the text of messages[{index}] holds {found[0]!r}, which this model takes"
                        " for a control token; remove it"
                    )

    def _lacks(self, kind: str) -> str:
        what = {
            "image": "pictures", "dicom": "DICOM studies", "video": "video", "audio": "sound"
        }[kind]  # fmt: skip
        if self.modalities == {"text"}:
            return (
                f"{self.name} only reads; give it eyes and ears by"
                f" multimodal.compose(vision=…, audio=…, backbone=…), or choose a model for {what}"
            )
        taken = ", ".join(sorted(self.modalities))
        return f"{self.name} takes no {what} ({taken} only); choose a model that does"

    def _folded(self, messages: Sequence[Message]) -> Sequence[Message]:
        """System words at the head of the first user turn, where the family has no system turn."""
        first = messages[0]
        if self.family.takes_system or first.role != "system" or len(messages) < 2:
            return messages
        head = Text(f"{first.text}\n\n")
        return [replace(messages[1], parts=(head, *messages[1].parts)), *messages[2:]]

    def _placed(self, shown: Shown) -> list[dict[str, Any]]:
        """A medium's parts in the prompt, each with its label behind it as MedGemma's have them."""
        parts: list[dict[str, Any]] = []
        if not shown.labels or self._interleaves:
            for index in range(len(shown.items)):
                parts.append({"type": shown.kind})
                if shown.labels:
                    parts.append({"type": "text", "text": shown.labels[index]})
            return parts
        told = f"The pictures show, in order: {'; '.join(shown.labels)}."
        return [{"type": shown.kind}] * len(shown.items) + [{"type": "text", "text": told}]

    # --- parts -> media -------------------------------------------------------------------------

    def _show(self, part: Part, tenant: str) -> Shown:
        """A medium, a study of the same content and tenant as it was drawn before."""
        kind, value = value_of(part)
        digest = getattr(value, "digest", "") if isinstance(part, Study) else ""
        key = digest and f"{tenant} {digest}"
        if key in self._kept:
            return self._kept[key]
        with self.measures.timed("media_decode_seconds", kind):
            shown = self._decoded(part)
        if key:
            self._kept[key] = shown
            while len(self._kept) > _NUM_KEPT:
                del self._kept[next(iter(self._kept))]
        return shown

    def _decoded(self, part: Part) -> Shown:
        if isinstance(part, Image):
            picture, problems = picture_of(part)
            return Shown("image", (picture,), (Source("image"),), _digest(picture), (), problems)
        if isinstance(part, Audio):
            sound = sound_of(part)
            heard = (Source("audio", seconds=(0.0, len(sound) / 16000)),)
            return Shown("audio", (sound,), heard, _digest(sound))
        if isinstance(part, Video):
            from encoders.video import sample_frames

            return self._film(sample_frames(Path(part.video), NUM_VIDEO_FRAMES))
        assert isinstance(part, Study)
        return self._study(part)

    def _film(self, frames: Sequence[tuple[Any, float]]) -> Shown:
        return _film(frames, getattr(self.processor.video_processor, "temporal_patch_size", 1))

    def _study(self, part: Study) -> Shown:
        """A study's pictures, of as many slices as fit the context, evenly by position."""
        shown = self._drawn(part, self.family.num_slices)
        most = int(_PICTURE_SHARE * self._max_len) // self._tokens_of(shown.items[0])
        if len(shown.items) <= most:
            return shown
        num_profiles = len(self.family.ct_profiles)
        fewer = self._drawn(part, max(1, most // num_profiles))
        words = (
            f"the context of {self.name} holds {len(fewer.items)} of {len(shown.items)} pictures"
        )
        return replace(fewer, problems=(*fewer.problems, Problem("FEWER_SLICES", words)))

    def _drawn(self, part: Study, most: int) -> Shown:
        drawn = study_views(part, self.family.ct_profiles, most)
        pictures = [view_pictures(views) for views in drawn]
        in_turn = [
            (pictures[k][i], drawn[k].sources[i], drawn[k].labels[i])
            for i in range(len(drawn[0].sources))
            for k in range(len(drawn))
        ]
        items, sources, labels = zip(*in_turn, strict=True)
        problems = tuple(dict.fromkeys(p for views in drawn for p in views.problems))
        return Shown("image", items, sources, _digest(*items), labels, problems)

    def _tokens_of(self, picture: Any) -> int:
        """Tokens of one picture among others, as the processor makes them."""
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "image"}]}
        pair = Shown("image", (picture, picture), (Source("image"),) * 2, "")
        return max(1, int(self._prompt(self.render([turn]), [pair]).media_tokens.sum()) // 2)

    # --- text and media -> tensors ---------------------------------------------------------------

    def _prompt(self, text: str, media: Sequence[Shown]) -> Prompt:
        tensors = self._tensors(text, media)
        ids = tensors["input_ids"][0]
        is_media = torch.isin(ids, torch.tensor(self._media_ids(*self.kinds), dtype=ids.dtype))
        keys = "".join(f"{shown.kind}:{shown.key} " for shown in media)
        return Prompt(
            text, tensors, self._layout(ids, media), is_media,
            hashlib.sha256(keys.encode()).hexdigest() if media else "",
            tuple(shown.kind for shown in media), tuple(dict.fromkeys(p for shown in media for p in shown.problems)),
        )  # fmt: skip

    def _tensors(self, text: str, media: Sequence[Shown]) -> dict[str, torch.Tensor]:
        bos = self.tokenizer.bos_token
        options: dict[str, Any] = {"return_tensors": "pt"}
        if bos and text.startswith(bos):
            options["add_special_tokens"] = False
        given = {kind: [item for s in media if s.kind == kind for item in s.items]
                 for kind in ("image", "video", "audio")}  # fmt: skip
        if given["image"]:
            options["images"] = [given["image"]]
        if given["audio"]:
            options |= {"audio": given["audio"], "audio_kwargs": {"sampling_rate": 16000}}
        if given["video"]:
            frames = [video for video, _ in given["video"]]
            told = [metadata for _, metadata in given["video"]]
            options |= {"videos": frames}
            seconds = told[0].total_num_frames / 1000
            options["videos_kwargs"] = {
                "do_sample_frames": False, "video_metadata": told,
                "fps": len(told[0].frames_indices) / seconds,
            }  # fmt: skip
        call: Callable[..., Any] = _voxtral if self._is_voxtral() else type(self.processor).__call__
        try:
            made = call(self.processor, text=[text], **options)
        except (ValueError, TypeError, RuntimeError) as error:
            kind = type(error).__name__
            raise IncompatibleModel(
                f"the processor of {self.name} cannot take this conversation ({kind}); give other"
                " media, or another model"
            ) from error
        return {name: torch.as_tensor(value) for name, value in made.items()}

    def _is_voxtral(self) -> bool:
        return type(self.processor).__name__ == "VoxtralProcessor"

    def _media_ids(self, *kinds: str) -> list[int]:
        listed = (getattr(self.processor, f"{kind}_token_ids", None) or [] for kind in kinds)
        return [i for ids in listed for i in ids if i is not None]

    def _layout(self, ids: torch.Tensor, media: Sequence[Shown]) -> tuple[Span, ...]:
        """Runs of media tokens with their sources, in the order of the prompt.

        A kind whose runs cannot be told apart from each other gets none.
        """
        spans: list[Span] = []
        for kind in sorted(self.kinds):
            tokens = torch.tensor(self._media_ids(kind), dtype=ids.dtype)
            places = torch.isin(ids, tokens).nonzero().flatten().tolist()
            numbered = [(i, shown) for i, shown in enumerate(media) if shown.kind == kind]
            sources = [replace(s, part=i) for i, shown in numbered for s in shown.sources]
            if not (runs := _runs(places, len(sources))):
                runs, sources = _runs(places, len(numbered)), [_whole(s, i) for i, s in numbered]
            pairs = zip(runs, sources[: len(runs)], strict=True)
            spans += [Span(start, stop, source) for (start, stop), source in pairs]
        return tuple(sorted(spans, key=lambda span: span.start))


def _add_text(content: list[dict[str, Any]], text: str) -> None:
    """Words after words become one text: templates trim each part and put nothing between two."""
    if content and content[-1]["type"] == "text":
        content[-1] = {"type": "text", "text": f"{content[-1]['text']}\n\n{text}"}
    else:
        content.append({"type": "text", "text": text})


def _runs(places: Sequence[int], count: int) -> list[tuple[int, int]]:
    """`count` runs of neighbouring positions as (start, stop); [] where there are not as many.

    One run for several items of equal length is cut into equal parts.
    """
    starts = [p for k, p in enumerate(places) if k == 0 or places[k - 1] != p - 1]
    stops = [p + 1 for k, p in enumerate(places) if k == len(places) - 1 or places[k + 1] != p + 1]
    if len(starts) == count:
        return list(zip(starts, stops, strict=True))
    if len(starts) == 1 and count and len(places) % count == 0:
        size = len(places) // count
        return [(starts[0] + k * size, starts[0] + (k + 1) * size) for k in range(count)]
    return []


def _whole(shown: Shown, index: int) -> Source:
    """One source for all of a medium: of a video from its first frame to its last."""
    first, last = shown.sources[0], shown.sources[-1]
    if first.seconds is None or last.seconds is None:
        return Source(first.modality, part=index)
    return Source(first.modality, part=index, seconds=(first.seconds[0], last.seconds[1]))


def _film(frames: Sequence[tuple[Any, float]], together: int) -> Shown:
    """Frames `[n, h, w, 3]` and when each was, in milliseconds as transformers' metadata has it.

    So many frames `together` become the tokens of one moment, and have one source.
    """
    from transformers.video_utils import VideoMetadata

    stack = np.stack([np.asarray(image) for image, _ in frames])
    moments = [round(1000 * second) for _, second in frames]
    gap = (moments[-1] - moments[0]) / max(len(frames) - 1, 1) or 1000
    told = VideoMetadata(round(gap * len(frames)), fps=1000.0, frames_indices=moments)
    seconds = [second for _, second in frames]
    groups = (seconds[i : i + together] for i in range(0, len(seconds), together))
    sources = tuple(Source("video", seconds=(group[0], group[-1])) for group in groups)
    return Shown("video", ((stack, told),), sources, _digest(stack, np.array(moments)))


def _digest(*items: Any) -> str:
    """SHA-256 of pictures or samples and their shapes."""
    sha = hashlib.sha256()
    for item in items:
        values = np.ascontiguousarray(item)
        sha.update(f"{values.shape} {values.dtype}".encode())
        sha.update(values.tobytes())
    return sha.hexdigest()


_VOXTRAL_WINDOW, _VOXTRAL_TOKENS = 480_000, 375  # samples of 30 s, and the tokens they become


def _voxtral(
    processor: Any, text: Sequence[str], audio: Sequence[np.ndarray] = (), **_: Any
) -> Any:
    """What `VoxtralProcessor` makes by `mistral_common`, made without it: 30 s windows, 375 tokens.

    Its own call takes no sound, and its chat template needs that library.
    """
    windows = [-(-len(sound) // _VOXTRAL_WINDOW) for sound in audio]
    pieces = text[0].split(processor.audio_token)
    grown = pieces[0] + "".join(
        processor.audio_token * (_VOXTRAL_TOKENS * count) + piece
        for count, piece in zip(windows, pieces[1:], strict=True)
    )
    made = dict(processor.tokenizer(grown, return_tensors="pt", add_special_tokens=False))
    features = [
        processor.feature_extractor(
            sound, sampling_rate=16000, padding=True, truncation=False,
            pad_to_multiple_of=_VOXTRAL_WINDOW, return_tensors="pt",
        )["input_features"].unflatten(-1, (-1, 3000)).squeeze(0).transpose(0, 1)
        for sound in audio
    ]  # fmt: skip
    if features:
        made["input_features"] = torch.cat(features)
    return {k: v for k, v in made.items() if k != "token_type_ids"}
