"""Winding a cache of keys and values back to an earlier position, where its layers allow it.

A cache must have had `activate_past_recording()` called when it was new.
"""

from __future__ import annotations

import copy

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def can_crop(cache: DynamicCache) -> bool:
    """Whether every layer keeps keys a position at a time (recurrent states cannot be wound back)."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def fork(cache: DynamicCache) -> DynamicCache:
    """A cache that goes its own way from here; keys and values of the past are shared.

    Layers that keep keys make new tensors when they grow; states that are written in place are
    copied.
    """
    if not can_crop(cache):
        return copy.deepcopy(cache)
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def slides(cache: DynamicCache) -> bool:
    """Whether a layer keeps a window of the last positions only."""
    return any(isinstance(layer, DynamicSlidingWindowLayer) for layer in cache.layers)


def crop(cache: DynamicCache, length: int) -> bool:
    """Forget all but the first `length` positions; False, with nothing done, where it cannot be."""
    surplus = cache.get_seq_length() - length
    if not can_crop(cache) or length == 0:
        return False
    sliding = [x for x in cache.layers if isinstance(x, DynamicSlidingWindowLayer)]
    # cropping drops what left the window, so what would come back into it must still be there
    if any(x.keys.shape[-2] - surplus < min(length, x.sliding_window - 1) for x in sliding):
        return False
    if surplus:
        cache.crop(-surplus)
    return True
