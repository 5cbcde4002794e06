"""The local backend against plain forward passes of the same model, and against itself afresh."""

from __future__ import annotations

import gc
import hashlib
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from encoders.dicom import scan
from encoders.dicom.volume import Volume, load_volume
from encoders.errors import (
    ContextOverflow,
    IncompatibleModel,
    InvalidMessage,
    InvalidPixels,
    ModelError,
    ModelNotFound,
)
from multimodal.backends import Finished, GenerateOptions, Token, collect, load_backend
from multimodal.composition import compose
from multimodal.encoding import medium_digest
from multimodal.engine import packing
from multimodal.engine.scheduler import Limits
from multimodal.local import LocalBackend
from multimodal.messages import Audio, Image, Message, Study, Text, user
from multimodal.sparse import SparsityConfig, set_sparsity, sparse_mlps
from tests import makers

SHORT = GenerateOptions(max_new_tokens=6)
CHOICES = ("yes", "direction insertion", "remove the right nodule", "no")


@pytest.fixture(scope="module")
def volume(phantom_series: Path) -> Volume:
    return load_volume(scan(phantom_series).default())


@pytest.fixture
def backend(tiny_composite: Any) -> LocalBackend:
    return LocalBackend(*tiny_composite, name="tiny")


def _picture(seed: int = 0) -> Image:
    grey = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    return Image(PilImage.fromarray(grey))


def _mixed(volume: Volume, speech: np.ndarray) -> list[Message]:
    return [
        user(Study(volume), "is there a nodule?", _picture(), Audio(speech, 16000), "how large"),
        Message("assistant", (Text("no"),)),
        user("list the findings", _picture(1)),
    ]


def _dicts(messages: list[Message]) -> list[dict[str, Any]]:
    """The same conversation as the processor takes it."""

    def part(p: Any) -> dict[str, Any]:
        if isinstance(p, Text):
            return {"type": "text", "text": p.text}
        if isinstance(p, Study):
            return {"type": "dicom", "dicom": p.study}
        if isinstance(p, Audio):
            return {"type": "audio", "audio": (p.audio, p.rate_hz)}
        return {"type": "image", "image": p.image}

    return [{"role": m.role, "content": [part(p) for p in m.parts]} for m in messages]


def _tokens(events: Any) -> tuple[str, Finished]:
    pieces = list(events)
    return "".join(e.text for e in pieces if isinstance(e, Token)), pieces[-1]


def test_answer_equals_transformers_generate(
    backend: LocalBackend, volume: Volume, speech: np.ndarray
) -> None:
    messages = _mixed(volume, speech)
    tensors = backend.processor.process([_dicts(messages)]).tensors
    whole = backend.model.generate(**tensors, max_new_tokens=6, do_sample=False)
    new = whole[0, tensors["input_ids"].shape[1] :]
    wanted = backend.processor.decode(new, skip_special_tokens=True)
    assert collect(backend.generate(messages, SHORT)).text == wanted.strip()


def test_follow_up_question_encodes_nothing_and_answers_as_a_fresh_backend(
    backend: LocalBackend, tiny_composite: Any, volume: Volume
) -> None:
    first = collect(backend.generate([user(Study(volume), "list findings")], SHORT))
    follow_up = [user(Study(volume), "how large is the left nodule")]
    second = collect(backend.generate(follow_up, SHORT))
    fresh = collect(LocalBackend(*tiny_composite).generate(follow_up, SHORT))
    assert first.usage.encoded_media == fresh.usage.encoded_media == 1
    assert second.usage.encoded_media == 0
    assert second.text == fresh.text
    assert second.usage.prompt_tokens == fresh.usage.prompt_tokens


