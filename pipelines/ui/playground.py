"""The playground: a conversation about text, pictures, sound, video and DICOM, as it is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.backends import Backend, Finished, GenerateOptions, Token
from pipelines.ui.guards import errors_as_help
from pipelines.ui.uploads import message_of, messages_of
from pipelines.ui.words import say

CSS = ""


def build_playground(backend: Backend) -> None:
    """The room's components and events, within the page being built."""
    import gradio as gr

    def answer(turn: dict[str, Any], history: list[dict[str, Any]]) -> Iterator[str]:
        said = ""
        with errors_as_help():
            messages = [*messages_of(history), message_of(turn)]
            for event in backend.generate(messages, GenerateOptions()):
                if isinstance(event, Token):
                    said += event.text
                    yield said
                elif isinstance(event, Finished):
                    yield event.text

    chatbot = gr.Chatbot(
        show_label=False, height="60vh", buttons=["copy"], placeholder=say("chat_empty")
    )
    box = gr.MultimodalTextbox(show_label=False, file_count="multiple", placeholder=say("chat_box"))
    gr.ChatInterface(answer, multimodal=True, chatbot=chatbot, textbox=box, api_name="chat")
