"""Run by test_kernels.py with TRITON_INTERPRET=1: the Triton kernel's own code, on the CPU.

Prints the largest error against the definition for each case, one a line.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.runtime.interpreter as interpreter

from multimodal.kernels import reference, triton_cuda

CASES = ((1, 64, 160, 0.5), (3, 300, 37, 0.3), (2, 33, 20, 0.0), (2, 16, 8, 1.0))
_patch = interpreter._patch_lang_tensor


def _patch_for_new_numpy(tensor: Any, scope: Any) -> None:
    """Triton 3.6 calls int() on arrays of one element, which NumPy 2.4 refuses."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def main() -> None:
    interpreter._patch_lang_tensor = _patch_for_new_numpy
    chance = torch.Generator().manual_seed(0)
    for rows, hidden, neurons, share in CASES:
        x, gate, up, down = (
            torch.randn(*shape, generator=chance)
            for shape in ((rows, hidden), (rows, neurons), (neurons, hidden), (neurons, hidden))
        )
        mask = torch.rand(rows, neurons, generator=chance) < share
        case = (x, gate / hidden**0.5, mask, up, down)
        error = triton_cuda.sparse_gated_mlp(*case) - reference.sparse_gated_mlp(*case)
        print(float(error.abs().max()))


if __name__ == "__main__":
    main()
