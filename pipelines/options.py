"""What several commands share: options, each with its help, and the form of what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder or Hub id of a composite or of a checkpoint of transformers, or"
        " http(s)://…/v1; without it the shipped demo."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16, auto: the checkpoint's, on a CPU float32;"
        " or fastest: by trying whole steps."
    ),
]
Objective = Annotated[
    str | None, typer.Option(help="ttft, throughput or even; else CROSSREAD_OBJECTIVE.")
]
Sparsity = Annotated[
    float | None, typer.Option(min=0.0, max=0.9, help="Share of MLP neurons left out per token.")
]
TensorParallel = Annotated[
    int,
    typer.Option(
        min=1,
        help="Processes, of a GPU each (or a core), that the layers of a model that only reads are"
        " split over.",
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Put the modules of a checkpoint of transformers on several devices: auto, balanced,"
        " balanced_low_0, sequential, or a JSON file of modules and their devices."
    ),
]
AllowBurnedIn = Annotated[
    bool,
    typer.Option(
        "--allow-burned-in", help="Read pictures that may show patient data as text; look first."
    ),
]
Batch = Annotated[
    Path | None,
    typer.Option(
        help="Read every sub-folder, zip and tar of this folder, each with its report.txt; --out is"
        " then a file that gets a JSON line each. Run again, it goes on where it was."
    ),
]
Manifest = Annotated[
    Path | None, typer.Option(help="CSV that names the studies of --batch and their reports.")
]
Series = Annotated[
    str | None,
    typer.Option(help="Another series than the default: its number in crossread info, key or UID."),
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Also files without preamble or meta header.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Studies of --batch read at once; without it 4, or 1 where the model runs requests"
        " one by one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def hide_progress() -> None:
    """No bar of transformers for weights that load within a second."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def as_text(value: Any) -> str:
    """JSON types as what `--json` prints."""
    return json.dumps(value, indent=2, ensure_ascii=False)
