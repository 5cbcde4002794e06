"""/v1/files: upload, list, look up and delete, in OpenAI's forms."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from pipelines.server.desk import Desk
from pipelines.server.exchange import Exchange
from pipelines.server.failures import ApiError, refused

_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_PURPOSES = ("user_data", "vision", "assistants")
_MOST_LISTED = 10_000


async def upload(desk: Desk, exchange: Exchange) -> None:
    """POST /v1/files."""
    form = await exchange.form(_FIELDS, desk.settings.max_upload_mib)
    purpose = form.get("purpose")
    if purpose not in _PURPOSES:
        raise ApiError(
            400, f"purpose must be one of {', '.join(_PURPOSES)}", "invalid_value", param="purpose"
        )
    file, keep_s = form["file"], _keep_s(form)
    stored = await asyncio.to_thread(
        desk.store.add, file.file, exchange.tenant, file.filename or "", purpose=purpose,
        keep_s=keep_s,
    )  # fmt: skip
    await exchange.answer(stored.to_dict())


async def listing(desk: Desk, exchange: Exchange, request: Request) -> None:
    """GET /v1/files, the newest first."""
    asked = request.query_params
    if unknown := set(asked) - {"limit", "after", "order", "purpose"}:
        raise refused(sorted(unknown)[0])
    files = desk.store.of(exchange.tenant)
    if asked.get("order", "desc") not in ("asc", "desc"):
        raise ApiError(400, "order must be asc or desc", "invalid_value", param="order")
    if asked.get("order") == "asc":
        files.reverse()
    if "purpose" in asked:
        files = [file for file in files if file.purpose == asked["purpose"]]
    if "after" in asked:
        names = [file.id for file in files]
        if asked["after"] not in names:
            raise ApiError(400, "after names no file of yours", "invalid_value", param="after")
        files = files[names.index(asked["after"]) + 1 :]
    limit = _whole(asked.get("limit", str(_MOST_LISTED)), "limit")
    told = [file.to_dict() for file in files[:limit]]
    ends = {"first_id": told[0]["id"], "last_id": told[-1]["id"]} if told else {}
    await exchange.answer({"object": "list", "data": told, "has_more": len(files) > limit, **ends})


async def look_up(desk: Desk, exchange: Exchange, name: str) -> None:
    """GET /v1/files/{id}."""
    await exchange.answer(desk.store.get(exchange.tenant, name).to_dict())


async def delete(desk: Desk, exchange: Exchange, name: str) -> None:
    """DELETE /v1/files/{id}."""
    desk.store.delete(exchange.tenant, name)
    await exchange.answer({"id": name, "object": "file", "deleted": True})


def _keep_s(form: Mapping[str, Any]) -> float | None:
    """How long a file is to be kept; None where the form does not say."""
    anchor, seconds = (form.get(f"expires_after[{key}]") for key in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at" or seconds is None:
        raise ApiError(
            400, "expires_after needs the anchor created_at and seconds", "invalid_value",
            param="expires_after",
        )  # fmt: skip
    return _whole(seconds, "expires_after[seconds]")


def _whole(text: str, param: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10**9):
        raise ApiError(400, f"{param} must be a whole number from 1", "invalid_value", param=param)
    return int(text)
