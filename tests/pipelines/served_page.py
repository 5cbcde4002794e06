"""Serves the page with a scripted model, asks it through Gradio's own client, prints what came back.

A process of its own (python -m tests.pipelines.served_page STUDY): servers leave sockets behind.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelines.ui import build_app, launch_options
from tests.makers import FakeBackend


def refusal(client: Any, *arguments: Any) -> str:
    """What the page says to input it cannot read."""
    from gradio_client.exceptions import AppError

    try:
        client.predict(*arguments, api_name="/read")
    except AppError as error:
        return str(error)
    return ""


def ask(url: str, study: Path, folder: Path) -> dict[str, Any]:
    """Read a study, be refused twice, and chat."""
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False, download_files=str(folder))
    files = [handle_file(f) for f in sorted(study.iterdir())]
    reading = client.predict(files, "Left effusion.", None, "hello?", api_name="/read")
    (folder / "notes.txt").write_text("hello")
    notes = [handle_file(folder / "notes.txt")]
    return {
        "reading": reading,
        "nothing": refusal(client, [], "No nodule.", None, ""),
        "no dicom": refusal(client, notes, "", None, ""),
        "chat": client.predict({"text": "hello", "files": []}, api_name="/chat"),
    }


def main() -> None:
    """Serve, ask, print, close."""
    backend = FakeBackend(
        answers={"hello": "good day", "Left eff": "insertion: remove"},
        chances={"images? Left eff": 0.1},
    )
    page = build_app(backend)
    page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        with tempfile.TemporaryDirectory() as folder:
            answers = ask(str(page.local_url), Path(sys.argv[1]), Path(folder))
    finally:
        page.close(verbose=False)
    sys.stdout.write("\n" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
