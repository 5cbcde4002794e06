"""Linear layers whose weights lie as oneDNN or MKL multiplies fastest, on CPUs that have them.

PyTorch's own ordering costs a reordering in every product; packed once, the same product runs up to
twice as fast. A small layer pays more for the call than it gains, so each shape is tried with both
libraries. The operations are torch's own but private, so whatever fails leaves a layer as it is.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from multimodal.engine.memory import SHARE, memory_bytes

_ROWS = 32  # of a step, for which a layer is tried
_PACKED_FOR = 128  # rows: a layout that is at least as good for all others
_CHECKED = (1, 2, 33, 129)  # rows, with which a packed layer is compared with its own
_TRIES = 15
MIN_GAIN = 1.05  # a layer that gains less stays as it is
_LEAST_ALONE = 0.8  # and one that makes a single row slower than this


class PackedLinear(nn.Module):
    """A linear layer with a packed copy of its weight, for inference on a CPU."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        # as they were: who reads single rows of the weight (a sparse MLP) finds them here
        self.weight, self.bias = dense.weight, dense.bias
        self._packed = self._pack(dense.weight.detach())

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class OneDnnLinear(PackedLinear):
    """Multiplied by oneDNN."""

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
        return packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


class MklLinear(PackedLinear):
    """Multiplied by MKL, in float32; the fastest on Intel's processors."""

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, _PACKED_FOR)
        return packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        # torch would multiply by the plain weight where these are not the rows that it was packed
        # for, but MKL's layout is the same for any number of them
        rows = x.numel() // self.in_features
        return torch.ops.mkl._mkl_linear(x, self._packed, self.weight, self.bias, rows)


_LIBRARIES: tuple[type[PackedLinear], ...] = (OneDnnLinear, MklLinear)


def pack(model: nn.Module) -> float:
    """Pack the linear layers of a model in place, each shape where that is faster.

    Returns by how much for the largest; 1 where nothing can be packed.

    Nothing is packed off a CPU, where torch has no oneDNN, or where a second copy of the weights
    would take more than its share of the memory.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    size = sum(child.weight.nbytes for _, _, child in found)
    if not found or size > SHARE * memory_bytes(found[0][2].weight.device):
        return 1.0
    best: dict[tuple[torch.Size, torch.dtype], tuple[float, type[PackedLinear]]] = {}
    for parent, name, child in found:
        kind = child.weight.shape, child.weight.dtype
        if kind not in best:
            able = [library for library in _LIBRARIES if can_pack(child, library)]
            gains = [(_gain(child, library(child)), library) for library in able]
            best[kind] = max(gains, key=lambda pair: pair[0], default=(1.0, PackedLinear))
        gain, library = best[kind]
        if gain >= MIN_GAIN and library is not PackedLinear:
            setattr(parent, name, library(child))
    largest = max((child.weight for _, _, child in found), key=torch.Tensor.numel)
    return best[largest.shape, largest.dtype][0]


@torch.inference_mode()
def can_pack(dense: nn.Linear, library: type[PackedLinear] = OneDnnLinear) -> bool:
    """Whether this machine and build pack such a layer."""
    weight = dense.weight
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        packed = library(dense)
        tried = [torch.randn(rows, dense.in_features).to(weight.dtype) for rows in _CHECKED]
        return all(torch.allclose(packed(x), dense(x), rtol=2e-2, atol=2e-2) for x in tried)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def _gain(dense: nn.Linear, packed: PackedLinear) -> float:
    """By how much a step's rows are faster packed; of a single row where that is too much slower."""
    alone = _ratio(dense, packed, 1)
    return alone if alone < _LEAST_ALONE else _ratio(dense, packed, _ROWS)


def _ratio(dense: nn.Linear, packed: PackedLinear, rows: int) -> float:
    x = torch.randn(rows, dense.in_features).to(dense.weight.dtype)
    # in turns: on a busy machine what slows one down must not be taken for the other's
    tries = [(_seconds(dense, x), _seconds(packed, x)) for _ in range(_TRIES)]
    plain_s, packed_s = (min(seconds) for seconds in zip(*tries, strict=True))
    return plain_s / max(packed_s, 1e-9)


def _seconds(layer: Any, x: torch.Tensor) -> float:
    start = time.perf_counter()
    for _ in range(3):
        layer(x)
    return time.perf_counter() - start
