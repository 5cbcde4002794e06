"""The Gradio page: a reading room and a playground. Local, no analytics, no web fonts."""

from __future__ import annotations

import importlib.util
from typing import Any

import gradio as gr  # here, not in the functions: it reads their annotations
from starlette.middleware import Middleware
from starlette.routing import Route

from multimodal.backends import Backend, load_backend
from pipelines.ui.endpoints import build_endpoints, health
from pipelines.ui.guarding import Guard
from pipelines.ui.playground import CSS as PLAYGROUND_CSS
from pipelines.ui.playground import build_playground
from pipelines.ui.reading_room import CSS as READING_ROOM_CSS
from pipelines.ui.reading_room import build_reading_room
from pipelines.ui.settings import page_settings
from pipelines.ui.strip import close_studies
from pipelines.ui.uploads import KEEP_S
from pipelines.ui.viewer import routes
from pipelines.ui.visitors import all_visitors
from pipelines.ui.words import languages, say, told_in
from pipelines.ui.zero import on_zero_gpu

# nothing comes from elsewhere, whatever a model's or a report's words ask the browser to fetch
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="'
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'\">"
)


def launch_options() -> dict[str, Any]:
    """What every launch of the page shares: system fonts, readable colours, limits, the guard."""
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
    limits = page_settings()
    return {
        "theme": theme, "css": READING_ROOM_CSS + PLAYGROUND_CSS, "head": _POLICY,
        "footer_links": ["settings"], "i18n": languages(), "mcp_server": _can_serve_mcp() and not limits.logins,
        # a page rendered elsewhere would come without its visitor's cookie, and knows none of our routes
        "ssr_mode": False,
        "run_history": False,  # reports and answers do not stay in the browser
        "max_file_size": limits.max_upload_mib * 2**20,
        "auth": list(limits.logins) or None, "auth_message": told_in("")["login"],
        "app_kwargs": {
            "routes": [Route("/health", health), *routes()],
            "middleware": [Middleware(Guard, visitors=all_visitors(), settings=limits)],
        },
    }  # fmt: skip


def _can_serve_mcp() -> bool:
    """Without logins only: tools would be listed to anyone, and could not be called by anyone."""
    return importlib.util.find_spec("mcp") is not None


def build_app(model: str | Backend | None = None) -> gr.Blocks:
    """The page with its two rooms; the model is loaded at once, so that a bad one fails here."""
    limits, _ = page_settings(), all_visitors()  # the visitors' folder before any component
    if model is None and limits.model:
        model = limits.model
    if model is None or isinstance(model, str):
        backend = on_zero_gpu(load_backend(model, sparsity=limits.sparsity))
    else:
        backend = model
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
            build_playground(page, backend)
        page.unload(close_studies)
    page.queue(max_size=limits.max_waiting, default_concurrency_limit=limits.num_at_once)
    return page
