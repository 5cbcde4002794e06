"""Every kernel of the one operation against its definition, and how one is chosen."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal import kernels
from multimodal.kernels import cpu, reference

HAS_TRITON = importlib.util.find_spec("triton") is not None


def _case(rows: int, hidden: int, neurons: int, share: float, seed: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    mask = torch.rand(rows, neurons, generator=chance) < share
    return [draw(rows, hidden), draw(rows, neurons), mask, draw(neurons, hidden),
            draw(neurons, hidden)]  # fmt: skip


@given(
    rows=st.integers(1, 5),
    hidden=st.integers(1, 40),
    neurons=st.integers(1, 60),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 999),
    large=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_cpu_kernel_equals_the_definition(
    rows: int, hidden: int, neurons: int, share: float, seed: int, large: bool
) -> None:
    """Both ways of reading: gathered as in small layers, in place as in large ones."""
    case = _case(rows, hidden, neurons, share, seed)
    limit, cpu.GATHER_BYTES = cpu.GATHER_BYTES, 0 if large else 1 << 30
    try:
        got = cpu.sparse_gated_mlp(*case)
    finally:
        cpu.GATHER_BYTES = limit
    torch.testing.assert_close(got, reference.sparse_gated_mlp(*case), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gather_bytes", [0, 1 << 30])
def test_cpu_kernel_never_reads_an_inactive_row(
    gather_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "GATHER_BYTES", gather_bytes)
    x, gate, _, up, down = _case(1, 5, 7, 0.5, 0)
    mask = torch.tensor([[True, False, True, False, False, True, False]])
    wanted = cpu.sparse_gated_mlp(x, gate, mask, up, down)
    up[~mask[0]] = torch.nan
    down[~mask[0]] = torch.nan
    assert torch.equal(cpu.sparse_gated_mlp(x, gate, mask, up, down), wanted)


def test_the_definition_is_the_sum_over_active_neurons() -> None:
    x, gate, mask, up, down = _case(2, 5, 7, 0.5, 0)
    wanted = torch.zeros(2, 5)
    for r in range(2):
        for j in range(7):
            if mask[r, j]:
                wanted[r] += gate[r, j] * (up[j] @ x[r]) * down[j]
    torch.testing.assert_close(reference.sparse_gated_mlp(x, gate, mask, up, down), wanted)


def test_the_device_decides_and_one_without_a_kernel_gets_the_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose = kernels.kernel_for.__wrapped__
    assert choose("cpu") is cpu.sparse_gated_mlp
    assert choose("mps") is reference.sparse_gated_mlp
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose("cuda") is reference.sparse_gated_mlp  # a GPU, but no Triton


def test_every_kernel_has_the_one_signature() -> None:
    wanted = inspect.signature(kernels.sparse_gated_mlp)
    modules = [cpu, reference]
    if HAS_TRITON:
        from multimodal.kernels import triton_cuda

        modules.append(triton_cuda)
    for module in modules:
        assert inspect.signature(module.sparse_gated_mlp) == wanted, module.__name__


@pytest.mark.skipif(not HAS_TRITON, reason="needs the triton package")
def test_active_neurons_are_listed_ascending_and_padded() -> None:
    from multimodal.kernels.triton_cuda import active_index

    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    assert active_index(mask).tolist() == [[1, 3, 4], [-1, -1, -1], [0, -1, -1]]


@pytest.mark.skipif(not HAS_TRITON, reason="needs the triton package")
def test_triton_kernels_code_equals_the_definition_when_interpreted() -> None:
    """Without a GPU Triton can interpret its own program; compiled it is tested below."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.multimodal.triton_interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == 4
    assert max(errors) < 1e-4


@pytest.mark.skipif(not (HAS_TRITON and torch.cuda.is_available()), reason="needs a GPU and Triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "share"), [((1, 64, 160), 0.0), ((4, 1536, 8960), 0.5),
                                              ((3, 100, 37), 1.0)])  # fmt: skip
def test_triton_kernel_equals_the_definition(
    dtype: torch.dtype, shape: tuple[int, int, int], share: float
) -> None:
    case = _case(*shape, share, 0)
    scale = (shape[1] * shape[2]) ** -0.5
    case = [case[0], case[1] * scale, *case[2:]]
    on_gpu = [t.cuda() if t.dtype == torch.bool else t.to("cuda", dtype) for t in case]
    got = kernels.sparse_gated_mlp(*on_gpu)
    exact = [t.double() if t.dtype != torch.bool else t for t in on_gpu]
    wanted = reference.sparse_gated_mlp(*exact)
    assert got.dtype == dtype
    loose = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), wanted, atol=loose, rtol=loose)
