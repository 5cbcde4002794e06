"""The slice viewer: volumes wait on a shelf under unguessable tokens, browsers fetch them in slabs.

`shelf()` takes a volume and gives its description, `routes()` serve the voxels and the JavaScript;
everything that happens while someone looks happens in the browser.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from functools import cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipelines.ui.uploads import KEEP_S
from pipelines.ui.viewer.panes import Shown, describe, shown
from pipelines.ui.words import TABLE

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from encoders.dicom import Volume

MAX_SHELVED_BYTES = 2**31  # of all volumes together
PREFIX = "/crossread/viewer"
_FOLDER = Path(__file__).parent
_TYPES = {".js": "text/javascript", ".css": "text/css"}


class Shelf:
    """Volumes being looked at, the one used longest ago first. After `KEEP_S` without a fetch one is dropped."""

    def __init__(self, max_bytes: int = MAX_SHELVED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[Shown, float]] = OrderedDict()

    def put(self, volume: Volume) -> dict[str, Any]:
        """Keep a volume; what comes back tells a browser how to fetch and draw it."""
        token, held = secrets.token_urlsafe(24), shown(volume)
        with self._lock:
            self._held[token] = (held, monotonic())
            self._clear()
        return {**describe(held), "token": token}

    def get(self, token: str) -> Shown | None:
        """The volume of a token, None where there is none (any more)."""
        with self._lock:
            self._clear()
            if token not in self._held:
                return None
            self._held[token] = (self._held[token][0], monotonic())
            self._held.move_to_end(token)
            return self._held[token][0]

    def release(self, token: str) -> None:
        """Forget a volume, if it is still there."""
        with self._lock:
            self._held.pop(token, None)

    def _clear(self) -> None:
        """Drop what is old, then what is too much; the newest stays whatever its size."""
        now = monotonic()
        for token in [t for t, (_, used) in self._held.items() if now - used > KEEP_S]:
            del self._held[token]
        while len(self._held) > 1 and self._bytes() > self._max_bytes:
            self._held.popitem(last=False)

    def _bytes(self) -> int:
        return sum(held.raw.nbytes for held, _ in self._held.values())


@cache
def shelf() -> Shelf:
    """The shelf of this process: pages put on it, routes serve from it."""
    return Shelf()


def routes() -> list[Any]:
    """What a server needs to add: slabs of voxels, and the viewer's own files."""
    from starlette.routing import Route

    return [
        Route(f"{PREFIX}/words.json", _words),
        Route(f"{PREFIX}/{{name}}", _file),
        Route(f"{PREFIX}/slab/{{token}}/{{first:int}}/{{count:int}}", _slab),
    ]


def _slab(request: Request) -> Response:
    """Some slices of a volume; an unknown token and a wrong range look the same."""
    from starlette.responses import Response

    held = shelf().get(request.path_params["token"])
    first, count = request.path_params["first"], request.path_params["count"]
    if held is None or count < 1 or count > held.chunk or first + count > len(held.raw):
        return Response(status_code=404)
    return Response(
        held.slab(first, count),
        media_type="application/octet-stream",
        headers={"Cache-Control": "no-store"},
    )


def _words(_: Request) -> Response:
    """The page's words in both languages, for what is drawn by JavaScript."""
    from starlette.responses import JSONResponse

    return JSONResponse(TABLE, headers={"Cache-Control": "no-cache"})


def _file(request: Request) -> Response:
    """One of the viewer's own files."""
    from starlette.responses import FileResponse, Response

    own = {file.name: file for file in _FOLDER.iterdir() if file.suffix in _TYPES}
    file = own.get(request.path_params["name"])
    if file is None:
        return Response(status_code=404)
    return FileResponse(file, media_type=_TYPES[file.suffix], headers={"Cache-Control": "no-cache"})
