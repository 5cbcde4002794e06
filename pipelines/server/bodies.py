"""Request bodies: every field is honoured, any other refused by its name.

Fields that OpenAI's clients send with a value that changes nothing are taken at that value only.
Neutral defaults differ from OpenAI's in one point: temperature is 0, so that answers repeat.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from multimodal.backends import GenerateOptions
from pipelines.server.failures import ApiError, refused


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where a picture is; its whole content is always used."""

    url: str
    detail: Literal["auto"] | None = None


class ImagePart(_Strict):
    """A picture as data URL, or the address of one on an allowed host."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(_Strict):
    """Where a video is."""

    url: str


class VideoPart(_Strict):
    """A video as data URL, or the address of one on an allowed host."""

    type: Literal["video_url"]
    video_url: VideoUrl


class InputAudio(_Strict):
    """A recording in base64; the data themselves say what they are."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "aac", "webm"]


class AudioPart(_Strict):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class FileValue(_Strict):
    """An uploaded file by its id, or a file as data URL; DICOM comes this way."""

    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class WindowBody(_Strict):
    """Grey levels in Hounsfield units."""

    center: float = Field(allow_inf_nan=False)
    width: float = Field(gt=0, allow_inf_nan=False)


class MediaOptions(_Strict):
    """How a study is to be shown, where not as the model was made for."""

    window: WindowBody | None = None
    frames: int | None = Field(default=None, ge=1)


class FilePart(_Strict):
    """A file: DICOM (one object or a zip), or any other medium; `media_options` go with DICOM."""

    type: Literal["file"]
    file: FileValue
    media_options: MediaOptions | None = None


MediaPart = ImagePart | VideoPart | AudioPart | FilePart
PartBody = Annotated[TextPart | MediaPart, Field(discriminator="type")]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Turn(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[PartBody], BeforeValidator(_as_parts)]


class StreamOptions(_Strict):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class JsonSchema(_Strict):
    """A JSON schema; an answer always fulfils it, `strict` or not."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Strict):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Sampling(_Strict):
    """What chat and completions share."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _check_stream(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "it goes with stream: true")

    def _sampling(self, max_tokens: int) -> dict[str, Any]:
        names = (
            "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
            "frequency_penalty", "seed",
        )  # fmt: skip
        given = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return {**given, "stop": stop, "max_new_tokens": max_tokens}


class ChatBody(_Sampling):
    """POST /v1/chat/completions."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None

    def options(self, max_tokens: int) -> GenerateOptions:
        """How to answer.

        Args:
            max_tokens: of an answer where the request names no limit.

        Raises:
            ApiError: fields that contradict each other.
            InvalidMessage: a value that no model takes.
        """
        self._check_stream()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise refused("max_tokens", "max_completion_tokens says the same; give one of the two")
        limit = self.max_completion_tokens or self.max_tokens or max_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "it goes with logprobs: true")
        told = (self.top_logprobs or 0) if self.logprobs else None
        return GenerateOptions(
            **self._sampling(limit), logprobs=told, json_schema=_schema(self.response_format)
        )


class CompletionBody(_Sampling):
    """POST /v1/completions."""

    prompt: str
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    def options(self, max_tokens: int) -> GenerateOptions:
        """How to answer; see `ChatBody.options`."""
        self._check_stream()
        return GenerateOptions(**self._sampling(self.max_tokens or max_tokens))


class TokenizeBody(_Strict):
    """POST /v1/tokenize: a conversation, or a prompt as /v1/completions takes it."""

    model: str
    messages: list[Turn] | None = Field(None, min_length=1)
    prompt: str | None = None


class ReadingBody(_Strict):
    """POST /v1/readings.

    `study` and `dictation` are ids of uploaded files or data URLs; a study may be several files.
    """

    study: str | list[str]
    report: str | None = None
    dictation: str | None = None
    question: str | None = None
    report_from_study: bool = False
    allow_burned_in: bool = False
    background: bool = False
    model: str | None = None


def _schema(form: ResponseFormat | None) -> str | None:
    """The JSON schema that an answer has to fulfil, as text."""
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return '{"type": "object"}'
    if form.json_schema is None:
        raise ApiError(
            400, "response_format.json_schema is missing", "missing_required_parameter",
            param="response_format.json_schema",
        )  # fmt: skip
    return json.dumps(form.json_schema.schema_)