def test_follow_up_question_runs_only_its_own_words(backend: LocalBackend, volume: Volume) -> None:
    lengths = []
    handle = backend.engine.runner.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    collect(backend.generate([user(Study(volume), "list the findings")], SHORT))
    lengths.clear()
    collect(backend.generate([user(Study(volume), "list the large")], SHORT))
    handle.remove()
    ending = len(backend.processor.tokenizer.encode("large<|end|><|assistant|>"))
    assert lengths[0] == ending
    assert set(lengths[1:]) == {1}


@pytest.mark.parametrize(
    ("kind", "window"), [("llama", 0), ("gemma2", 8), ("mistral", 8), ("mistral", 64)]
)
def test_choices_have_the_probabilities_of_plain_forward_passes(
    kind: str, window: int, tmp_path: Path
) -> None:
    """Of each choice alone, on an uncached prompt; sliding windows shorter and longer than it."""
    network = makers.backbone(kind)
    if hasattr(network.config, "sliding_window"):
        network.config.sliding_window = window
    network.save_pretrained(tmp_path)
    makers.tokenizer().save_pretrained(tmp_path)
    model, processor = compose(backbone=tmp_path)
    backend = LocalBackend(model, processor)
    for words in ("is there a right nodule in the report", "is there a right lung in the report"):
        answer = collect(backend.generate([user(words)], GenerateOptions(choices=CHOICES)))
        prompt = processor.process([[{"role": "user", "content": words}]]).tensors["input_ids"]
        scores = []
        for choice in CHOICES:
            tail = processor.tokenizer(choice, return_tensors="pt", add_special_tokens=False)
            ids = torch.cat([prompt, tail.input_ids], 1)
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, prompt.shape[1] - 1 : -1]
            picked = logits.log_softmax(-1).gather(1, tail.input_ids.T)
            scores.append(float(picked.sum()))
        wanted = torch.tensor(scores).softmax(0).tolist()
        assert list(answer.choices.values()) == pytest.approx(wanted, rel=1e-3)
        assert answer.text == CHOICES[int(np.argmax(scores))]


