"""ZeroGPU, with a stand-in that does what matters of `spaces.GPU`: it forks a process for each call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from multimodal.backends import load_backend
from pipelines.ui.zero import on_zero_gpu
from tests.makers import FakeBackend
from tests.served import ROOT

SCRIPT = """
import inspect, json, multiprocessing, os, sys, types
from pathlib import Path

def forked(work, *arguments):
    pipe, end = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        for value in work(*arguments):
            end.send((os.getpid(), value))
        end.send(None)
        os._exit(0)
    while (said := pipe.recv()) is not None:
        pids.add(said[0])
        yield said[1]
    os.waitpid(pid, 0)

def GPU(duration):
    def decorated(work):
        if inspect.isgeneratorfunction(work):
            return lambda *arguments: forked(work, *arguments)
        return lambda *arguments: next(forked(lambda *a: iter([work(*a)]), *arguments))
    return decorated

pids = set()
sys.modules["spaces"] = types.SimpleNamespace(GPU=GPU)
from multimodal.backends import GenerateOptions, collect, load_backend
from multimodal.messages import Study, user
from pipelines.ui.zero import on_zero_gpu

backend = load_backend(None)
study = Study(Path("multimodal/demo/sample/study"))
asked = [user(study, "Is there a nodule?")]
options = GenerateOptions(max_new_tokens=8)
alone = collect(backend.generate(asked, options)).text  # its engine's thread runs from here on
zero = on_zero_gpu(backend)
answers = [collect(zero.generate(asked, options)).text for _ in range(2)]
scores = [b.novelty(study).score for b in (backend, zero)]
print(json.dumps([alone, answers, len(pids - {os.getpid()}), scores]))
"""


@pytest.mark.slow
def test_an_answer_made_in_a_forked_process_is_the_one_made_here():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=240,
        env={"SPACES_ZERO_GPU": "true", "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone, answers, num_children, (here, there) = json.loads(done.stdout.splitlines()[-1])
    assert answers == [alone, alone]
    assert num_children == 3
    assert there == pytest.approx(here)


def test_without_a_lent_gpu_a_backend_stays_itself(
    monkeypatch: pytest.MonkeyPatch, tiny_composite: tuple, tmp_path: Path
):
    model, processor = tiny_composite
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    local, fake = load_backend(tmp_path), FakeBackend()
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert on_zero_gpu(local) is local
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert on_zero_gpu(fake) is fake
