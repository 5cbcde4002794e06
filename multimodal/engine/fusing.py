"""Decoder layers whose small operations run as few compiled passes, on a CPU in float32.

Beside its matrix products a layer of transformers runs some fifty operations of torch, which for the few
rows of a step cost as much again. Only layers of the kind of Llama, Qwen and Mistral are known; what
a fused layer gives is tried, and a model that then answers otherwise stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from multimodal.engine.attending import Plan, attend
from multimodal.sparse import SparseMLP

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_TOLERANCE = 1e-4  # of the largest logit


class FusedLayer(nn.Module):
    """A decoder layer over the modules of the one it is made from.

    Args:
        layer: of transformers.
        is_last: of the model: only rows that are predicted from are run to the end.
    """

    def __init__(self, layer: Any, is_last: bool) -> None:
        super().__init__()
        attention = layer.self_attn
        self.is_last = is_last
        self.scaling, self.layer_idx = attention.scaling, attention.layer_idx
        self.head_dim = attention.head_dim
        self.before, self.behind = (getattr(layer, name) for name in _NORMS)
        self.query, self.key, self.value, self.out = (getattr(attention, n) for n in _PROJECTIONS)
        self.query_norm, self.key_norm = (getattr(attention, f"{n}_norm", None) for n in "qk")
        self.mlp = FusedMLP(layer.mlp) if _is_swish(layer.mlp) else layer.mlp
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
        """`[1, rows, hidden]` -> the same; called as transformers calls its own layers.

        Of a last layer, rows that nobody predicts from stay what they were.
        """
        x, (cosine, sine) = hidden_states[0], (angles[0] for angles in position_embeddings)
        normed = _norm(self.before, x)
        key = self._turned(self.key(normed), cosine, sine, self.key_norm)
        kept = key, self._heads(self.value(normed))
        asking = x, normed, cosine, sine
        if not self.is_last or plan.last is None or plan.wanted is None:
            return self._answered(plan, asking, kept)[None]
        few = tuple(rows[plan.wanted] for rows in asking)
        return x.index_copy(0, plan.wanted, self._answered(plan.last, few, kept))[None]

    def _answered(
        self, plan: Plan, asking: tuple[torch.Tensor, ...], kept: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Rows, as they are and normed, and their angles -> the same after attention and MLP."""
        x, normed, cosine, sine = asking
        query = self._turned(self.query(normed), cosine, sine, self.query_norm)
        x = x + self.out(attend(plan, self.layer_idx, (query, *kept), self.scaling).flatten(1))
        return x + self.mlp(_norm(self.behind, x))

    def _heads(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(len(rows), -1, self.head_dim)

    def _turned(
        self, rows: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, norm: Any
    ) -> torch.Tensor:
        """Queries or keys, turned by their positions."""
        from multimodal.kernels.decoding_cpu import rotate

        heads = self._heads(rows)
        if norm is not None:
            heads = _norm(norm, heads)
        rotate(heads, cosine, sine)
        return heads


class FusedMLP(nn.Module):
    """A gated MLP whose gate is a swish, over the layers of the one it is made from."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, hidden]` -> the same."""
        from multimodal.kernels.decoding_cpu import swish_product

        return self.down_proj(swish_product(self.gate_proj(x), self.up_proj(x)))


@dataclass(frozen=True)
class Logits:
    """What a pass gives: `[1, wanted rows, vocab]`."""

    logits: torch.Tensor


class Straight:
    """Fused layers one after the other, in the place of a causal language model's `forward`.

    What transformers does around them, masks, records and defaults, takes as long as two layers
    of a small model.
    """

    def __init__(self, model: Any) -> None:
        inner = model.model
        self.layers, self.norm, self.angles = list(inner.layers), inner.norm, inner.rotary_emb
        self.head = model.lm_head

    def __call__(
        self,
        *,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        logits_to_keep: torch.Tensor,
        plan: Plan,
        use_cache: Literal[False],
    ) -> Logits:
        """`[1, rows, hidden]` -> logits of the rows to keep."""
        angles, x = self.angles(inputs_embeds, position_ids), inputs_embeds
        for layer in self.layers:
            x = layer(x, position_embeddings=angles, plan=plan)
        return Logits(self.head(_norm(self.norm, x[0][logits_to_keep]))[None])


def fuse(model: nn.Module, probe: Callable[[], torch.Tensor]) -> bool:
    """Fuse a model's layers in place if `probe`, which runs it, then gives the logits that it gave.

    Where that is so of all of them, they are run straight if that, too, gives the same.
    """
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
        setattr(parent, name, FusedLayer(child, is_last=child is found[-1][2]))
    same = _gives(probe, wanted)
    if not same:
        for parent, name, child in found:
            setattr(parent, name, child)
    elif _is_plain(model, len(found)):
        any_model: Any = model
        any_model.forward = Straight(model)
        if not _gives(probe, wanted):
            del any_model.forward
    return same


def _gives(probe: Callable[[], torch.Tensor], wanted: torch.Tensor) -> bool:
    """Whether a probe gives these logits."""
    try:
        worst = (probe() - wanted).abs().max()
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError):
        return False
    return bool(worst <= _TOLERANCE * wanted.abs().max())


def _is_plain(model: Any, num_fused: int) -> bool:
    """Whether a model looks like fused layers between angles and a norm, and a head."""
    inner = getattr(model, "model", None)
    return (
        len(getattr(inner, "layers", ())) == num_fused
        and hasattr(inner, "rotary_emb")
        and hasattr(getattr(inner, "norm", None), "variance_epsilon")
        and hasattr(model, "lm_head")
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


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


def _is_swish(mlp: Any) -> bool:
    """Whether an MLP is gated by a swish, and dense."""
    parts = ("gate_proj", "up_proj", "down_proj")
    swish = type(getattr(mlp, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    return swish and not isinstance(mlp, SparseMLP) and all(hasattr(mlp, p) for p in parts)


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    from multimodal.kernels.decoding_cpu import rms_norm

    return rms_norm(x, norm.weight, norm.variance_epsilon)