def test_calibration_moves_the_probabilities_of_choices_and_not_the_answer(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temperature divides the log-odds, then the first choice is raised; the answer stays."""
    asked, options = [user("is there a nodule?")], GenerateOptions(choices=CHOICES)
    raw = collect(backend.generate(asked, options))
    for offset in (-9.0, 9.0):
        fitted = {CHOICES[0]: (2.5, offset), "another": (9.0, 9.0)}
        monkeypatch.setattr(backend.model.config, "choice_calibration", fitted)
        calibrated = collect(backend.generate(asked, options))
        plain, moved = (np.log(list(a.choices.values())) for a in (raw, calibrated))
        wanted = plain / 2.5 + np.eye(len(CHOICES))[0] * offset
        assert moved - moved[-1] == pytest.approx(wanted - wanted[-1], abs=1e-4)
        assert calibrated.text == raw.text


@pytest.mark.parametrize("window", [8, 64])
def test_follow_ups_equal_fresh_answers_with_sliding_windows(window: int, tmp_path: Path) -> None:
    network = makers.backbone("mistral")
    network.config.sliding_window = window
    network.save_pretrained(tmp_path)
    makers.tokenizer().save_pretrained(tmp_path)
    parts = compose(backbone=tmp_path)
    backend = LocalBackend(*parts)
    start = "the report is large and there is a nodule in the right lung"
    questions = ["and", "and effusion in the left lung ?", "no", "is"]
    for question in questions:
        asked = [user(f"{start} {question}")]
        assert collect(backend.generate(asked, SHORT)).text == (
            collect(LocalBackend(*parts).generate(asked, SHORT)).text
        )


def test_pieces_joined_are_the_answer_and_usage_counts_them(backend: LocalBackend) -> None:
    text, finished = _tokens(backend.generate([user("list")], SHORT))
    assert text.strip() == finished.text
    assert finished.usage.new_tokens <= 6
    assert set(finished.usage.timings_s) == {"encode", "prefill", "decode"}


def test_same_seed_same_sample_and_another_seed_differs(backend: LocalBackend) -> None:
    def sample(seed: int) -> str:
        options = GenerateOptions(max_new_tokens=12, temperature=2.0, seed=seed)
        return collect(backend.generate([user("list")], options)).text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_streaming_leaves_inference_mode_to_the_caller(backend: LocalBackend) -> None:
    for _ in backend.generate([user("list")], SHORT):
        assert not torch.is_inference_mode_enabled()


def test_an_abandoned_answer_holds_nobody_up(backend: LocalBackend, volume: Volume) -> None:
    asked = [user(Study(volume), "list the findings")]
    wanted = collect(backend.generate(asked, SHORT)).text
    half = backend.generate(asked, SHORT)
    next(half)  # kept alive, not finished
    assert collect(backend.generate(asked, SHORT)).text == wanted
    rest = [e for e in half if isinstance(e, Finished)]
    assert rest[0].text == wanted


def test_two_answers_made_in_turns_equal_each_alone(backend: LocalBackend, volume: Volume) -> None:
    asked = [[user(Study(volume), "list")], [user(Study(volume), "how large is the nodule")]]
    alone = [_tokens(backend.generate(a, SHORT))[0] for a in asked]
    streams = [backend.generate(a, SHORT) for a in asked]
    texts = ["", ""]
    for _ in range(20):
        for i, stream in enumerate(streams):
            event = next(stream, None)
            texts[i] += event.text if isinstance(event, Token) else ""
    assert texts == alone


def test_many_threads_at_once_get_what_each_gets_alone(
    tiny_composite: Any, volume: Volume, speech: np.ndarray
) -> None:
    """Text, pictures, sound and a study mixed, greedy and sampled, two tenants."""
    asked = [
        [user("list the findings")], [user(_picture(1), "is there a nodule")],
        [user(Audio(speech, 16000), "transcribe")], _mixed(volume, speech),
        [user(Study(volume), "how large is the left nodule")], [user(_picture(2), _picture(3))],
        [user(Study(volume), "list")], [user(Audio(speech[:16000], 16000), _picture(1), "and")],
    ]  # fmt: skip
    options = [
        replace(SHORT, tenant="ab"[i % 2], seed=i, temperature=0.0 if i < 5 else 1.5)
        for i in range(len(asked))
    ]
    alone = [
        collect(LocalBackend(*tiny_composite).generate(*one)).text
        for one in zip(asked, options, strict=True)
    ]
    backend = LocalBackend(*tiny_composite)
    with ThreadPoolExecutor(16) as pool:
        for _ in range(2):
            answers = [
                pool.submit(backend.generate, a, o) for a, o in zip(asked, options, strict=True)
            ]
            texts = [pool.submit(collect, answer.result()) for answer in answers]
            assert [text.result().text for text in texts] == alone
    assert backend.load().counters["failed"] == 0
    backend.close()


def num_encoded(backend: LocalBackend) -> float:
    """Media that the encoder has run for so far."""
    sizes = backend.load().measured.spreads.get(("encoder_batch_size", ""))
    return sizes.total if sizes else 0


def test_a_medium_asked_for_by_several_at_once_is_encoded_once(
    backend: LocalBackend, volume: Volume
) -> None:
    with ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(backend.generate, [user(Study(volume), str(i))], SHORT) for i in range(6)
        ]
        usages = [collect(one.result()).usage for one in asked]
    assert sum(usage.encoded_media for usage in usages) == 1
    assert num_encoded(backend) == 1


def test_tenants_encode_for_themselves(backend: LocalBackend, volume: Volume) -> None:
    asked = [user(Study(volume), "list")]
    counts = [
        collect(backend.generate(asked, replace(SHORT, tenant=tenant))).usage.encoded_media
        for tenant in ("a", "a", "b", "b")
    ]
    assert counts == [1, 0, 1, 0]


def test_several_studies_in_turn_run_only_their_own_questions(
    backend: LocalBackend, volume: Volume
) -> None:
    """A follow-up about either study costs its words, though the other was asked about between."""
    other = replace(volume, voxels=volume.voxels[::-1].copy())
    ending = len(backend.processor.tokenizer.encode("large<|end|><|assistant|>"))
    for study in (volume, other):
        collect(backend.generate([user(Study(study), "list the findings")], SHORT))
    for study in (volume, other, volume):
        before = backend.load().counters
        assert num_encoded(backend) == 2
        collect(backend.generate([user(Study(study), "list the large")], SHORT))
        after = backend.load().counters
        assert after["prompt_tokens"] - before["prompt_tokens"] <= ending
        assert num_encoded(backend) == 2


def test_media_that_are_no_numbers_fail_alone(backend: LocalBackend) -> None:
    ill = np.full((40, 40, 3), np.nan, np.float32)
    with pytest.raises(InvalidPixels, match="NaN"):
        backend.generate([user(Image(ill), "list")], SHORT)  # type: ignore[arg-type]
    assert collect(backend.generate([user(_picture(), "list")], SHORT)).text


def test_closing_an_answer_frees_its_slot_and_closing_the_backend_ends_the_rest(
    backend: LocalBackend,
) -> None:
    """Steps are held back and no token ends an answer: none is through before it is closed."""
    closing = threading.Event()

    def slowly() -> Limits:
        closing.wait(0.02)
        return Limits()

    backend.__dict__["_end_ids"] = frozenset()
    backend.engine.limits = slowly
    long = GenerateOptions(max_new_tokens=2000)
    streams = [backend.generate([user("list")], long) for _ in range(3)]
    streams[0].close()  # type: ignore[attr-defined]
    assert list(streams[0]) == []
    del streams[1]  # dropped: collected, and so closed
    end = time.monotonic() + 60
    while backend.load().counters["cancelled"] < 2:
        assert time.monotonic() < end
        closing.wait(0.01)
    closing.set()
    backend.close()
    assert collect(streams[1]).reason == "cancelled"


def test_an_unused_backend_lets_its_threads_end(tiny_composite: Any) -> None:
    backend = LocalBackend(*tiny_composite)
    collect(backend.generate([user(_picture(), "list")], SHORT))
    threads = [backend.engine._thread, backend._encoder._thread]
    del backend
    gc.collect()
    for thread in threads:
        assert thread is not None
        thread.join(60)
        assert not thread.is_alive()


def test_a_closed_backend_refuses_at_once(backend: LocalBackend) -> None:
    collect(backend.generate([user(_picture(), "list")], SHORT))
    backend.close()
    for asked in ([user("list")], [user(_picture(), "list")], [user(_picture(5), "list")]):
        with pytest.raises(ModelError, match="closed; load it again"):
            backend.generate(asked, SHORT)


def test_prompt_longer_than_the_context_is_refused_with_both_lengths(
    backend: LocalBackend,
) -> None:
    with pytest.raises(ContextOverflow, match=r"takes 2\d{3} tokens .* tiny holds 2048"):
        collect(backend.generate([user("nodule " * 2050)], SHORT))
    # a choice needs room for itself only, whatever max_new_tokens says
    options = GenerateOptions(max_new_tokens=2048, choices=("yes", "no"))
    assert collect(backend.generate([user("nodule")], options)).text in ("yes", "no")


def test_grounding_names_every_finding_and_side(backend: LocalBackend, volume: Volume) -> None:
    options = GenerateOptions(max_new_tokens=1, ground=True)
    regions = collect(backend.generate([user(Study(volume), "list")], options)).regions
    assert [(r.finding, r.side) for r in regions] == [
        ("nodule", "right"), ("nodule", "left"), ("cardiomegaly", None),
    ]  # fmt: skip
    assert collect(backend.generate([user("list")], options)).regions == ()


def test_a_regions_size_is_what_the_region_head_says_of_it(
    backend: LocalBackend, volume: Volume
) -> None:
    model, told = backend.model, list[torch.Tensor]()
    hook = model.region_head.register_forward_hook(lambda *seen: told.append(seen[2][1]))
    options = GenerateOptions(max_new_tokens=1, ground=True)
    regions = collect(backend.generate([user(Study(volume), "how large")], options)).regions
    hook.remove()
    assert [r.size_mm for r in regions] == pytest.approx(told[-1].exp().tolist())


def test_pictures_with_equal_pixels_keep_their_own_sources(
    backend: LocalBackend, volume: Volume
) -> None:
    """The same picture may lie on another stored slice: the cache must not answer with the first."""
    medium = backend.processor.prepare("dicom", volume)
    elsewhere = replace(medium, sources=medium.sources[::-1])
    assert medium_digest(medium) != medium_digest(elsewhere)


def test_changed_sparsity_does_not_reuse_keys_of_the_old_one(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MIN_GAIN", math.inf)  # which layers are packed is a race
    parts = compose(backbone=tiny_backbone, sparsity=SparsityConfig(sparsity=0.0))
    backend = LocalBackend(*parts)
    asked = [user("is there a right nodule in the report")]
    options = GenerateOptions(choices=CHOICES)
    dense = collect(backend.generate(asked, options)).choices
    set_sparsity(backend.model, 0.9)
    sparse = collect(backend.generate(asked, options)).choices
    assert sparse != dense
    assert sparse == collect(LocalBackend(*parts).generate(asked, options)).choices


# --- loading ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model, processor = compose(backbone=tiny_backbone, sparsity=SparsityConfig())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_sparsity_is_set_at_load_and_saved_with_the_model(
    saved: Path, sparsity: float, tmp_path: Path
) -> None:
    backend = load_backend(saved, sparsity=sparsity)
    assert {m.config.sparsity for m in sparse_mlps(backend.model)} == {sparsity}
    backend.model.save_pretrained(tmp_path)
    backend.processor.save_pretrained(tmp_path)
    again = load_backend(tmp_path)
    assert {m.config.sparsity for m in sparse_mlps(again.model)} == {sparsity}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_loaded_and_answers(saved: Path, dtype: str) -> None:
    backend = load_backend(saved, dtype=dtype)
    assert backend.model.dtype == getattr(torch, dtype)
    assert backend.capabilities().modalities == {"text"}
    collect(backend.generate([user("list")], SHORT))


def test_a_model_that_cannot_be_loaded_is_refused_by_name(
    saved: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(ModelNotFound, match="nowhere"):
        load_backend(tmp_path / "nowhere")
    with pytest.raises(IncompatibleModel, match="is a llama checkpoint, not a CrossRead composite"):
        LocalBackend.from_pretrained(tiny_backbone)
    with pytest.raises(InvalidMessage, match="int8"):
        load_backend(saved, dtype="int8")
    with pytest.raises(InvalidMessage, match="'abacus'"):
        load_backend(saved, device="abacus")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in saved.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(saved / "model.safetensors")
    gone = next(iter(sorted(weights)))
    save_file({k: v for k, v in weights.items() if k != gone}, broken / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(IncompatibleModel, match=gone):
        load_backend(broken)
    (broken / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(IncompatibleModel, match="'broken' cannot be loaded"):
        load_backend(broken)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"stop": ("",)}, "stop"),
        ({"choices": ("yes", "")}, "choices"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidMessage, match=words):
        GenerateOptions(**options)


def test_backend_names_the_hash_of_its_weights_and_its_view_profile(
    tiny_composite: Any, tmp_path: Path
):
    model, processor = tiny_composite
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    made = LocalBackend.from_pretrained(tmp_path, device="cpu").capabilities()
    (weights,) = tmp_path.glob("*.safetensors")
    assert made.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert made.preprocessing == "view profile crossread-ct"
    assert LocalBackend(model, processor).capabilities().weights_sha256 == ""
