"""POST /v1/readings: a CT with its report in, a `Reading` out, at once or as a job to ask for.

Jobs stand on a shelf for a while, each seen by its own tenant alone, so that any replica can tell
of them: the one that reads says every other second that it still does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multimodal.backends import Backend, GenerateOptions
from multimodal.messages import Audio, Study, user
from multimodal.prompts import LIST_FINDINGS
from pipelines.evidence import Discrepancy, Finding, Reading
from pipelines.server.admission import Ticket
from pipelines.server.bodies import ReadingBody
from pipelines.server.desk import Desk
from pipelines.server.exchange import Exchange
from pipelines.server.failures import ApiError, as_api_error, stage_of
from pipelines.server.shelf import Shelf
from pipelines.session import Step

if TYPE_CHECKING:
    from pipelines.ct_report import Progress

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
_UNDER_WAY = ("queued", "in_progress")
_BEAT_S = 2.0
_GONE_S = 30.0  # without a beat


@dataclass
class Job:
    """One reading under way or done."""

    id: str
    tenant: str
    created: float = field(default_factory=time.time)
    status: Status = "queued"
    findings: int = 0
    discrepancies: int = 0
    step: Step = field(default_factory=lambda: Step(""))
    reading: Reading | None = None
    failure: ApiError | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "id": self.id, "object": "reading", "status": self.status,
            "created_at": int(self.created),
            "progress": {
                "stage": self.step.stage, "done": self.step.done, "total": self.step.total,
                "findings": self.findings, "discrepancies": self.discrepancies,
            },
            "reading": self.reading.to_dict() if self.reading else None,
            "error": self.failure.to_dict()["error"] if self.failure else None,
        }  # fmt: skip


@dataclass(frozen=True)
class _Case:
    """What is to be read, as files of this request."""

    study: Path
    dictation: Path | None
    body: ReadingBody

    def read(self, backend: Backend) -> Iterator[Progress]:
        """The reading as it is made."""
        from pipelines.ct_report import CtReportPipeline

        return CtReportPipeline(backend)(
            self.study, self.body.report, self.dictation, self.body.question,
            report_from_study=self.body.report_from_study,
            allow_burned_in=self.body.allow_burned_in, stream=True,
        )  # fmt: skip


class Readings:
    """All readings of one server."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._shelf = Shelf(desk.folder, "reading")
        self._tasks: dict[str, asyncio.Task[None]] = {}  # of jobs that run here

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/readings: the finished reading, or with `background` the job."""
        async with self._desk.admitted(exchange) as ticket:
            body = await exchange.read(ReadingBody)
            self._desk.check_model(body.model)
            case = await self._case(ticket, body)
            job = Job(self._shelf.new_name(), exchange.tenant)
            self._save(job)
            ticket.hold()  # by the task
            task = self._tasks[job.id] = asyncio.create_task(self._run(job, ticket, case))
            beat = asyncio.create_task(self._beat(job, task))
            task.add_done_callback(lambda _: self._ended(job, ticket, beat))
        if body.background:
            await exchange.answer(job.to_dict(), 202)
            return
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():  # then it is this request that nobody waits for
                task.cancel()
                raise
        if job.failure is not None:
            raise job.failure
        await exchange.answer(job.to_dict())

    async def get(self, exchange: Exchange, name: str) -> None:
        """GET /v1/readings/{id}."""
        await exchange.answer(self._told(exchange, name))

    async def page(self, exchange: Exchange, name: str) -> None:
        """GET /v1/readings/{id}/html: the finished reading as a page for people."""
        from starlette.responses import HTMLResponse

        told = self._told(exchange, name)
        if told["status"] != "completed":
            raise ApiError(409, f"the reading is {told['status']}", "not_completed")
        page = self._shelf.path(name, ".html").read_text(encoding="utf-8")
        await exchange.respond(HTMLResponse(page, headers={"Content-Security-Policy": "sandbox"}))

    async def cancel(self, exchange: Exchange, name: str) -> None:
        """POST /v1/readings/{id}/cancel; one that has ended stays as it is."""
        if self._told(exchange, name)["status"] in _UNDER_WAY:
            if name in self._tasks:
                self._tasks[name].cancel()
                await asyncio.wait([self._tasks[name]])
            else:  # the replica that reads looks for this mark
                self._shelf.path(name, ".cancel").touch()
        await exchange.answer(self._told(exchange, name))

    async def delete(self, exchange: Exchange, name: str) -> None:
        """DELETE /v1/readings/{id}: forget one that has ended."""
        if self._told(exchange, name)["status"] in _UNDER_WAY:
            raise ApiError(409, "the reading is under way; cancel it first", "not_completed")
        self._shelf.drop(name)
        await exchange.answer({"id": name, "object": "reading.deleted", "deleted": True})

    async def _case(self, ticket: Ticket, body: ReadingBody) -> _Case:
        """The request's files, weighed."""
        media = self._desk.media(ticket)
        names = [body.study] if isinstance(body.study, str) else body.study
        study = await asyncio.to_thread(media.study, names, "study")
        heard, parts = None, [Study(study)]
        if body.dictation is not None:
            heard = await asyncio.to_thread(media.file, body.dictation, "dictation")
        options = GenerateOptions(max_new_tokens=1)
        await self._desk.weigh(ticket, [user(*parts, LIST_FINDINGS)], options)
        if heard is not None:
            await self._desk.weigh(ticket, [user(Audio(heard), "")], options)
        return _Case(study, heard, body)

    async def _run(self, job: Job, ticket: Ticket, case: _Case) -> None:
        """The job to its end, whatever that is."""
        try:
            async with aclosing(self._desk.run(ticket, case.read)) as events:
                async for event in events:
                    if job.status == "queued":
                        job.status = "in_progress"
                        self._save(job)
                    _note(job, event)
            if job.reading is not None:
                page = await asyncio.to_thread(job.reading.to_html)
                self._shelf.path(job.id, ".html").write_text(page, encoding="utf-8")
        except Exception as error:  # kept with the job, for whoever asks
            job.status, job.failure = "failed", as_api_error(error)
            self._desk.meters.failed(stage_of(job.failure))
        else:
            job.status = "completed"
            self._desk.meters.finished("readings", time.monotonic() - ticket.entered, "stop")

    async def _beat(self, job: Job, task: asyncio.Task[None]) -> None:
        """Say that the job is alive and how far it is; cancel it if another replica was told to."""
        while True:
            await asyncio.sleep(_BEAT_S)
            self._save(job)
            if self._shelf.path(job.id, ".cancel").exists():
                task.cancel()

    def _ended(self, job: Job, ticket: Ticket, beat: asyncio.Task[None]) -> None:
        """Give the job's place back, even if it never began."""
        beat.cancel()
        if self._tasks.pop(job.id).cancelled():
            job.status = "cancelled"
            self._desk.meters.stopped("running" if ticket.started else "waiting")
        self._save(job)
        ticket.leave()

    def _save(self, job: Job) -> None:
        document = {"told": job.to_dict(), "beat": time.time()}
        self._shelf.put(job.id, document, job.tenant, keep_s=self._desk.settings.keep_s)

    def _told(self, exchange: Exchange, name: str) -> dict[str, Any]:
        """What is known of a tenant's job, whichever replica runs it.

        Raises:
            ApiError: 404, there is none of this name, or it is another's, or it has expired.
        """
        found = self._shelf.get(exchange.tenant, name)
        if found is None:
            raise ApiError(404, "no such reading; it may have expired", "reading_not_found")
        told: dict[str, Any] = found["told"]
        if told["status"] in _UNDER_WAY and time.time() - found["beat"] > _GONE_S:
            gone = ApiError(503, "the server that read it is gone; ask once more", "server_gone")
            return {**told, "status": "failed", **gone.to_dict()}
        return told


def _note(job: Job, event: Progress) -> None:
    if isinstance(event, Finding):
        job.findings += 1
    elif isinstance(event, Discrepancy):
        job.discrepancies += 1
    elif isinstance(event, Step):
        job.step = event
    elif isinstance(event, Reading):
        job.reading = event
