"""A language model split over processes of this machine, each with a share of every layer.

`SplitModel` is rank 0 and starts the others (`python -m multimodal.native_split`), which load the
same checkpoint and follow it (`engine.parallel`). Token ids in, an engine out; knows no message.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from encoders.errors import InvalidOption, ModelUnavailable
from multimodal.engine.adaptive import MOST_SLOTS, Adaptive
from multimodal.engine.assembly import Assembled
from multimodal.engine.engine import Engine
from multimodal.engine.memory import num_places
from multimodal.engine.parallel import GONE, LeadingRunner, follow
from multimodal.engine.runner import PackedRunner
from multimodal.engine.tuning import Tuned
from multimodal.loading import device_of, read_config
from multimodal.measures import Measures
from multimodal.native_loading import load_native
from multimodal.native_merging import Embedded
from multimodal.native_prompt import Prompt

_FOREVER = timedelta(days=365)  # a rank waits for the next request, not for a broken one
_PARTING_S = 30.0  # for a rank to end when told so
_LOOK_S = 0.05  # between two looks at who has come


@dataclass(frozen=True)
class _Job:
    """What every rank has to know."""

    model: str
    dtype: str
    num_ranks: int
    port: int
    threads: int


class SplitModel:
    """Rank 0 of a model over several processes; a process holds one at most.

    If one of the others ends, all of them do, and `check` says so.

    Args:
        model: folder or Hub id of a language model.
        num_ranks: processes, of a GPU each, or of a core each where there is no GPU.
        device: "auto", or what that is here.
        dtype: see `load_native`.

    Raises:
        InvalidOption: fewer devices than ranks, or a model that does more than read.
        IncompatibleModel: a model that cannot be split or packed, saying why.
    """

    def __init__(
        self, model: str | Path, num_ranks: int, *, device: str = "auto", dtype: str = "auto"
    ) -> None:
        num_devices = _require_devices(num_ranks, device)
        _require_reader(model)
        threads = 0 if torch.cuda.is_available() else max(num_devices // num_ranks, 1)
        job = _Job(str(model), dtype, num_ranks, _free_port(), threads)
        others = [_start(rank, job) for rank in range(1, num_ranks)]
        self._kill = weakref.finalize(self, _kill, others)
        self._lost = _watch(others)
        try:
            self.words, self.processor, runner = _join(0, job, self._lost)
        except BaseException:  # whatever it is, the other ranks must not stay
            self._kill()
            _leave()
            raise
        self.measures = Measures()
        self._others, self._job, self._runner = others, job, LeadingRunner(runner)

    def embed(self, prompt: Prompt, tenant: str = "") -> Embedded:
        """The prompt's words; the table may be split, so all ranks look them up."""
        ids = prompt.tensors["input_ids"][0]
        return Embedded(self._runner.embed(ids.tolist()), ids.numpy().astype(np.int64))

    def check(self) -> None:
        """Refuse to go on alone.

        Raises:
            ModelUnavailable: another rank is gone.
        """
        if self._lost.is_set():
            raise ModelUnavailable(GONE)

    def forget(self) -> None:
        """Nothing: the engine gives room to whoever needs it."""

    def assembled(self, adaptive: Adaptive) -> Assembled:
        """An engine that leads the other ranks; nothing is tuned, so that all do the same."""
        engine = Engine(self._runner, adaptive.limits, adaptive.measured)
        tuned = Tuned(threads=torch.get_num_threads(), num_ranks=self._job.num_ranks)
        return Assembled(engine, self.words, adaptive, tuned)

    def close(self) -> None:
        """Let the other ranks go; the engine has to be closed before."""
        if not self._kill.alive:
            return
        self._runner.stop()
        for other in self._others:
            with suppress(subprocess.TimeoutExpired):  # it is killed below
                other.wait(_PARTING_S)
        self._kill()
        _leave()


def _require_devices(num_ranks: int, device: str) -> int:
    """How many devices there are.

    Raises:
        InvalidOption: fewer than ranks, another kind than that which ranks get, or one rank too many.
    """
    usual, gpus = device_of("auto"), torch.cuda.is_available()
    if device not in ("auto", usual):
        raise InvalidOption(
            f"ranks of tensor_parallel run on {usual} here; leave device {device} out"
        )
    have, what = (torch.cuda.device_count(), "GPU") if gpus else (os.cpu_count() or 1, "core")
    if num_ranks > have:
        raise InvalidOption(
            f"tensor_parallel is {num_ranks}, but there {'is' if have == 1 else 'are'} {have}"
            f" {what}{'s'[: have != 1]}; ask for no more, or leave it out"
        )
    if dist.is_initialized():
        raise InvalidOption("this process leads a split model already; use another process")
    return have


def _require_reader(model: str | Path) -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )

    kind = type(read_config(model))
    if kind in MODEL_FOR_MULTIMODAL_LM_MAPPING or kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InvalidOption(
            "tensor_parallel is for language models that only read; leave it out, or serve the model"
            " by vLLM or SGLang and give its address"
        )


def _join(rank: int, job: _Job, lost: threading.Event) -> tuple[Any, Any, PackedRunner]:
    """A rank's share of the model, its processor, and what runs it.

    Raises:
        ModelUnavailable: another rank was `lost` before all were there.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", job.port, is_master=rank == 0, wait_for_workers=False, timeout=_FOREVER
    )
    store.set(f"rank {rank}", "here")
    while not store.check([f"rank {other}" for other in range(job.num_ranks)]):
        if lost.wait(_LOOK_S):
            raise ModelUnavailable(GONE)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=job.num_ranks, timeout=_FOREVER
    )
    network, processor = load_native(job.model, dtype=job.dtype, num_ranks=job.num_ranks)
    longest = int(getattr(network.config, "max_position_embeddings", 0) or 2**31)
    room = [num_places(network, longest, MOST_SLOTS)]
    dist.broadcast_object_list(room, src=0)  # all ranks hold the same places
    with torch.inference_mode():
        return network, processor, PackedRunner(network, room[0])


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _start(rank: int, job: _Job) -> subprocess.Popen[bytes]:
    # no child of multiprocessing: the process that a server's model lives in may have none
    return subprocess.Popen(
        [sys.executable, "-m", "multimodal.native_split", str(rank), json.dumps(asdict(job))],
        env={**os.environ, "LOCAL_RANK": str(rank)}, stdin=subprocess.PIPE,
    )  # fmt: skip


def _watch(others: list[subprocess.Popen[bytes]]) -> threading.Event:
    """Set once a rank has ended without being told to; the others are ended then."""
    lost = threading.Event()

    def watch(other: subprocess.Popen[bytes]) -> None:
        if other.wait() != 0:
            lost.set()
            _kill(others)

    for other in others:
        threading.Thread(target=watch, args=(other,), name="rank", daemon=True).start()
    return lost


def _kill(others: list[subprocess.Popen[bytes]]) -> None:
    for other in others:
        other.kill()
        other.wait()
        assert other.stdin is not None
        other.stdin.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    """Another rank than 0, until rank 0 stops or is gone."""
    rank, job = int(sys.argv[1]), _Job(**json.loads(sys.argv[2]))
    threading.Thread(target=_end_with_leader, daemon=True).start()
    _, _, runner = _join(rank, job, threading.Event())  # a lost leader is told by stdin
    status = 0
    try:
        follow(runner)
    except RuntimeError:  # rank 0 is gone, and with it everyone who asked
        status = 1
    os._exit(status)  # at once: to leave in order, both ends would have to be there


def _end_with_leader() -> None:
    """End when rank 0 does, whatever this rank waits for: then nobody holds the other end of stdin."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
