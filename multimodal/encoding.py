"""Media to embeddings, each content once: a thread that encodes what waits of all requests together.

Message parts in, `Encoded` out, kept by content within a budget of bytes. Knows no prompt and no
language model beyond its embedding space.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from encoders.errors import InvalidPixels, ModelError, UnreadableAudio
from multimodal.backends import Region
from multimodal.measures import Measures
from multimodal.modeling import MultimodalForConditionalGeneration
from multimodal.processing import Medium, MultimodalProcessor

CACHE_BYTES = 2**28
NUM_PICTURES = 32  # encoded at once
Key = tuple[str, int, str]  # tenant, revision of the weights, digest of the content


@dataclass(eq=False)
class Encoded:
    """A medium with its embeddings `[tokens, hidden]` and, for pictures, its tower features.

    Attributes:
        first: its tokens are numbered `first`, `first - 1`, ...: numbers no other content ever gets.
    """

    medium: Medium
    embeds: torch.Tensor
    first: int
    features: torch.Tensor | None = None
    regions: tuple[Region, ...] | None = None

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        medium = self.medium
        tensors = (self.embeds, self.features, medium.pixels, medium.geometry, *medium.log_mel)
        held = sum(t.numel() * t.element_size() for t in tensors if t is not None)
        return held + (0 if medium.views is None else medium.views.nbytes)


@dataclass(frozen=True)
class _Job:
    key: Key
    medium: Medium
    done: Future[Encoded]


class MediaEncoder:
    """Encodes media of many requests, from any thread; `close` ends its own.

    Args:
        model: its towers and projectors.
        processor: prepares (decodes) a part, on the asking thread.
        budget_bytes: of what is kept; the longest unused go first.

    Attributes:
        measures: how long media take to prepare and to encode, batches, and the cache, by modality.
    """

    def __init__(
        self,
        model: MultimodalForConditionalGeneration,
        processor: MultimodalProcessor,
        *,
        budget_bytes: int = CACHE_BYTES,
    ) -> None:
        self.measures = Measures()
        self._parameters = changeable(model.parameters())
        self._model, self._processor, self._budget = model, processor, budget_bytes
        self._kept: OrderedDict[Key, Encoded] = OrderedDict()
        self._under_way: dict[Key, Future[Encoded]] = {}
        self._jobs: list[_Job] = []
        self._numbers = itertools.count(-1, -1)
        self._news = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def encode(
        self, parts: Sequence[tuple[str, Any]], tenant: str = ""
    ) -> tuple[list[Encoded], int]:
        """Every part encoded, and how many of them anew.

        Raises:
            InputError: a part that cannot be read, or holds NaN or infinite values.
            ModelError: the encoder is closed.
        """
        revision = weights_revision(self._parameters)
        asked = [self._ask(kind, value, tenant, revision) for kind, value in parts]
        return [found.result() for found, _ in asked], sum(new for _, new in asked)

    def close(self) -> None:
        """End the thread and forget what is kept."""
        with self._news:
            self._closed = True
            self._kept.clear()
            self._news.notify()
        # a thread that leaves torch while the interpreter goes would abort the process
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _ask(
        self, kind: str, value: Any, tenant: str, revision: int
    ) -> tuple[Future[Encoded], bool]:
        """The encoded part, perhaps still under way, and whether this call set it going."""
        digest = _digest(kind, value)
        with self._news:
            if self._closed:
                raise ModelError("the model was closed; load it again")
            self.measures.count("encoder_cache_queries", kind)
            found = self._find((tenant, revision, digest)) if digest else None
        if found is not None:
            self.measures.count("encoder_cache_hits", kind)
            return found, False
        with self.measures.timed("media_decode_seconds", kind):
            medium = self._processor.prepare(kind, value)
        _check_finite(medium)
        key = (tenant, revision, digest or medium_digest(medium))
        with self._news:
            if self._closed:  # meanwhile: its thread takes no more
                raise ModelError("the model was closed; load it again")
            found = self._find(key)
            if found is not None and _alike(found, medium):
                self.measures.count("encoder_cache_hits", kind)
                return found, False
            job = _Job(key, medium, Future())
            self._under_way[key] = job.done
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="encoder", daemon=True)
                self._thread.start()
            self._news.notify()
        return job.done, True

    def _find(self, key: Key) -> Future[Encoded] | None:
        if key in self._under_way:
            return self._under_way[key]
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        ready: Future[Encoded] = Future()
        ready.set_result(self._kept[key])
        return ready

    # --- the encoder's thread --------------------------------------------------------------------

    def _loop(self) -> None:
        with torch.inference_mode():
            while jobs := self._take():
                try:
                    embedded = self._embed([job.medium for job in jobs])
                except Exception:  # one of them: again one by one, to fail that one alone
                    for job in jobs:
                        self._finish_alone(job)
                else:
                    for job, (embeds, features) in zip(jobs, embedded, strict=True):
                        self._finish(job, embeds, features)

    def _take(self) -> list[_Job]:
        """Waiting jobs that can be encoded together; empty once closed."""
        with self._news:
            while not self._jobs and not self._closed:
                self._news.wait()
            if not self._jobs:
                return []
            first = self._jobs[0].medium
            jobs: list[_Job] = []
            pictures = 0
            for job in self._jobs:
                pictures += 0 if job.medium.pixels is None else len(job.medium.pixels)
                if jobs and (not _together(first, job.medium) or pictures > NUM_PICTURES):
                    break
                jobs.append(job)
            del self._jobs[: len(jobs)]
            return jobs

    def _finish_alone(self, job: _Job) -> None:
        try:
            ((embeds, features),) = self._embed([job.medium])
        except Exception as error:  # its own request is told
            with self._news:
                self._under_way.pop(job.key, None)
            job.done.set_exception(error)
        else:
            self._finish(job, embeds, features)

    def _finish(self, job: _Job, embeds: torch.Tensor, features: torch.Tensor | None) -> None:
        first = next(self._numbers)
        for _ in range(len(embeds) - 1):
            next(self._numbers)
        encoded = Encoded(job.medium, embeds, first, features)
        with self._news:
            self._under_way.pop(job.key, None)
            self._kept[job.key] = encoded
            held = sum(kept.num_bytes for kept in self._kept.values())
            while held > self._budget and len(self._kept) > 1:
                held -= self._kept.popitem(last=False)[1].num_bytes
        job.done.set_result(encoded)

    def _embed(self, media: Sequence[Medium]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Embeddings and tower features of media that go together; what it took is measured."""
        started = time.perf_counter()
        embedded = self._embedded(media)
        if self._model.device.type != "cpu":  # it has only been asked to so far
            torch.accelerator.synchronize(self._model.device)
        seconds = time.perf_counter() - started
        self.measures.observe("encoder_batch_size", len(media))
        pictures = [1 if m.pixels is None else len(m.pixels) for m in media]
        for kind in sorted({m.kind for m in media}):  # pictures of one size all take the same
            mine = sum(n for n, m in zip(pictures, media, strict=True) if m.kind == kind)
            self.measures.observe("encoder_time_seconds", seconds * mine / sum(pictures), kind)
        return embedded

    def _embedded(self, media: Sequence[Medium]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        if media[0].kind == "audio":
            return [(embeds, None) for embeds in self._hear(media)]
        features = self._see(torch.cat([m.pixels for m in media if m.pixels is not None]))
        counts = [len(m.pixels) for m in media if m.pixels is not None]
        return [
            (self._project(medium, own), own)
            for medium, own in zip(media, map(torch.clone, features.split(counts)), strict=True)
        ]

    def _see(self, pixels: torch.Tensor) -> torch.Tensor:
        batches = pixels.to(self._model.device).split(NUM_PICTURES)
        return torch.cat([self._model.encode_images(batch) for batch in batches])

    def _project(self, medium: Medium, features: torch.Tensor) -> torch.Tensor:
        assert medium.geometry is not None
        device = self._model.device
        study = torch.full((len(features),), 0 if medium.kind == "dicom" else -1, device=device)
        views, regions = self._model.project_images(features, medium.geometry.to(device), study)
        return torch.cat([views, regions])

    def _hear(self, media: Sequence[Medium]) -> list[torch.Tensor]:
        model, device = self._model, self._model.device
        mels = [mel for medium in media for mel in medium.log_mel]
        lengths = torch.tensor([mel.shape[1] for mel in mels])
        longest = int(lengths.max())
        padded = [torch.nn.functional.pad(mel, (0, longest - mel.shape[1])) for mel in mels]
        frames = iter(model.encode_audio(torch.stack(padded).to(device), lengths.to(device)))
        return [
            torch.cat([model.audio_projector(next(frames)) for _ in medium.log_mel])
            for medium in media
        ]


def changeable(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Weights that may change in place; those made in inference mode cannot and count no versions."""
    return [p for p in parameters if not p.is_inference()]


def weights_revision(parameters: Iterable[torch.nn.Parameter]) -> int:
    """A number that grows when `changeable` weights are changed in place."""
    return sum(map(attrgetter("_version"), parameters))


def medium_digest(medium: Medium) -> str:
    """SHA-256 over everything the encoder will see of a medium, and where it says it came from."""
    sha = hashlib.sha256(repr((medium.kind, medium.sources, medium.problems)).encode())
    for tensor in (medium.pixels, medium.geometry, *medium.log_mel):
        if tensor is not None:
            sha.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            sha.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return f"{medium.kind}:{sha.hexdigest()}"


def _digest(kind: str, value: Any) -> str:
    """A content key known before decoding: a loaded volume has one, other media do not."""
    digest = getattr(value, "digest", None)
    return f"{kind}:{digest}" if isinstance(digest, str) else ""


def _together(a: Medium, b: Medium) -> bool:
    """Whether two media can be one batch."""
    if a.pixels is None or b.pixels is None:
        return a.pixels is None and b.pixels is None
    return a.pixels.shape[1:] == b.pixels.shape[1:]


def _alike(found: Future[Encoded], medium: Medium) -> bool:
    """Whether what was found for a digest has the shapes and types of this medium."""
    if not found.done() or found.exception() is not None:
        return not found.done()
    return _shapes(found.result().medium) == _shapes(medium)


def _shapes(medium: Medium) -> list[tuple[Any, ...]]:
    tensors = (medium.pixels, medium.geometry, *medium.log_mel)
    return [(t.dtype, *t.shape) for t in tensors if t is not None]


def _check_finite(medium: Medium) -> None:
    if medium.pixels is not None and not bool(medium.pixels.isfinite().all()):
        raise InvalidPixels(f"the {medium.kind} holds NaN or infinite pixels; export it again")
    if not all(bool(mel.isfinite().all()) for mel in medium.log_mel):
        raise UnreadableAudio("the recording holds NaN or infinite samples; export it again")
