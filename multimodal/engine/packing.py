"""Linear layers whose weights lie as oneDNN multiplies fastest, on CPUs that have it.

PyTorch's own ordering costs a reordering in every product; packed once, the same product runs up to
twice as fast. A small layer pays more for the call than it gains, so each shape is tried. The
operations are torch's own but private, so whatever fails leaves a layer as it is.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from multimodal.engine.memory import SHARE, memory_bytes

_ROWS = 32  # of a step, for which a layer is tried
_PACKED_FOR = 128  # rows: a layout that is at least as good for all others
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
        self._packed = torch.ops.mkldnn._reorder_linear_weight(dense.weight.detach(), _PACKED_FOR)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


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
    if not found or not can_pack(found[0][2]):
        return 1.0
    if size > SHARE * memory_bytes(found[0][2].weight.device):
        return 1.0
    largest = max((child for _, _, child in found), key=lambda child: child.weight.numel())
    gains: dict[torch.Size, float] = {}
    for parent, name, child in found:
        shape = child.weight.shape
        if shape not in gains:
            gains[shape] = _gain(child)
        if gains[shape] >= MIN_GAIN:
            setattr(parent, name, PackedLinear(child))
    return gains[largest.weight.shape]


def can_pack(dense: nn.Linear) -> bool:
    """Whether this machine and build pack such a layer."""
    weight = dense.weight
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        packed = PackedLinear(dense)
        x = torch.ones(2, dense.in_features, dtype=weight.dtype)
        return torch.allclose(packed(x), dense(x), rtol=1e-2, atol=1e-2)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def _gain(dense: nn.Linear) -> float:
    """By how much a step's rows are faster packed; of a single row where that is too much slower."""
    packed = PackedLinear(dense)
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
