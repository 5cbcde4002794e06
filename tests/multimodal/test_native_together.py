"""Native checkpoints on the engine: many requests about pictures, sound and words together, exact."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from encoders.dicom import Volume
from multimodal.backends import Finished, collect
from multimodal.engine.sequence import Segment
from multimodal.messages import Audio, Image, Message, Study, Text, Video, user
from multimodal.native import NativeBackend
from multimodal.native_engine import EngineLoop
from tests.multimodal.native_zoo import EVERY
from tests.multimodal.native_zoo_more import RELATED
from tests.multimodal.test_native_answers import SHORT, reference
from tests.waiting import wait_until

TOGETHER = ("llava_onevision", "deepseek_vl", "deepseek_vl_hybrid", "voxtral")
WHY = {
    "gemma3": "layers of sliding_attention", "gemma4_unified": "layers of sliding_attention",
    "gemma4": "layers of sliding_attention", "qwen2_5_vl": r"in a way of its own \(mrope\)",
    "qwen2_5_omni": r"in a way of its own \(mrope\)", "qwen3_vl": r"in a way of its own \(mrope\)",
    "phi4_multimodal": "merges media into the prompt itself",
}  # fmt: skip


def ask_at_once(backend: NativeBackend, asked: Sequence[list[Message]]) -> list[Finished]:
    """All from threads of their own, none before every thread is there."""
    told: dict[int, Finished] = {}
    ready = threading.Barrier(len(asked))

    def ask(index: int) -> None:
        ready.wait()
        told[index] = collect(backend.generate(asked[index], SHORT))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [told[i] for i in range(len(asked))]


@pytest.mark.parametrize("family", [*EVERY, *RELATED])
def test_what_runs_together_is_told_and_what_does_not_says_why(
    native: Callable[[str], NativeBackend], family: str
) -> None:
    told = native(family).capabilities().one_by_one
    if family in (*TOGETHER, "deepseek_llm"):
        assert told == ""
    else:
        assert told.startswith("it runs by transformers' own loop: ")
        assert re.search(WHY[family], told)


@pytest.mark.parametrize("family", TOGETHER)
def test_mixed_requests_at_once_are_answered_as_transformers_answers_each(
    native: Callable[[str], NativeBackend], volume: Volume, picture: Pictures.Image,
    speech: np.ndarray, clip: Path, family: str,
) -> None:  # fmt: skip
    backend = native(family)
    other = picture.transpose(Pictures.Transpose.ROTATE_90).resize((90, 40))
    asked = [[user("Is there a nodule?")], [user("What is it? Say it in a few words.")]]
    kinds = backend.prompter.kinds
    if "image" in kinds:
        asked += [[user(Image(picture), "What is it?")], [user(Image(other), "And this?")],
                  [user("First", Image(other), "then", Image(picture), "which?")],
                  [user(Study(volume), "Where is it?")]]  # fmt: skip
    if "audio" in kinds:
        asked += [[user(Audio(speech, 16000), "Transcribe it.")],
                  [user(Audio(speech[::-1].copy(), 16000), "And this?")]]  # fmt: skip
    if "video" in kinds:
        asked += [[user(Video(clip), "What happens?")]]
    alone = [reference(backend, turns) for turns in asked]
    backend.loop.forget()
    finished = ask_at_once(backend, asked)
    assert [answer.text for answer in finished] == alone
    assert len(set(alone)) > 2  # the answers tell the requests apart
    assert [answer.usage.encoded_media for answer in finished] == [
        sum(not isinstance(part, Text) for part in turns[0].parts) for turns in asked
    ]


def test_they_are_decoded_in_the_same_steps(
    native: Callable[[str], NativeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step waits until all have come: then steps run four answers each."""
    backend = native("llava_onevision")
    assert isinstance(backend.loop, EngineLoop)
    runner, sizes = backend.loop.engine.runner, list[int]()
    run = runner.run

    def held(segments: Sequence[Segment]) -> list[torch.Tensor | Exception]:
        wait_until(lambda: backend.load().running + backend.load().waiting == 4, "all came")
        sizes.append(len(segments))
        monkeypatch.setattr(runner, "run", counted)
        return run(segments)

    def counted(segments: Sequence[Segment]) -> list[torch.Tensor | Exception]:
        sizes.append(len(segments))
        return run(segments)

    monkeypatch.setattr(runner, "run", held)
    ask_at_once(backend, [[user(f"What is {n}?")] for n in range(4)])
    assert max(sizes) == 4


def test_a_follow_up_runs_its_own_words_only(
    native: Callable[[str], NativeBackend], volume: Volume
) -> None:
    backend, study = native("deepseek_vl"), Study(volume)
    first = collect(backend.generate([user(study, "What is it?")], SHORT))
    before = backend.load().counters["prompt_tokens"]
    asked = [user(study, "Where is it, and how large?")]
    again = collect(backend.generate(asked, SHORT))
    run = backend.load().counters["prompt_tokens"] - before
    assert (first.usage.encoded_media, again.usage.encoded_media) == (1, 0)
    assert run < 0.05 * again.usage.prompt_tokens
    assert again.text == reference(backend, asked)


def test_the_doctor_tells_how_each_runs_and_why(native: Callable[[str], NativeBackend]) -> None:
    told = {family: {c.what: c for c in native(family).diagnose().choices}
            for family in ("voxtral", "gemma3")}  # fmt: skip
    assert told["voxtral"]["batching"].value == "continuous"
    assert {"slots", "chunk", "objective", "room"} <= set(told["voxtral"])
    assert told["gemma3"]["batching"].value == "one by one"
    assert "sliding_attention" in told["gemma3"]["batching"].why
    assert told["gemma3"]["device"].value == "cpu"
