"""The ASGI application: routes, what stands before them, and the life from loading to draining.

`Life` is open once the model is loaded; until then, and while it drains, requests get 503 while
`/healthz` and `/readyz` answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from multimodal.backends import Backend
from pipelines.server import completions, speech, uploads
from pipelines.server.desk import Desk, in_thread
from pipelines.server.exchange import Exchange, Work, error_response
from pipelines.server.failures import ApiError
from pipelines.server.keys import Keys
from pipelines.server.middleware import OPEN_PATHS, Attended, Bounded, Guarded, Named
from pipelines.server.readings import Readings
from pipelines.server.settings import Settings

logger = logging.getLogger(__name__)


class Life:
    """A server from its start to its end.

    Args:
        load: gives the backend; may take long.
        settings: the limits.
        keys: who may ask; None for everybody.

    Attributes:
        draining: whether nobody new is let in because the server is about to end.
        failure: why the model could not be loaded.
    """

    def __init__(
        self, load: Callable[[], Backend], settings: Settings, keys: Keys | None = None
    ) -> None:
        self._load, self.settings, self.keys = load, settings, keys
        self._desk: Desk | None = None
        self._readings: Readings | None = None
        self.draining = False
        self.failure: Exception | None = None

    @property
    def is_open(self) -> bool:
        """Whether the model is loaded."""
        return self._desk is not None

    @property
    def desk(self) -> Desk:
        """The work, once the model is loaded.

        Raises:
            ApiError: 503, it is not.
        """
        if self._desk is None:
            why = "loading" if self.failure is None else "without a model"
            raise ApiError(503, f"the server is {why}; try again later", "loading", retry_after_s=5)
        return self._desk

    @property
    def readings(self) -> Readings:
        """All readings; raises as `desk` does."""
        assert self.desk
        assert self._readings is not None
        return self._readings

    async def open(self) -> None:
        """Load the model and let requests in."""

        def load() -> tuple[Backend, int]:
            backend = self._load()
            return backend, backend.load().slots

        try:
            backend, slots = await in_thread(load)
            tenants = self.keys.num_tenants if self.keys else 1
            settings = self.settings.fitted(slots)
            desk = Desk(backend, settings, tenants, lambda: "draining" if self.draining else "")
        except Exception as error:  # told to whoever started the server
            self.failure = error
            return
        self._desk, self._readings = desk, Readings(desk)
        logger.info("serving the model %s", desk.name)

    async def drained(self) -> None:
        """Wait for the last accepted request to end."""
        if self._desk is not None:
            await self._desk.admission.until_empty()

    def close(self) -> None:
        """Let go of everything."""
        if self._desk is not None:
            self._desk.close()


class Paced(FastAPI):
    """Lets requests begin one after the other.

    So `/healthz`, which passes, is answered long before a crowd that came at once has been looked at.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on when it is its turn."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            async with self.state.door:
                await asyncio.sleep(0)  # what has arrived meanwhile is taken in first
        await super().__call__(scope, receive, send)


def create_app(life: Life) -> FastAPI:
    """The application; its start loads the model in the background."""

    @asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.ensure_future(life.open())
        yield
        opening.cancel()
        life.close()

    app = Paced(title="CrossRead", lifespan=living, docs_url=None, redoc_url=None)
    app.state.door = asyncio.Lock()
    app.add_middleware(Attended)
    app.add_middleware(Bounded, check=lambda ex: life.desk.check_place(ex), settings=life.settings)
    app.add_middleware(Guarded, keys=life.keys)
    app.add_middleware(Named)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ApiError, _api_error)
    _add_state_routes(app, life)
    _add_model_routes(app, life)
    _add_file_routes(app, life)
    _add_reading_routes(app, life)
    return app


async def _http_error(_: Request, error: Exception) -> Response:
    """An unknown path or method in OpenAI's form."""
    assert isinstance(error, HTTPException)
    what = {404: "no such path", 405: "this path does not take this method"}
    code = "not_found" if error.status_code == 404 else "invalid_request"
    message = what.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, code))


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


def _add_state_routes(app: FastAPI, life: Life) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether requests would be answered; 503 says why not."""
        try:
            await life.desk.check_ready()
        except ApiError as error:
            return error_response(error)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(await life.desk.measured(), media_type="text/plain; version=0.0.4")


def _add_model_routes(app: FastAPI, life: Life) -> None:
    def works(
        act: Callable[[Desk, Exchange], Awaitable[None]],
    ) -> Callable[[], Awaitable[Response]]:
        async def route() -> Response:
            return Work(lambda exchange: act(life.desk, exchange), life.settings)

        return route

    for path, act in (
        ("/v1/chat/completions", completions.chat), ("/v1/completions", completions.complete),
        ("/v1/tokenize", completions.tokenize),
        ("/v1/audio/transcriptions", speech.transcribe), ("/v1/files", uploads.upload),
    ):  # fmt: skip
        app.post(path, name=path, description=act.__doc__ or "")(works(act))

    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        """Refused."""
        message = f"there are no embeddings here: {life.desk.name} answers in words"
        raise ApiError(404, message, "not_found")

    @app.get("/v1/models")
    async def models() -> Response:
        """The one model served."""
        return JSONResponse({"object": "list", "data": [_model(life.desk)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """What it can do."""
        life.desk.check_model(name)
        return JSONResponse(_model(life.desk))


def _model(desk: Desk) -> dict[str, object]:
    told = desk.capabilities
    return {
        "id": desk.name, "object": "model", "created": desk.created, "owned_by": "crossread",
        "max_model_len": told.max_len, "modalities": sorted(told.modalities),
    }  # fmt: skip


def _add_file_routes(app: FastAPI, life: Life) -> None:
    @app.get("/v1/files")
    async def listing(request: Request) -> Response:
        """Your files, the newest first."""
        return Work(lambda ex: uploads.listing(life.desk, ex, request), life.settings)

    @app.get("/v1/files/{name}")
    async def look_up(name: str) -> Response:
        """One of your files."""
        return Work(lambda ex: uploads.look_up(life.desk, ex, name), life.settings)

    @app.delete("/v1/files/{name}")
    async def delete(name: str) -> Response:
        """Remove one of your files."""
        return Work(lambda ex: uploads.delete(life.desk, ex, name), life.settings)


def _add_reading_routes(app: FastAPI, life: Life) -> None:
    @app.post("/v1/readings")
    async def create() -> Response:
        """Read a study with its report."""
        return Work(lambda ex: life.readings.create(ex), life.settings)

    @app.get("/v1/readings/{name}")
    async def get(name: str) -> Response:
        """How far a reading is, and its result."""
        return Work(lambda ex: life.readings.get(ex, name), life.settings)

    @app.get("/v1/readings/{name}/html")
    async def page(name: str) -> Response:
        """A finished reading as a page."""
        return Work(lambda ex: life.readings.page(ex, name), life.settings)

    @app.post("/v1/readings/{name}/cancel")
    async def cancel(name: str) -> Response:
        """Stop a reading."""
        return Work(lambda ex: life.readings.cancel(ex, name), life.settings)

    @app.delete("/v1/readings/{name}")
    async def delete(name: str) -> Response:
        """Stop and forget a reading."""
        return Work(lambda ex: life.readings.delete(ex, name), life.settings)
