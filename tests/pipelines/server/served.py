"""A server in a process of its own, scripted: python -m tests.pipelines.server.served GATE [limits].

Answers wait until the file GATE exists. `limits` is JSON for `Settings`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipelines.server.process import run_server
from pipelines.server.settings import Settings
from tests.pipelines.server.running import gated_by


def main(gate: str, limits: str = "{}") -> None:

    def tell(word: object) -> None:
        sys.stdout.write(f"{word}\n")
        sys.stdout.flush()

    run_server(
        lambda: gated_by(Path(gate)), Settings(**json.loads(limits)), port=0,
        listening=tell, ready=lambda _: tell("ready"),
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
