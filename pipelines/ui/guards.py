"""What stands between the page's work and its public: limits before it, help where it fails."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from encoders.errors import CrossReadError, InputError
from multimodal.messages import Part, Text, value_of
from pipelines.ui.problem_words import ERRORS
from pipelines.ui.settings import page_settings
from pipelines.ui.words import told

logger = logging.getLogger(__name__)


@contextmanager
def errors_as_help() -> Iterator[None]:
    """Errors are shown to the person for half a minute, and leave no traceback.

    Gradio shows such a message as HTML, and it may quote a file's name. On a Chinese page what kind
    of error it is stands before it.
    """
    import gradio as gr

    try:
        yield
    except CrossReadError as error:
        raise _shown(error, html.escape(str(error), quote=False)) from None
    except gr.Error:
        raise
    except Exception as error:  # the page's edge: no visitor is shown a traceback
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        # not its message: it may quote what was sent
        logger.error("unexpected %s at %s", type(error).__name__, place)
        raise _shown(error) from None


def _shown(error: Exception, words: str = "") -> Exception:
    """An error as Gradio shows it; without words, those of whatever we did not expect."""
    import gradio as gr
    from gradio.context import LocalContext

    table = told(LocalContext.request.get(None))
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS)
    told_whole = f"{table[kind]} {words or table['unexpected']}".strip()
    return gr.Error(told_whole, duration=30, print_exception=False)


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
