"""POST /v1/audio/transcriptions: a recording in, its words out in any of OpenAI's forms."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Response
from starlette.responses import PlainTextResponse

from multimodal.backends import Backend, GenerateOptions
from multimodal.messages import Audio, user
from multimodal.prompts import TRANSCRIBE
from pipelines.dictation import DictationPipeline, Segment, Transcript
from pipelines.server.desk import Desk
from pipelines.server.exchange import Exchange
from pipelines.server.failures import ApiError, refused

_FIELDS = ("file", "model", "response_format", "stream", "temperature", "timestamp_granularities[]")
_FORMATS = ("json", "text", "verbose_json", "srt", "vtt")


async def transcribe(desk: Desk, exchange: Exchange) -> None:
    """Transcribe a recording, whole or segment by segment."""
    async with desk.admitted(exchange) as ticket:
        form = await exchange.form(_FIELDS, desk.settings.max_body_mib)
        shape, streams = _checked(form)
        desk.check_model(form.get("model"))
        media = desk.media(ticket)
        recording = await asyncio.to_thread(media.recording, form["file"].file)
        await desk.weigh(
            ticket, [user(Audio(recording), TRANSCRIBE)], GenerateOptions(max_new_tokens=1)
        )

        def work(backend: Backend) -> Iterator[Segment | Transcript]:
            return DictationPipeline(backend)(recording, stream=True)

        async with aclosing(desk.run(ticket, work)) as events:
            async for event in events:
                if isinstance(event, Segment) and streams:
                    await exchange.event({"type": "transcript.text.delta", "delta": _piece(event)})
        assert isinstance(event, Transcript)
        if streams:
            await exchange.event({"type": "transcript.text.done", "text": event.text})
            await exchange.end_events()
        else:
            await exchange.respond(_written(event, shape))
        desk.meters.finished("transcriptions", time.monotonic() - ticket.entered, "stop")


def _checked(form: Mapping[str, Any]) -> tuple[str, bool]:
    """The form of the answer and whether it is streamed; what can't be honoured is refused."""
    shape, streams = form.get("response_format", "json"), form.get("stream", "false") == "true"
    if shape not in _FORMATS:
        raise ApiError(
            400, f"response_format must be one of {', '.join(_FORMATS)}", "invalid_value",
            param="response_format",
        )  # fmt: skip
    if streams and shape not in ("json", "text"):
        raise refused("stream", f"{shape} is made of the whole; leave one of the two out")
    if form.get("temperature", "0") not in ("0", "0.0"):
        raise refused("temperature", "recordings are transcribed without chance; leave it out")
    if form.get("timestamp_granularities[]", "segment") != "segment":
        raise refused("timestamp_granularities", "only 'segment' is known")
    if "timestamp_granularities[]" in form and shape != "verbose_json":
        raise refused("timestamp_granularities", "it goes with response_format verbose_json")
    return shape, streams


def _piece(segment: Segment) -> str:
    return f"{segment.text} " if segment.text else ""


def _written(transcript: Transcript, shape: str) -> Response:
    from starlette.responses import JSONResponse

    segments = transcript.segments
    if shape == "json":
        return JSONResponse({"text": transcript.text})
    if shape == "verbose_json":
        told = [
            {"id": i, "start": s.start_s, "end": s.end_s, "text": s.text}
            for i, s in enumerate(segments)
        ]
        duration_s = segments[-1].end_s if segments else 0.0
        return JSONResponse({
            "task": "transcribe", "duration": duration_s, "text": transcript.text, "segments": told
        })  # fmt: skip
    if shape == "text":
        return PlainTextResponse(transcript.text + "\n")
    return PlainTextResponse(_subtitles(segments, shape))


def _subtitles(segments: Sequence[Segment], shape: str) -> str:
    """SubRip numbers its blocks and writes a comma before milliseconds, WebVTT a point."""
    mark = "," if shape == "srt" else "."
    blocks = []
    for number, segment in enumerate((s for s in segments if s.text), 1):
        times = (
            f"{_clock(segment.start_s, mark)} --> {_clock(segment.end_s, mark)}\n{segment.text}\n"
        )
        blocks.append(f"{number}\n{times}" if shape == "srt" else times)
    return ("" if shape == "srt" else "WEBVTT\n\n") + "\n".join(blocks)


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
