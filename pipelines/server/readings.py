"""POST /v1/readings: a CT with its report in, a `Reading` out, at once or as a job to ask for.

Jobs are kept for a while, in memory, each seen by its own tenant alone.
"""

from __future__ import annotations

import asyncio
import secrets
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
from pipelines.session import Step

if TYPE_CHECKING:
    from pipelines.ct_report import Progress

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


@dataclass
class Job:
    """One reading under way or done."""

    tenant: str
    id: str = field(default_factory=lambda: f"reading-{secrets.token_hex(12)}")
    created: float = field(default_factory=time.time)
    status: Status = "queued"
    findings: int = 0
    discrepancies: int = 0
    step: Step = field(default_factory=lambda: Step(""))
    reading: Reading | None = None
    failure: ApiError | None = None
    ended: float | None = None
    task: asyncio.Task[None] | None = None

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
        self._jobs: dict[str, Job] = {}

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/readings: the finished reading, or with `background` the job."""
        async with self._desk.admitted(exchange) as ticket:
            body = await exchange.read(ReadingBody)
            self._desk.check_model(body.model)
            case = await self._case(ticket, body)
            job = Job(exchange.tenant)
            self._sweep()
            self._jobs[job.id] = job
            ticket.hold()  # by the task
            job.task = asyncio.create_task(self._run(job, ticket, case))
            job.task.add_done_callback(lambda task: self._ended(task, job, ticket))
        if body.background:
            await exchange.answer(job.to_dict(), 202)
            return
        try:
            await asyncio.shield(job.task)
        except asyncio.CancelledError:
            if not job.task.cancelled():  # then it is this request that nobody waits for
                job.task.cancel()
                raise
        if job.failure is not None:
            raise job.failure
        await exchange.answer(job.to_dict())

    async def get(self, exchange: Exchange, name: str) -> None:
        """GET /v1/readings/{id}."""
        await exchange.answer(self._job(exchange, name).to_dict())

    async def page(self, exchange: Exchange, name: str) -> None:
        """GET /v1/readings/{id}/html: the finished reading as a page for people."""
        from starlette.responses import HTMLResponse

        job = self._job(exchange, name)
        if job.reading is None:
            raise ApiError(409, f"the reading is {job.status}", "not_completed")
        page = await asyncio.to_thread(job.reading.to_html)
        await exchange.respond(HTMLResponse(page, headers={"Content-Security-Policy": "sandbox"}))

    async def cancel(self, exchange: Exchange, name: str) -> None:
        """POST /v1/readings/{id}/cancel; one that has ended stays as it is."""
        job = self._job(exchange, name)
        await _cancel(job)
        await exchange.answer(job.to_dict())

    async def delete(self, exchange: Exchange, name: str) -> None:
        """DELETE /v1/readings/{id}: cancel and forget it."""
        job = self._job(exchange, name)
        await _cancel(job)
        self._jobs.pop(job.id, None)
        await exchange.answer({"id": job.id, "object": "reading.deleted", "deleted": True})

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
                    job.status = "in_progress"
                    _note(job, event)
        except Exception as error:  # kept with the job, for whoever asks
            job.status, job.failure = "failed", as_api_error(error)
            self._desk.meters.failed(stage_of(job.failure))
        else:
            job.status = "completed"
            self._desk.meters.finished("readings", time.monotonic() - ticket.entered, "stop")

    def _ended(self, task: asyncio.Task[None], job: Job, ticket: Ticket) -> None:
        """Give the job's place back, even if it never began."""
        if task.cancelled():
            job.status = "cancelled"
            self._desk.meters.stopped("running" if ticket.started else "waiting")
        job.ended = time.time()
        ticket.leave()

    def _job(self, exchange: Exchange, name: str) -> Job:
        self._sweep()
        job = self._jobs.get(name)
        if job is None or job.tenant != exchange.tenant:
            raise ApiError(404, "no such reading; it may have expired", "reading_not_found")
        return job

    def _sweep(self) -> None:
        """Forget what ended long ago."""
        oldest = time.time() - self._desk.settings.keep_s
        for job in list(self._jobs.values()):
            if job.ended is not None and job.ended < oldest:
                del self._jobs[job.id]


async def _cancel(job: Job) -> None:
    if job.task is not None and not job.task.done():
        job.task.cancel()
        await asyncio.wait([job.task])


def _note(job: Job, event: Progress) -> None:
    if isinstance(event, Finding):
        job.findings += 1
    elif isinstance(event, Discrepancy):
        job.discrepancies += 1
    elif isinstance(event, Step):
        job.step = event
    elif isinstance(event, Reading):
        job.reading = event
