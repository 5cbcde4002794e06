"""Writes docs/cli.md from the commands' own help: python -m tests.pipelines.cli_page > docs/cli.md."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from unittest import mock

from pipelines import cli

HEAD = """\
# The command line

Made by `python -m tests.pipelines.cli_page`; a test compares it with what the commands say.

Results go to stdout, everything else to stderr. `--json` prints JSON that `json.loads` reads.

| exit code | meaning |
|---|---|
| 0 | done, whatever the verdict |
| 1 | an unexpected failure |
| 2 | wrong usage |
| 3 | the input cannot be used: missing, broken, not DICOM, silent |
| 4 | the model cannot be found, or not be used for this |
| 5 | a remote model or archive failed |
"""


def help_of(*command: str) -> str:
    """What `crossread COMMAND --help` prints in a terminal of 80 columns."""
    out = io.StringIO()
    argv = ["crossread", *command, "--help"]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ, {"COLUMNS": "80"}),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        cli.main()
    return out.getvalue().rstrip()


def command_names() -> list[str]:
    """The commands, in the order of the help page."""
    return [c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback]


def group_commands() -> list[tuple[str, str]]:
    """The commands of groups, such as `pacs find`."""
    return [
        (str(group.name), c.name or c.callback.__name__)
        for group in cli.app.registered_groups
        for c in (group.typer_instance.registered_commands if group.typer_instance else ())
        if c.callback
    ]


def page() -> str:
    """The whole of docs/cli.md."""
    parts = [HEAD]
    for command in ((), *((name,) for name in command_names()), *group_commands()):
        title = " ".join(("crossread", *command))
        parts.append(f"## {title}\n\n```console\n$ {title} --help\n{help_of(*command)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
