"""One conversation about a CT study, a picture and a recording, and a question more.

python examples/chat_with_everything.py [STUDY]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from multimodal.backends import GenerateOptions, Token
from multimodal.messages import Audio, Image, Message, Study, Text, user
from pipelines import pipeline

SAMPLE = Path(__file__).parent.parent / "multimodal" / "demo" / "sample"


def main(study: Path, model: str | None = None) -> None:
    """Ask about all three at once, then once more: what was encoded before costs nothing now."""
    talk = pipeline("chat", model)
    options = GenerateOptions(max_new_tokens=32)
    picture = Picture.new("RGB", (96, 96), "gray")  # or a Path
    sound = 0.1 * np.sin(2 * np.pi * 220 * np.arange(16000) / 16000)  # or a Path

    chat = [user(Study(study), Image(picture), Audio(sound, 16000), "What does this study show?")]
    for event in talk(chat, options, stream=True):
        if isinstance(event, Token):
            print(event.text, end="", flush=True)
        else:
            first = event
    print(f"\n{first.usage.encoded_media} media encoded")

    chat += [Message("assistant", (Text(first.text),)), user("Is there a right nodule?")]
    second = talk(chat, options)
    print(second.text)
    print(f"{second.usage.encoded_media} media encoded")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else SAMPLE / "study")
