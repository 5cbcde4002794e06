"""Options that several commands share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder or Hub id of a composite or of a checkpoint of transformers, or"
        " http(s)://…/v1; without it the shipped demo."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
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
