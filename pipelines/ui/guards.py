"""What stands between the page's work and its public: limits before it, help where it fails."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from encoders.errors import CrossReadError, InputError
from multimodal.messages import Part, Text, value_of
from pipelines.ui.settings import page_settings

logger = logging.getLogger(__name__)
_UNEXPECTED = (
    "Something went wrong on our side; nothing you sent is kept in the log. Try again, or try"
    " another file."
)


@contextmanager
def errors_as_help() -> Iterator[None]:
    """Errors are shown to the person for half a minute, and leave no traceback.

    Gradio shows such a message as HTML, and it may quote a file's name.
    """
    import gradio as gr

    try:
        yield
    except CrossReadError as error:
        words = html.escape(str(error), quote=False)
        raise gr.Error(words, duration=30, print_exception=False) from None
    except gr.Error:
        raise
    except Exception as error:  # the page's edge: no visitor is shown a traceback
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        # not its message: it may quote what was sent
        logger.error("unexpected %s at %s", type(error).__name__, place)
        raise gr.Error(_UNEXPECTED, duration=30, print_exception=False) from None


def require_small(parts: Sequence[Part]) -> None:
    """Refuse what would decode to more than the page's limits, from the headers alone.

    Raises:
        InputError: too many pixels or seconds, or no medium at all.
    """
    from multimodal.sizes import measure

    most = page_settings()
    for part in parts:
        if isinstance(part, Text):
            continue
        size = measure(*value_of(part))
        pixels = size.pixels * max(size.frames, 1)
        if pixels > most.max_pixels:
            raise InputError(
                f"this {size.modality} decodes to {pixels / 1e6:.0f} million pixels; the page takes"
                f" up to {most.max_pixels / 1e6:.0f}: send a part of it, or use the command line"
            )
        if size.seconds > most.max_seconds:
            raise InputError(
                f"this {size.modality} lasts {size.seconds:.0f} s; the page takes up to"
                f" {most.max_seconds}: send a part of it, or use the command line"
            )
