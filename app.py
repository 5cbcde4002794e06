"""The CrossRead app (also the Hugging Face Space): builds `pipelines.ui` and launches it."""

from __future__ import annotations

import argparse
import os


def main() -> None:
    """Serve the page; local unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")  # a Space sets both
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    parser.add_argument("--host", default=host, help="address to listen on")
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--model", default=None, help="composite folder, Hub id or http(s)://…/v1")
    options = parser.parse_args()

    if os.environ.get("SPACES_ZERO_GPU"):
        import spaces  # noqa: F401  # it stands in for the GPU from before torch is imported on

    from pipelines.ui import build_app, launch_options

    page = build_app(options.model)
    page.launch(server_name=options.host, server_port=options.port, **launch_options())


if __name__ == "__main__":
    main()
