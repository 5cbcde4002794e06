"""Answers of native checkpoints: transformers' own, alone, in turn, after other questions, cancelled."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from encoders.dicom import Volume
from encoders.errors import IncompatibleModel
from multimodal.backends import (
    GenerateOptions,
    Load,
    Token,
    collect,
    load_backend,
)
from multimodal.measures import Measures
from multimodal.messages import Audio, Image, Message, Study, Text, Video, user
from multimodal.native import NativeBackend
from multimodal.native_families import ADAPTERS
from multimodal.native_loading import load_native
from tests import makers
from tests.multimodal.native_zoo import HEARING, SEEING, WATCHING
from tests.multimodal.native_zoo_more import RELATED

SHORT = GenerateOptions(max_new_tokens=6)


def system(words: str) -> Message:
    return Message("system", (Text(words),))


def reference(backend: NativeBackend, messages: list[Message], **options: Any) -> str:
    """What transformers' own `generate` answers to the same prompt."""
    prompt = backend.prompter.write(messages)
    ids = backend.model.generate(
        **prompt.tensors,
        max_new_tokens=6,
        do_sample=False,
        **{"repetition_penalty": 1.0, **options},
    )
    answer = ids[0, prompt.tensors["input_ids"].shape[1] :]
    return backend.prompter.tokenizer.decode(answer, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", [*SEEING, *RELATED])
def test_an_answer_about_a_picture_is_transformers_own(
    native: Callable[[str], NativeBackend], picture: Pictures.Image, family: str
) -> None:
    backend, turns = native(family), [system("Be brief."), user(Image(picture), "What is it?")]
    finished = collect(backend.generate(turns, SHORT))
    assert finished.text == reference(backend, turns)
    assert finished.usage.encoded_media == 1
    assert (
        finished.usage.prompt_tokens == backend.prompter.write(turns).tensors["input_ids"].shape[1]
    )


@pytest.mark.parametrize("family", [*HEARING, "gemma4"])
def test_an_answer_about_sound_is_transformers_own(
    native: Callable[[str], NativeBackend], speech: np.ndarray, family: str
) -> None:
    backend, turns = native(family), [user(Audio(speech, 16000), "Transcribe it.")]
    assert collect(backend.generate(turns, SHORT)).text == reference(backend, turns)


@pytest.mark.parametrize("family", [*WATCHING, "qwen3_vl"])
def test_an_answer_about_video_is_transformers_own(
    native: Callable[[str], NativeBackend], clip: Path, family: str
) -> None:
    backend, turns = native(family), [user(Video(clip), "What happens?")]
    assert collect(backend.generate(turns, SHORT)).text == reference(backend, turns)
    moments = [s.source.seconds for s in backend.prompter.write(turns).layout]
    assert len(moments) == {"gemma4_unified": 8, "llava_onevision": 1}.get(family, 4)
    assert moments == sorted(moments)  # type: ignore[type-var]
    assert all(m is not None and 0 <= m[0] <= m[1] <= 2 for m in moments)


@pytest.mark.parametrize("family", ["deepseek_llm", "voxtral"])
def test_words_alone_are_answered(native: Callable[[str], NativeBackend], family: str) -> None:
    backend, turns = native(family), [user("Is there a nodule?")]
    assert collect(backend.generate(turns, SHORT)).text == reference(backend, turns)


@pytest.mark.parametrize("family", [*SEEING, *RELATED])
def test_a_further_question_encodes_nothing_and_is_exact(
    native: Callable[[str], NativeBackend], volume: Volume, family: str
) -> None:
    """Answers after other questions are those of a fresh start, choices among them."""
    backend = native(family)
    study, forms = Study(volume), system("Be brief.")
    wanted = GenerateOptions(choices=("agrees", "direction", "size"))
    fresh = collect(backend.generate([forms, user(study, "How large is it?")], wanted))
    backend.loop.forget()
    spent = [
        collect(backend.generate([forms, user(study, words)], options)).usage.encoded_media
        for words, options in (("What is it?", SHORT), ("List the findings.", wanted),
                               ("What?", wanted), ("Is it?", SHORT))
    ]  # fmt: skip
    again = collect(backend.generate([forms, user(study, "How large is it?")], wanted))
    assert spent == [1, 0, 0, 0]
    assert again.usage.encoded_media == 0
    for choice, chance in fresh.choices.items():
        assert again.choices[choice] == pytest.approx(chance, abs=1e-4)


def test_choices_have_the_models_own_probabilities(
    native: Callable[[str], NativeBackend], picture: Pictures.Image
) -> None:
    """Against one forward pass over prompt and choice, without a cache."""
    backend, turns = native("qwen2_5_vl"), [user(Image(picture), "Is it there?")]
    choices = ("yes", "no", "not at all")
    told = collect(backend.generate(turns, GenerateOptions(choices=choices))).choices
    prompt = backend.prompter.write(turns, choices)
    ids = prompt.tensors["input_ids"]
    scores = []
    for choice in choices:
        tokens = torch.tensor([backend.prompter.tokenizer.encode(choice, add_special_tokens=False)])
        tensors = {**prompt.tensors, "input_ids": torch.cat([ids, tokens], 1)}
        kinds = tensors["mm_token_type_ids"]
        tensors["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(tokens)], 1)
        tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
        with torch.inference_mode():
            logits = backend.model(**tensors).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        scores.append(logits.gather(1, tokens.T).sum())
    expected = torch.stack(scores).softmax(0).tolist()
    assert list(told.values()) == pytest.approx(expected, abs=1e-4)
    assert "Answer with one of these and nothing else: yes, no, not at all" in prompt.text


def test_an_answer_that_begins_with_a_space_is_scored_with_it(
    native: Callable[[str], NativeBackend],
) -> None:
    """`Assistant:` is gone on with by ` yes`, a word of its own in the vocabulary."""
    backend, turns = native("deepseek_vl"), [user("Well?")]
    encode = backend.prompter.tokenizer.encode
    words = [w for w in ("the", "in", "of", "report", "sentence", "with", "as", "to")
             if len(encode(f" {w}", add_special_tokens=False)) == 1][:2]  # fmt: skip
    told = collect(backend.generate(turns, GenerateOptions(choices=tuple(words)))).choices
    prompt = backend.prompter.write(turns, words)
    assert prompt.text.endswith("Assistant:")
    with torch.inference_mode():
        logits = backend.model(**prompt.tensors).logits[0, -1].log_softmax(-1)
    first, second = (int(encode(f" {word}", add_special_tokens=False)[0]) for word in words)
    ratio = float((logits[first] - logits[second]).exp())
    assert told[words[0]] / told[words[1]] == pytest.approx(ratio, rel=1e-3)


def test_log_probabilities_are_those_of_the_model(
    native: Callable[[str], NativeBackend], picture: Pictures.Image
) -> None:
    backend, turns = native("gemma3"), [user(Image(picture), "What is it?")]
    events = list(backend.generate(turns, GenerateOptions(max_new_tokens=3, logprobs=2)))
    told = [lp for event in events if isinstance(event, Token) for lp in event.logprobs]
    prompt = backend.prompter.write(turns)
    with torch.inference_mode():
        first = backend.model(**prompt.tensors).logits[0, -1].log_softmax(-1)
    assert len(told) == 3
    assert told[0].id == int(first.argmax())
    assert told[0].logprob == pytest.approx(float(first.max()), abs=1e-4)
    assert [v for _, v in told[0].top] == pytest.approx(first.topk(2).values.tolist(), abs=1e-4)


def test_options_win_over_the_checkpoints_own_settings(
    native: Callable[[str], NativeBackend],
) -> None:
    """Qwen's generation_config has a repetition penalty of 1.05: it is applied if asked for."""
    backend, turns = native("qwen2_5_vl"), [user("List the findings. List the findings.")]
    plain = collect(backend.generate(turns, SHORT)).text
    strong = GenerateOptions(max_new_tokens=6, repetition_penalty=1.8)
    assert plain == reference(backend, turns)
    assert collect(backend.generate(turns, strong)).text == reference(
        backend, turns, repetition_penalty=1.8
    )


def test_sampling_follows_its_seed_and_its_limits(native: Callable[[str], NativeBackend]) -> None:
    backend, turns = native("gemma3"), [user("Is there a nodule?")]

    def answer(**options: Any) -> str:
        wanted = GenerateOptions(max_new_tokens=8, **options)
        return collect(backend.generate(turns, wanted)).text

    greedy = answer()
    assert answer(temperature=1.5, seed=1) == answer(temperature=1.5, seed=1)
    assert len({answer(temperature=1.5, seed=seed) for seed in range(5)}) > 1
    assert answer(temperature=1.5, top_k=1, seed=1) == greedy
    assert answer(temperature=1.5, min_p=1.0, seed=1) == greedy
    assert answer(temperature=1.5, top_p=1e-6, seed=1) == greedy


def test_penalties_are_taken_off_for_each_token_of_the_answer(
    native: Callable[[str], NativeBackend],
) -> None:
    """Against a loop without a cache that takes them off the logits itself."""
    backend, turns = native("gemma3"), [user("Is there a nodule?")]
    wanted = GenerateOptions(max_new_tokens=5, presence_penalty=1.0, frequency_penalty=0.5,
                             logprobs=0)  # fmt: skip
    events = backend.generate(turns, wanted)
    ids = [lp.id for event in events if isinstance(event, Token) for lp in event.logprobs]
    prompt = backend.prompter.write(turns).tensors["input_ids"]
    expected: list[int] = []
    for _ in range(5):
        known = torch.cat([prompt, torch.tensor([expected], dtype=torch.long)], 1)
        with torch.no_grad():
            logits = backend.model(input_ids=known).logits[0, -1]
        for token in set(expected):
            logits[token] -= 1.0 + 0.5 * expected.count(token)
        expected.append(int(logits.argmax()))
    assert ids == expected


def test_closing_an_answer_cancels_it_and_harms_no_other(
    native: Callable[[str], NativeBackend], volume: Volume
) -> None:
    backend, turns = native("gemma3"), [user(Study(volume), "What is it?")]
    alone = collect(backend.generate(turns, SHORT)).text
    backend.loop.forget()
    events = backend.generate(turns, GenerateOptions(max_new_tokens=200))
    next(events)
    assert backend.loop.load() == Load(running=1, slots=1)
    events.close()  # type: ignore[attr-defined]
    assert backend.loop.load() == Load(slots=1)
    finished = collect(backend.generate(turns, SHORT))
    assert (finished.text, finished.usage.encoded_media) == (alone, 0)


def test_a_backend_that_is_closed_ends_what_is_under_way(
    checkpoint: Callable[[str], Path],
) -> None:
    backend = load_backend(checkpoint("deepseek_llm"))
    events = backend.generate([user("Well?")], GenerateOptions(max_new_tokens=200))
    next(events)
    backend.close()
    assert list(events)[-1].reason == "cancelled"  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_answers_made_in_turn_are_those_made_alone(
    native: Callable[[str], NativeBackend], volume: Volume, picture: Pictures.Image, family: str
) -> None:
    """Qwen's models keep the places of pictures beside the cache: two answers must not mix them."""
    backend = native(family)
    asked = [[user(Study(volume), "What is it?")], [user("a b c", Image(picture), "And?")],
             [user(Study(volume), "Where is it?")]]  # fmt: skip
    alone = [reference(backend, turns) for turns in asked]
    under_way: list[Iterator[Any]] = [backend.generate(turns, SHORT) for turns in asked]
    last: list[Any] = [None] * len(asked)
    while any(events is not None for events in under_way):
        for index, events in enumerate(under_way):
            event = next(events, None) if events is not None else None
            if event is None:
                under_way[index] = None  # type: ignore[call-overload]
            else:
                last[index] = event
    assert [finished.text for finished in last] == alone


def test_many_threads_may_ask(native: Callable[[str], NativeBackend], volume: Volume) -> None:
    backend = native("qwen3_vl")
    asked = [[user(Study(volume), f"What is {n}?")] for n in range(4)]
    alone, told = [reference(backend, turns) for turns in asked], [""] * 4

    def ask(index: int) -> None:
        told[index] = collect(backend.generate(asked[index], SHORT)).text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == alone


def test_nothing_is_kept_for_another_tenant(
    native: Callable[[str], NativeBackend], volume: Volume
) -> None:
    backend, turns = native("gemma3"), [user(Study(volume), "What is it?")]
    spent = [
        collect(backend.generate(turns, GenerateOptions(max_new_tokens=2, tenant=tenant))).usage
        for tenant in ("a", "a", "b")
    ]
    assert [usage.encoded_media for usage in spent] == [1, 0, 1]


def test_a_model_that_only_reads_answers_many_at_once(
    checkpoint: Callable[[str], Path],
) -> None:
    """On the engine, together: each the answer that transformers gives to it alone."""
    backend = load_backend(checkpoint("deepseek_llm"))
    assert isinstance(backend, NativeBackend)
    asked = [[user(f"Is there a nodule of {n} mm?")] for n in range(6)]
    alone = [reference(backend, turns) for turns in asked]
    under_way = [backend.generate(turns, SHORT) for turns in asked]
    first = [next(events) for events in under_way]
    assert backend.capabilities().one_by_one == ""
    told = [collect(itertools.chain([event], events)).text
            for event, events in zip(first, under_way, strict=True)]  # fmt: skip
    assert told == alone
    assert backend.load().slots > 1


def test_what_is_kept_of_one_answer_is_not_mixed_with_another_made_in_turn(
    native: Callable[[str], NativeBackend], volume: Volume, picture: Pictures.Image
) -> None:
    """Places of pictures differ between the two; the one kept last is gone on with."""
    backend, study = native("qwen3_vl"), Study(volume)
    asked, wanted = [user(study, "Where is it?")], GenerateOptions(choices=("yes", "no", "maybe"))
    fresh = collect(backend.generate(asked, wanted)).choices
    backend.loop.forget()
    long = backend.generate([user(study, "What is it?")], GenerateOptions(max_new_tokens=12))
    next(long)
    collect(backend.generate([user("a b", Image(picture), "And?")], SHORT))
    collect(long)
    finished = collect(backend.generate(asked, wanted))
    assert finished.usage.encoded_media == 0
    assert finished.choices == pytest.approx(fresh, abs=1e-4)


def test_an_adapter_is_used_for_its_medium_only(
    checkpoint: Callable[[str], Path], tmp_path: Path, picture: Pictures.Image, speech: np.ndarray
) -> None:
    """Phi-4-multimodal brings one to see and one to hear; in turns, each answer has its own."""
    peft = pytest.importorskip("peft", reason="needs the extra 'adapters'")
    folder = tmp_path / "phi4"
    shutil.copytree(checkpoint("phi4_multimodal"), folder)
    for seed, name in enumerate(("vision-lora", "speech-lora")):
        torch.manual_seed(seed)
        plain = load_native(checkpoint("phi4_multimodal"))[0]
        config = peft.LoraConfig(r=4, target_modules=["qkv_proj", "o_proj"], lora_alpha=64,
                                 init_lora_weights=False)  # fmt: skip
        peft.get_peft_model(plain, config).save_pretrained(folder / name)
    backend, bare = load_backend(folder), load_backend(checkpoint("phi4_multimodal"))
    assert isinstance(backend, NativeBackend)
    assert isinstance(bare, NativeBackend)
    wanted = GenerateOptions(choices=("yes", "no", "maybe"))
    asked = {"image": [user(Image(picture), "Is it?")], "audio": [user(Audio(speech, 16000), "?")],
             None: [user("Is it there?")]}  # fmt: skip
    under_way = {kind: backend.generate(turns, GenerateOptions(max_new_tokens=4, logprobs=0))
                 for kind, turns in asked.items()}  # fmt: skip
    told: dict[str | None, list[int]] = {kind: [] for kind in asked}
    for _ in range(4):
        for kind, events in under_way.items():
            told[kind] += [lp.id for lp in getattr(next(events), "logprobs", ())]
    for kind, turns in asked.items():
        if kind is None:
            backend.model.disable_adapters()
        else:
            backend.model.enable_adapters()
            backend.model.set_adapter(ADAPTERS["phi4_multimodal"][kind])
        prompt = backend.prompter.write(turns).tensors
        ids = backend.model.generate(**prompt, max_new_tokens=4, do_sample=False)
        assert told[kind] == ids[0, prompt["input_ids"].shape[1] :].tolist()
        chances = collect(bare.generate(turns, wanted)).choices
        changed = collect(load_backend(folder).generate(turns, wanted)).choices
        assert (changed == pytest.approx(chances, abs=1e-4)) == (kind is None)


def test_adapters_that_cannot_be_used_are_told(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "phi4"
    shutil.copytree(checkpoint("phi4_multimodal"), folder)
    (folder / "vision-lora").mkdir()
    (folder / "vision-lora" / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("transformers.utils.is_peft_available", lambda: False)
    with pytest.raises(IncompatibleModel, match=r"brings adapters, .* install peft"):
        load_backend(folder)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("qwen3", ""), ("deepseek_v2", "compresses its keys and values"), ("gemma2", "sliding")],
)
def test_any_language_model_is_answered_as_by_transformers(
    tmp_path: Path, kind: str, why: str
) -> None:
    """One that the engine cannot pack runs there one by one, and says why."""
    makers.save_backbone(kind, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {% endfor %}<|assistant|>"
    )
    backend, turns = load_backend(tmp_path), [user("is there a nodule ?")]
    assert isinstance(backend, NativeBackend)
    assert collect(backend.generate(turns, SHORT)).text == reference(backend, turns)
    told = backend.capabilities().one_by_one
    assert why in told
    assert bool(told) == bool(why)
    backend.close()


def test_a_study_is_drawn_once_and_its_tokens_are_told_apart_from_the_words(
    native: Callable[[str], NativeBackend], volume: Volume
) -> None:
    backend = native("gemma3")
    backend.prompter.measures = Measures()
    backend.prompter._kept.clear()
    usages = [
        collect(backend.generate([user(Study(volume), text)], SHORT)).usage for text in ("a?", "b?")
    ]
    drawn = backend.load().measured.spreads["media_decode_seconds", "dicom"]
    assert drawn.count == 1
    prompt = backend.prompter.write([user(Study(volume), "a?")])
    for usage in usages:
        assert usage.media_tokens == {"dicom": int(prompt.media_tokens.sum())}
