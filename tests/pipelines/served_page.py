"""Serves the page with a scripted model, asks it as programs do, prints what came back.

A process of its own (python -m tests.pipelines.served_page STUDY): servers leave sockets behind.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelines.ui import build_app, launch_options
from tests.makers import FakeBackend


def refusal(client: Any, *arguments: Any, api_name: str) -> str:
    """What the page says to input it cannot read."""
    from gradio_client.exceptions import AppError

    try:
        client.predict(*arguments, api_name=api_name)
    except AppError as error:
        return str(error)
    return ""


def ask(url: str, study: Path, folder: Path) -> dict[str, Any]:
    """Every endpoint through Gradio's own client, and refusals."""
    import httpx
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False, download_files=str(folder))
    (folder / "notes.txt").write_text("hello")
    notes = handle_file(folder / "notes.txt")
    reading = client.predict(
        handle_file(study), "Left effusion.", None, "hello?", api_name="/review"
    )
    return {
        "health": httpx.get(f"{url}health").json(),
        "endpoints": sorted(client.view_api(return_format="dict")["named_endpoints"]),
        "review": reading,
        "no dicom": refusal(client, notes, api_name="/review"),
        "chat": client.predict("hello", api_name="/chat"),
        "about a study": client.predict("hello", handle_file(study), api_name="/chat"),
        "transcribe": client.predict(handle_file(folder / "said.wav"), api_name="/transcribe"),
        "no sound": refusal(client, notes, api_name="/transcribe"),
    }


async def ask_by_mcp(url: str, study: Path, folder: Path) -> dict[str, Any]:
    """The same endpoints as tools of the Model Context Protocol, files as data URLs."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    def data_url(file: Path, kind: str) -> str:
        return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"

    zipped, said = data_url(study, "application/zip"), data_url(folder / "said.wav", "audio/x-wav")
    async with (
        streamablehttp_client(f"{url}gradio_api/mcp/") as (reader, writer, _),
        ClientSession(reader, writer) as session,
    ):
        await session.initialize()
        calls = {
            "review": {"study": zipped, "report": "Left effusion."},
            "chat": {"words": "hello"},
            "about a study": {"words": "hello", "file": zipped},
            "transcribe": {"recording": said},
            "no such": {"words": "hello", "file": "no data"},
        }
        tools = (await session.list_tools()).tools
        names = {name: "chat" if name in ("about a study", "no such") else name for name in calls}
        answers = {k: await session.call_tool(names[k], v) for k, v in calls.items()}
    texts = {k: " ".join(c.text for c in a.content) for k, a in answers.items()}
    return {"tools": {t.name: t.description for t in tools}, **texts}


def main() -> None:
    """Serve, ask, print, close."""
    import av
    import numpy as np

    backend = FakeBackend(
        answers={"hello": "good day", "Left eff": "insertion: remove", "Transcribe": "no nodule"},
        chances={"images? Left eff": 0.1},
    )
    page = build_app(backend)
    page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            study = Path(shutil.make_archive(str(folder / "study"), "zip", sys.argv[1]))
            with av.open(str(folder / "said.wav"), "w") as sound:
                stream = sound.add_stream("pcm_s16le", rate=16000, layout="mono")
                noise = np.random.default_rng(0).integers(-9000, 9000, (1, 16000), np.int16)
                frame = av.AudioFrame.from_ndarray(noise, layout="mono")
                frame.sample_rate = 16000
                sound.mux(stream.encode(frame))
                sound.mux(stream.encode(None))
            url = str(page.local_url)
            answers = ask(url, study, folder)
            answers["mcp"] = asyncio.run(ask_by_mcp(url, study, folder))
    finally:
        page.close(verbose=False)
    sys.stdout.write("\n" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
