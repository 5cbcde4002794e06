"""What stands between the page and its public: errors become help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from encoders.errors import CrossReadError


@contextmanager
def errors_as_help() -> Iterator[None]:
    """Errors of ours are shown to the person for half a minute, and leave no traceback."""
    import gradio as gr

    try:
        yield
    except CrossReadError as error:
        raise gr.Error(str(error), duration=30, print_exception=False) from error
