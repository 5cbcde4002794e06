"""The Gradio page: a reading room and a playground. Local, no analytics, no web fonts."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from multimodal.backends import Backend, load_backend
from pipelines.ui.endpoints import build_endpoints, health
from pipelines.ui.playground import CSS as PLAYGROUND_CSS
from pipelines.ui.playground import build_playground
from pipelines.ui.reading_room import CSS as READING_ROOM_CSS
from pipelines.ui.reading_room import build_reading_room
from pipelines.ui.uploads import KEEP_S
from pipelines.ui.viewer import routes
from pipelines.ui.words import languages, say

if TYPE_CHECKING:
    import gradio

MAX_UPLOAD = "1gb"  # a file; a chest CT of 1,000 slices is half of it
# nothing comes from elsewhere, whatever a model's or a report's words ask the browser to fetch
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="'
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'\">"
)


def launch_options() -> dict[str, Any]:
    """What every launch of the page shares: system fonts, readable colours, a limit on uploads."""
    import gradio as gr
    from starlette.routing import Route

    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme: Any = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono
    )
    theme = theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
    )
    return {
        "theme": theme, "css": READING_ROOM_CSS + PLAYGROUND_CSS, "head": _POLICY,
        "footer_links": ["settings"], "max_file_size": MAX_UPLOAD, "i18n": languages(), "mcp_server": _can_serve_mcp(),
        "run_history": False,  # reports and answers do not stay in the browser
        "app_kwargs": {"routes": [Route("/health", health), *routes()]},
    }  # fmt: skip


def _can_serve_mcp() -> bool:
    return importlib.util.find_spec("mcp") is not None


def build_app(model: str | Backend | None = None) -> gradio.Blocks:
    """The page with its two rooms; the model is loaded at once, so that a bad one fails here."""
    import gradio as gr

    backend = load_backend(model) if model is None or isinstance(model, str) else model
    with gr.Blocks(
        title="CrossRead", analytics_enabled=False, delete_cache=(KEEP_S, KEEP_S)
    ) as page:
        build_endpoints(backend)  # first, so that no room takes their names
        gr.Markdown(say("title"))
        gr.Markdown(f"`{backend.capabilities().name}`")
        if model is None:
            gr.Markdown(say("demo_note"))
        with gr.Tab(say("reading_room")):
            build_reading_room(page, backend)
        with gr.Tab(say("playground")):
            build_playground(backend)
    return page
