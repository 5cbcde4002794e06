"""How much memory keys and values may take. Knows no request."""

from __future__ import annotations

import os
from typing import Any

import torch

SHARE = 0.25  # of a machine's memory, or of what a GPU has free


def num_places(model: Any, longest: int, slots: int) -> int:
    """Positions for which keys and values are held: `slots` of the longest, or what memory allows."""
    allowed = memory_bytes(model.device) * SHARE // bytes_per_place(model)
    return max(int(min(slots * longest, allowed)), 1)


def bytes_per_place(model: Any) -> int:
    """Of the keys and values of one position in all layers."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * dim * model.dtype.itemsize


def memory_bytes(device: torch.device) -> int:
    """Of a GPU what is free, else all that the machine has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
