"""Decoder layers whose small operations run as few compiled passes, on a CPU in float32.

Beside its matrix products a layer of transformers runs some fifty operations of torch, which for the few
rows of a step cost as much again. Only layers of the kind of Llama, Qwen and Mistral are known; what
a fused layer gives is tried, and a model that then answers otherwise stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from multimodal.engine.attending import Plan, attend

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_TOLERANCE = 1e-4  # of the largest logit


class FusedLayer(nn.Module):
    """A decoder layer over the modules of the one it is made from."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.scaling, self.layer_idx = attention.scaling, attention.layer_idx
        self.head_dim = attention.head_dim
        self.before, self.behind = (getattr(layer, name) for name in _NORMS)
        self.query, self.key, self.value, self.out = (getattr(attention, n) for n in _PROJECTIONS)
        self.query_norm, self.key_norm = (getattr(attention, f"{n}_norm", None) for n in "qk")
        self.mlp = layer.mlp
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        plan: Plan,
        **others: Any,
    ) -> torch.Tensor:
        """`[1, rows, hidden]` -> the same; called as transformers calls its own layers."""
        x = _norm(self.before, hidden_states[0])
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim))
            for project in (self.query, self.key, self.value)
        )
        query, key = self._placed(query, key, position_embeddings)
        attended = attend(plan, self.layer_idx, (query, key, value), self.scaling)
        hidden_states = hidden_states + self.out(attended.flatten(1))
        return hidden_states + self.mlp(_norm(self.behind, hidden_states))

    def _placed(
        self, query: torch.Tensor, key: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys turned by their positions."""
        from multimodal.kernels.decoding_cpu import rotate

        if self.query_norm is not None:
            query, key = _norm(self.query_norm, query), _norm(self.key_norm, key)
        for rows in (query, key):
            rotate(rows, angles[0][0], angles[1][0])
        return query, key


def fuse(model: nn.Module, probe: Callable[[], torch.Tensor]) -> bool:
    """Fuse a model's layers in place if `probe`, which runs it, then gives the logits that it gave."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _fits(child)
    ]
    if not found:
        return False
    wanted = probe()
    for parent, name, child in found:
        setattr(parent, name, FusedLayer(child))
    try:
        worst = (probe() - wanted).abs().max()
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError):
        worst = torch.tensor(torch.inf)
    same = bool(worst <= _TOLERANCE * wanted.abs().max())
    if not same:
        for parent, name, child in found:
            setattr(parent, name, child)
    return same


def _fits(layer: Any) -> bool:
    """Whether a module looks like a layer that can be fused."""
    attention = getattr(layer, "self_attn", None)
    norms: list[Any] = [getattr(layer, name, None) for name in _NORMS]
    return (
        all(
            hasattr(attention, name) for name in (*_PROJECTIONS, "head_dim", "layer_idx", "scaling")
        )
        and hasattr(layer, "mlp")
        and all(hasattr(norm, "variance_epsilon") for norm in norms)
        and all(n.weight.dtype == torch.float32 and n.weight.device.type == "cpu" for n in norms)
        # a hook (tensor parallel has some) may change what a module takes or gives
        and not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    )


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    from multimodal.kernels.decoding_cpu import rms_norm

    return rms_norm(x, norm.weight, norm.variance_epsilon)
