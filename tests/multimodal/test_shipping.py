"""Studies cross a pipe once, and what is asked about them is asked about the same study."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from encoders.dicom import Volume, load_volume
from multimodal.backends import GenerateOptions, collect
from multimodal.messages import Message, Study, user
from multimodal.process import BackendProcess
from multimodal.shipping import NUM_KEPT, Receiver, Sender
from tests.makers import FakeBackend


@pytest.fixture(scope="module")
def volume(phantom_series: Path) -> Volume:
    return load_volume(phantom_series)


def others(volume: Volume, count: int) -> list[Volume]:
    from dataclasses import replace

    return [replace(volume, voxels=volume.voxels + i) for i in range(1, count + 1)]


def carry(sender: Sender, receiver: Receiver, call: tuple[Any, ...]) -> tuple[Any, int]:
    """A call through a pipe: as it arrives, and the bytes it took."""
    sent = [pickle.dumps(parcel) for parcel in sender.packed(call)]
    arrived = [receiver.unpacked(pickle.loads(parcel)) for parcel in sent]
    (got,) = (call for call in arrived if call is not None)
    return got, sum(map(len, sent))


def test_a_study_crosses_once_and_every_call_arrives_as_it_was_meant(volume: Volume):
    sender, receiver = Sender(), Receiver()
    options = GenerateOptions(max_new_tokens=3)
    first, heavy = carry(sender, receiver, ("generate", 1, [user(Study(volume), "a?")], options))
    second, light = carry(sender, receiver, ("generate", 2, [user(Study(volume), "b?")], options))
    third, _ = carry(sender, receiver, ("novelty", 3, Study(volume, frames=7)))
    assert heavy > volume.voxels.nbytes > 50 * light
    assert first[:2] == ("generate", 1)
    assert first[3] == options
    for message, words in ((first[2][0], "a?"), (second[2][0], "b?")):
        assert message.parts[0].study.digest == volume.digest
        assert message.text == words
    assert third[2].study.digest == volume.digest
    assert third[2].frames == 7


def test_only_a_few_studies_are_kept_at_either_end(volume: Volume):
    sender, receiver = Sender(), Receiver()
    many = others(volume, NUM_KEPT + 2)
    for study in many:
        carry(sender, receiver, ("novelty", 1, Study(study)))
    assert len(receiver._kept) == NUM_KEPT
    again, heavy = carry(sender, receiver, ("novelty", 2, Study(many[0])))
    assert heavy > volume.voxels.nbytes  # it had been dropped
    assert again[2].study.digest == many[0].digest
    chat = [user(*(Study(s) for s in many), "all?")]  # more than are kept, in one call
    got, _ = carry(sender, receiver, ("generate", 3, chat, None))
    assert [p.study.digest for p in got[2][0].parts[:-1]] == [s.digest for s in many]
    assert len(receiver._kept) <= len(many)


def test_what_holds_no_loaded_study_is_sent_as_it_is(tmp_path: Path):
    call = ("generate", 1, [user(Study(tmp_path), "words"), Message("assistant", ())], None)
    assert list(Sender().packed(call)) == [call]


class Weighing(FakeBackend):
    """Answers with the sum of the study's voxels."""

    def generate(self, messages: Any, options: Any = None) -> Any:
        self.answers = {"": str(int(messages[0].parts[0].study.voxels.sum()))}
        return super().generate(messages, options)


def test_a_process_answers_about_the_study_that_was_asked_about(volume: Volume):
    studies = [volume, *others(volume, NUM_KEPT)]
    process = BackendProcess(partial(Weighing))
    try:
        for study in (*studies, *studies):
            answer = collect(process.generate([user(Study(study), "sum?")]))
            assert answer.text == str(int(study.voxels.sum()))
    finally:
        process.close()
