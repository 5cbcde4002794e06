"""crossread space: assemble the Hugging Face Space, and push it.

`build` copies the page, its rooms with their data, and what `spaces_config/space` says; what lies
in the folder then is exactly what is pushed. Needs a checkout.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from encoders.errors import MissingInput, Refused, UnsafeOutput

ROOT = Path(__file__).parent.parent
ROOMS = ("encoders", "multimodal", "pipelines")
_DATA = {".py", ".html", ".css", ".js", ".json", ".jinja", ".safetensors", ".dcm", ".txt", ".ogg",
         ".md", ".csv", ".tsv"}  # fmt: skip

app = typer.Typer(no_args_is_help=True, help="The Hugging Face Space: assemble it, push it.")


@app.command("build")
def build_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
) -> None:
    """Assemble exactly what is pushed."""
    files = build(folder)
    size = sum(file.stat().st_size for file in files)
    typer.echo(f"{len(files)} files, {size / 2**20:.1f} MiB")


@app.command("push")
def push_command(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name of the Space.")],
    private: Annotated[bool, typer.Option("--private", help="Made private, if it is new.")] = False,
) -> None:
    """Assemble the Space and upload it; asks Hugging Face's own login (`hf auth login`)."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        typer.echo(push(repo, Path(folder) / "space", private=private))


def build(folder: Path) -> list[Path]:
    """Write the Space's files into a new folder; returns them.

    Raises:
        MissingInput: this is no checkout.
        UnsafeOutput: the folder is there and not empty.
    """
    config = ROOT / "spaces_config" / "space"
    if not config.is_dir():
        raise MissingInput("the Space is made from a checkout: clone the repository, run it there")
    if folder.exists() and any(folder.iterdir()):
        raise UnsafeOutput(f"{folder.name!r} is not empty; name a new folder")
    for source in _sources():
        _copy(source, folder / source.relative_to(ROOT))
    for source in config.iterdir():
        name = ".gitattributes" if source.name == "gitattributes" else source.name
        _copy(source, folder / name)
    return sorted(file for file in folder.rglob("*") if file.is_file())


def push(repo: str, folder: Path, *, private: bool = False, api: Any = None) -> str:
    """Build into a folder and upload it as a Space, which is made if it is not there.

    What an older version had and this one has not is deleted there. Returns the Space's address.

    Raises:
        Refused: Hugging Face says no.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    build(folder)
    hub = api or HfApi()
    try:
        made = hub.create_repo(
            repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        hub.upload_folder(
            repo_id=repo, repo_type="space", folder_path=folder, delete_patterns="*",
            commit_message="Update CrossRead",
        )  # fmt: skip
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise Refused(
            f"Hugging Face refused the Space with status {status}; log in with `hf auth login` as"
            " someone who may write there"
        ) from error
    return str(made)


def _sources() -> Iterator[Path]:
    """The page and the rooms, without what Python or a person left behind."""
    yield from (ROOT / "app.py", ROOT / "LICENSE", ROOT / "CHANGELOG.md")
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*")):
            parts = file.relative_to(ROOT).parts
            left_behind = any(p.startswith((".", "__pycache__")) for p in parts)
            if file.is_file() and not left_behind and file.suffix in _DATA:
                yield file


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
