"""The page with a model that plays a part: endless, broken, or hostile, as its question asks.

`python -m tests.scripted_page --port N`; its limits are small (`LIMITS`), so that tests reach them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from multimodal.backends import Finished, GenerateOptions, Token, Usage
from multimodal.messages import Message
from pipelines.ui import build_app, guarding, launch_options
from tests.makers import FakeBackend

LIMITS = {
    "CROSSREAD_MAX_UPLOAD_MIB": "2",
    "CROSSREAD_MAX_SESSION_MIB": "3",
    "CROSSREAD_MAX_FILES": "40",
    "CROSSREAD_MAX_PIXELS": "1000000",
    "CROSSREAD_MAX_SECONDS": "30",
    "CROSSREAD_MAX_WAITING": "2",
    "CROSSREAD_NUM_AT_ONCE": "1",
}
SLOW = "Left lung nodule"
CORRECTED = "direction: Right lung nodule measuring 15 mm."
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


@dataclass
class ScriptedBackend(FakeBackend):
    """Says "word word …" without end to "forever", breaks at "break", is hostile to "attack".

    What holds `SLOW` it answers word by word, so slowly that every browser draws them.
    """

    def generate(
        self, messages: Sequence[Message], options: GenerateOptions | None = None
    ) -> Iterator[Token | Finished]:
        asked = messages[-1].text
        if "break" in asked:
            raise RuntimeError(f"a bug that quotes the patient's words: {asked}")
        if "forever" in asked:
            while True:
                yield Token("word ")
                time.sleep(0.05)
        if "attack" in asked:
            yield Token(HOSTILE)
            yield Finished(HOSTILE, "stop", Usage(1, 1, 0))
            return
        for event in super().generate(messages, options):
            yield event
            if SLOW in asked and isinstance(event, Token):
                time.sleep(0.3)


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int)
    options: Any = parser.parse_args()
    guarding.GRACE_S = 0.5
    answers = {"hello": "good day", SLOW: CORRECTED}
    page = build_app(ScriptedBackend(answers=answers, chances={SLOW: 0.01}))
    page.launch(server_name="127.0.0.1", server_port=options.port, quiet=True, **launch_options())


if __name__ == "__main__":
    main()
