"""Native checkpoints on the engine: many requests about pictures, sound and words together, exact."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from encoders.dicom import Volume
from multimodal.backends import Finished, collect
from multimodal.engine.sequence import Segment
from multimodal.measures import Measures
from multimodal.messages import Audio, Image, Message, Study, Text, Video, user
from multimodal.native import NativeBackend
from multimodal.native_engine import EngineLoop
from multimodal.native_loading import load_native
from multimodal.native_merging import Merger
from tests.multimodal.native_zoo import EVERY
from tests.multimodal.native_zoo_more import RELATED
from tests.multimodal.test_native_answers import SHORT, reference
from tests.waiting import wait_until

TOGETHER = (
    "llava_onevision", "deepseek_vl", "deepseek_vl_hybrid", "voxtral", "qwen2_5_vl", "qwen2_5_omni"
)  # fmt: skip
WHY = {
    "gemma3": "layers of sliding_attention", "gemma4_unified": "layers of sliding_attention",
    "gemma4": "layers of sliding_attention", "qwen3_vl": "deepstack_visual_embeds",
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


SEE_TOGETHER = (
    "llava_onevision",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "qwen2_5_vl",
    "qwen2_5_omni",
)


def merger_in(backend: NativeBackend) -> Merger:
    assert isinstance(backend.loop, EngineLoop)
    assert isinstance(backend.loop._merger, Merger)
    return backend.loop._merger


def encoded_together(
    backend: NativeBackend, asked: Sequence[list[Message]]
) -> list[Finished | Exception]:
    """Answers of requests whose media have all come before the first is encoded."""
    merger = merger_in(backend)
    merger.forget()
    merger.measures = Measures()
    told: dict[int, Finished | Exception] = {}

    def ask(index: int) -> None:
        try:
            told[index] = collect(backend.generate(asked[index], SHORT))
        except Exception as error:
            told[index] = error

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    with merger._turn:
        for thread in threads:
            thread.start()
        wait_until(lambda: len(merger._waiting) == len(asked), "all came")
    for thread in threads:
        thread.join()
    return [told[i] for i in range(len(asked))]


def batches(backend: NativeBackend) -> tuple[int, float]:
    """How many there were, and how many media in all."""
    sizes = backend.load().measured.spreads["encoder_batch_size", ""]
    return sizes.count, sizes.total


def turned(picture: Pictures.Image) -> list[Pictures.Image]:
    return [picture.rotate(90 * n) for n in range(4)]


@pytest.mark.parametrize("family", SEE_TOGETHER)
def test_pictures_of_several_requests_are_encoded_at_once_and_exactly(
    native: Callable[[str], NativeBackend], picture: Pictures.Image, family: str
) -> None:
    backend = native(family)
    asked = [[user(Image(seen), "What is it?")] for seen in turned(picture)]
    alone = [reference(backend, turns) for turns in asked]
    told = encoded_together(backend, asked)
    assert [answer.text for answer in told if isinstance(answer, Finished)] == alone
    assert len(set(alone)) > 1
    assert batches(backend) == (1, 4)
    totals = backend.load().measured.totals
    assert totals["encoder_cache_queries", "image"] == 4
    assert ("encoder_cache_hits", "image") not in totals


@pytest.mark.parametrize("family", ["voxtral", "qwen2_5_omni"])
def test_sound_of_several_requests_is_encoded_at_once_and_exactly(
    native: Callable[[str], NativeBackend], speech: np.ndarray, family: str
) -> None:
    backend = native(family)
    heard = [speech, speech[::-1].copy(), np.roll(speech, 4000)]
    asked = [[user(Audio(sound, 16000), "Transcribe it.")] for sound in heard]
    alone = [reference(backend, turns) for turns in asked]
    told = encoded_together(backend, asked)
    assert [answer.text for answer in told if isinstance(answer, Finished)] == alone
    assert batches(backend) == (1, 3)


def test_media_of_another_shape_or_too_large_together_are_encoded_apart(
    native: Callable[[str], NativeBackend], picture: Pictures.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = native("llava_onevision")
    wide = picture.resize((200, 40))  # another number of tiles
    asked = [[user(Image(seen), "?")] for seen in (*turned(picture)[:2], wide)]
    alone = [reference(backend, turns) for turns in asked]
    told = encoded_together(backend, asked)
    assert [answer.text for answer in told if isinstance(answer, Finished)] == alone
    assert batches(backend) == (2, 3)
    monkeypatch.setattr("multimodal.native_merging._JOINED_BYTES", 1)
    encoded_together(backend, asked)
    assert batches(backend) == (3, 3)


def test_one_medium_that_cannot_be_encoded_fails_alone(
    native: Callable[[str], NativeBackend], picture: Pictures.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = native("deepseek_vl")
    plain = merger_in(backend).handed

    def handed(tensors: Any, door: Any = None) -> Any:
        pixels = tensors["pixel_values"]
        if bool((pixels.amax((2, 3)) == pixels.amin((2, 3))).all(1).any()):
            raise RuntimeError("an even grey breaks this tower")
        return plain(tensors, door)

    asked = [[user(Image(seen), "What is it?")] for seen in turned(picture)]
    alone = [reference(backend, turns) for turns in asked]
    monkeypatch.setattr(merger_in(backend), "handed", handed)
    grey = [user(Image(Pictures.new("RGB", (64, 64), (9, 9, 9))), "What is it?")]
    told = encoded_together(backend, [*asked[:2], grey, *asked[2:]])
    failed = told.pop(2)
    assert isinstance(failed, RuntimeError)
    assert [answer.text for answer in told if isinstance(answer, Finished)] == alone
    assert not merger_in(backend)._under_way


def test_a_tower_that_mixes_what_it_sees_is_not_shown_several_at_once(
    checkpoint: Callable[[str], Path],
) -> None:
    """Found by trying when it is loaded."""
    model, processor = load_native(checkpoint("deepseek_vl"))
    model.model.aligner.register_forward_hook(lambda module, args, out: out - out.mean(0))
    backend = NativeBackend(model, processor)
    assert not merger_in(backend).joins
    backend.close()


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
    totals = backend.load().measured.totals
    assert totals["encoder_cache_hits", "dicom"] >= 1  # not as the picture that it is shown as
    assert again.text == reference(backend, asked)


def test_the_doctor_tells_how_each_runs_and_why(native: Callable[[str], NativeBackend]) -> None:
    told = {family: {c.what: c for c in native(family).diagnose().choices}
            for family in ("voxtral", "gemma3")}  # fmt: skip
    assert told["voxtral"]["batching"].value == "continuous"
    assert {"slots", "chunk", "objective", "room"} <= set(told["voxtral"])
    assert told["gemma3"]["batching"].value == "one by one"
    assert "sliding_attention" in told["gemma3"]["batching"].why
    assert told["gemma3"]["device"].value == "cpu"
