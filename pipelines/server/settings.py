"""What the server allows: one frozen value, each limit with its default.

Sizes are told in the unit of their name; who is over a limit gets the status in brackets.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from encoders.errors import InvalidOption

UNKNOWN_SLOTS = 8


@dataclass(frozen=True)
class Settings:
    """Limits of one server.

    Attributes:
        max_running: requests that the model works on at the same time; 0 for as many as it says.
        max_waiting: requests that may wait; 0 for four times `max_running` (429).
        max_prefill_s: how long reading all waiting prompts may take at the measured rate (429).
        tenant_share: share of `max_waiting` that one of several tenants may have in flight (429).
        max_body_mib: of a JSON request, its media included (413).
        max_item_mib: of one medium in a request (413).
        max_upload_mib: of one uploaded file (413).
        max_stored_mib: of all files that one tenant has uploaded (413).
        max_megapixels: of one picture, frame or slice (413).
        max_audio_s: of one recording or video (413).
        max_frames: of one DICOM input (413).
        queue_s: for a request's body to come in, and then for its turn (408, 504).
        first_token_s: until the first token (504).
        total_s: for a whole answer; one that has begun ends with `finish_reason: timeout` (504).
        max_buffered: events kept for a client that reads slowly.
        slow_reader_s: how long such a client may take nothing before its request is cancelled.
        drain_s: for accepted requests to end after SIGTERM.
        stalled_s: without any event while requests run, after which the server is not ready.
        keep_s: how long uploaded files and finished readings are kept.
        max_new_tokens: of an answer whose request names no limit.
        folder: where uploads and readings lie; replicas that share it see each other's. A temporary
            one of this server's own if None.
        media_hosts: hosts from which media may be fetched; none by default (400).
        metrics_compat: "vllm" for its names beside ours.
        otel: whether spans are sent to OpenTelemetry.
    """

    max_running: int = 0
    max_waiting: int = 0
    max_prefill_s: float = 30.0
    tenant_share: float = 0.25
    max_body_mib: float = 64
    max_item_mib: float = 32
    max_upload_mib: float = 1024
    max_stored_mib: float = 4096
    max_megapixels: float = 50
    max_audio_s: float = 600.0
    max_frames: int = 512
    queue_s: float = 60.0
    first_token_s: float = 120.0
    total_s: float = 600.0
    max_buffered: int = 256
    slow_reader_s: float = 10.0
    drain_s: float = 25.0
    stalled_s: float = 60.0
    keep_s: float = 3600.0
    max_new_tokens: int = 256
    folder: Path | None = None
    media_hosts: frozenset[str] = frozenset()
    metrics_compat: str = ""
    otel: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("max_running", "max_waiting"):
                if value < 0:
                    raise InvalidOption(f"{item.name} is {value}; it must not be negative")
            elif type(value) in (int, float) and not value > 0:
                raise InvalidOption(f"{item.name} is {value}; it must be more than 0")
        if self.metrics_compat not in ("", "vllm"):
            raise InvalidOption(f"metrics_compat is {self.metrics_compat!r}; only 'vllm' is known")

    def fitted(self, slots: int) -> Settings:
        """With places for a backend that answers so many at a time; 0 if it does not say."""
        running = self.max_running or slots or UNKNOWN_SLOTS
        return replace(self, max_running=running, max_waiting=self.max_waiting or 4 * running)
