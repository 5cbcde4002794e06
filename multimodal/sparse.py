"""Dynamic sparse activation: for every token, a gate computed from it picks the MLP neurons to run.

`sparsify` swaps the gated MLPs of a dense causal LM for `SparseMLP` under the same parameter names,
so checkpoints stay interchangeable. Mixture-of-experts layers are sparse already and stay as they
are. Gates: "topk" keeps the neurons with the largest |act(gate)| (as trained with the model);
"threshold" keeps those above a per-layer quantile of sample text (CATS, arXiv 2404.08763; TEAL,
arXiv 2408.14690).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from encoders.errors import IncompatibleModel, InvalidMessage
from multimodal.kernels import sparse_gated_mlp

DECODE_ROWS = 4  # tokens up to which gathering active rows reads less than a dense product, mostly
LEVELS = tuple(round(0.1 * i, 1) for i in range(1, 10))
MAX_SAMPLES = 65_536  # activations kept per MLP and batch of calibration text
_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


@dataclass(frozen=True)
class SparsityConfig:
    """Which gate, the share of neurons it leaves out, and the threshold gate's quantiles.

    `thresholds[layer][i]` is the value of |act(gate)| below which `LEVELS[i]` of neurons lie.
    """

    gate: Literal["topk", "threshold"] = "topk"
    sparsity: float = 0.5
    thresholds: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.gate not in ("topk", "threshold"):
            raise InvalidMessage(f"the gate is {self.gate!r}; use 'topk' or 'threshold'")
        if not 0.0 <= self.sparsity <= 0.9:
            raise InvalidMessage(f"sparsity is {self.sparsity}; choose a share from 0.0 to 0.9")

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for a model's config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparsityConfig:
        """What `to_dict` wrote."""
        thresholds = tuple(tuple(layer) for layer in values.get("thresholds") or ())
        return cls(values["gate"], values["sparsity"], thresholds)


@dataclass
class MlpFlops:
    """Multiply-adds of the sparse MLPs: prefill (and many tokens at once) runs dense, decoding runs
    what the gate lets through."""

    prefill: int = 0
    decode_dense: int = 0
    decode_executed: int = 0

    @property
    def skipped_in_decode(self) -> float:
        """Share of a dense model's multiply-adds that decoding did not do."""
        return 1.0 - self.decode_executed / self.decode_dense if self.decode_dense else 0.0

    @property
    def skipped(self) -> float:
        """The same share over prefill and decoding together."""
        dense = self.prefill + self.decode_dense
        return 1.0 - (self.prefill + self.decode_executed) / dense if dense else 0.0


@dataclass
class Tally:
    """What an MLP and its copies count: neurons, those that ran, and multiply-adds while asked for."""

    neurons: int = 0
    run: int = 0
    flops: MlpFlops | None = None


class SparseMLP(nn.Module):
    """A gated MLP that runs, per token, only the neurons its gate lets through.

    `dense_above` is the number of tokens above which all neurons are multiplied and the others'
    masked out: the same result, and faster where many tokens share one reading of the weights.
    """

    def __init__(self, dense: nn.Module, config: SparsityConfig, layer: int) -> None:
        super().__init__()
        source: Any = dense
        self.gate_proj: nn.Linear = source.gate_proj
        self.up_proj: nn.Linear = source.up_proj
        self.down_proj: nn.Linear = source.down_proj
        self.act_fn = source.act_fn
        self.layer = layer
        self.config = config
        self.tally = Tally()
        self.dense_above = DECODE_ROWS
        self._down_t: tuple[tuple[int, int], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` -> `[..., hidden]`."""
        if self.config.sparsity == 0.0:
            self._count(x, None)
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        gate = self.act_fn(self.gate_proj(x))
        mask = self.active(gate)
        rows = x.numel() // x.shape[-1]
        if rows > self.dense_above or torch.is_grad_enabled() or self._has_bias():
            self._count(x, None)
            return self.down_proj(gate * mask * self.up_proj(x))
        self._count(x, mask)
        flat = sparse_gated_mlp(
            x.reshape(rows, -1), gate.reshape(rows, -1), mask.reshape(rows, -1),
            self.up_proj.weight, self._down_transposed(),
        )  # fmt: skip
        return flat.view_as(x)

    def active(self, gate: torch.Tensor) -> torch.Tensor:
        """Which neurons run: bool, shaped like the activated gate `[..., neurons]`."""
        strength = gate.detach().abs()
        if self.config.gate == "threshold":
            return strength > self._threshold()
        keep = max(round((1.0 - self.config.sparsity) * gate.shape[-1]), 1)
        index = strength.topk(keep, dim=-1, sorted=False).indices
        return torch.zeros_like(gate, dtype=torch.bool).scatter_(-1, index, True)

    def _threshold(self) -> float:
        """The layer's quantile at the wanted sparsity, between calibrated levels linearly."""
        values = (0.0, *self.config.thresholds[self.layer])
        place = self.config.sparsity * 10
        low = min(int(place), len(values) - 2)
        return values[low] + (place - low) * (values[low + 1] - values[low])

    def _has_bias(self) -> bool:
        return self.up_proj.bias is not None or self.down_proj.bias is not None

    def _down_transposed(self) -> torch.Tensor:
        """`down_proj.weight` with a neuron's column in one stretch of memory, kept until it changes."""
        weight = self.down_proj.weight
        # weights made in inference mode cannot change and count no versions
        key = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._down_t is None or self._down_t[0] != key:
            self._down_t = (key, weight.detach().t().contiguous())
        return self._down_t[1]

    def _count(self, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        hidden, neurons = x.shape[-1], self.gate_proj.out_features
        rows = x.numel() // hidden
        run = rows * neurons if mask is None else int(mask.sum())
        self.tally.neurons += rows * neurons
        self.tally.run += run
        flops = self.tally.flops
        if flops is None:
            return
        dense = 3 * rows * hidden * neurons
        if rows > self.dense_above:
            flops.prefill += dense
            return
        done = dense if mask is None else rows * hidden * neurons + 2 * hidden * run
        flops.decode_dense += dense
        flops.decode_executed += done


def sparsify(model: nn.Module, config: SparsityConfig) -> int:
    """Swap the dense gated MLPs of a causal LM in place; returns how many.

    Layers of experts are left alone, so a mixture-of-experts model passes through unchanged.

    Raises:
        IncompatibleModel: neither gated MLPs nor experts, or a threshold gate not calibrated.
    """
    found = list(_dense_mlps(model))
    if not found and not _has_experts(model):
        raise IncompatibleModel(
            f"{type(model).__name__} has no gated MLP (gate_proj, up_proj, down_proj);"
            " load it without sparsity"
        )
    if config.gate == "threshold" and len(config.thresholds) != len(found):
        raise IncompatibleModel(
            f"the threshold gate has {len(config.thresholds)} calibrated layers for"
            f" {len(found)} MLPs; run calibrate() on this model"
        )
    for layer, (parent, name) in enumerate(found):
        setattr(parent, name, SparseMLP(getattr(parent, name), config, layer))
    return len(found)


def sparse_mlps(model: nn.Module) -> list[SparseMLP]:
    """The sparse MLPs of a model, first layer first."""
    return [m for m in model.modules() if isinstance(m, SparseMLP)]


def set_sparsity(model: nn.Module, sparsity: float) -> None:
    """Change the share of neurons left out, 0.0 (dense) to 0.9, and record it in the config.

    Raises:
        IncompatibleModel: the model has no sparse MLP and is asked for sparsity.
        InvalidMessage: a share out of range.
    """
    mlps = sparse_mlps(model)
    if not mlps:
        if sparsity == 0.0:
            return
        raise IncompatibleModel(
            "this model's experts are sparse already and take no sparsity"
            if _has_experts(model)
            else "this model's MLPs are dense; compose it with sparsity=…"
        )
    config = replace(mlps[0].config, sparsity=sparsity)
    for mlp in mlps:
        mlp.config = config
    holder: Any = getattr(model, "config", None)
    if getattr(holder, "sparsity", None) is not None:
        holder.sparsity = config.to_dict()


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[torch.Tensor]) -> tuple[tuple[float, ...], ...]:
    """Quantiles of |act(gate)| per MLP at `LEVELS` on sample token ids `[batch, length]`.

    Works on a dense or sparsified model; sparsity is off while it runs. Of each batch a random
    `MAX_SAMPLES` activations per MLP are kept, so long text costs no memory.
    """
    mlps = [getattr(parent, name) for parent, name in _dense_mlps(model)] or sparse_mlps(model)
    seen: list[list[torch.Tensor]] = [[] for _ in mlps]
    chance = torch.Generator().manual_seed(0)
    hooks = [
        mlp.gate_proj.register_forward_hook(
            lambda _m, _i, out, mlp=mlp, store=store: store.append(
                _sample(mlp.act_fn(out).abs().flatten().float(), chance)
            )
        )
        for mlp, store in zip(mlps, seen, strict=True)
    ]
    before = [getattr(mlp, "config", None) for mlp in mlps]
    try:
        for mlp, config in zip(mlps, before, strict=True):
            if config is not None:
                mlp.config = replace(config, sparsity=0.0)
        for batch in batches:
            model(input_ids=batch)
    finally:
        for hook in hooks:
            hook.remove()
        for mlp, config in zip(mlps, before, strict=True):
            if config is not None:
                mlp.config = config
    return tuple(_quantiles(torch.cat(store)) for store in seen)


@contextmanager
def counting_flops(model: nn.Module) -> Iterator[MlpFlops]:
    """Count the multiply-adds of every sparse MLP call inside the `with`."""
    total = MlpFlops()
    mlps = sparse_mlps(model)
    for mlp in mlps:
        mlp.tally.flops = total
    try:
        yield total
    finally:
        for mlp in mlps:
            mlp.tally.flops = None


def _sample(values: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    if len(values) <= MAX_SAMPLES:
        return values
    return values[torch.randint(len(values), (MAX_SAMPLES,), generator=chance).to(values.device)]


def _quantiles(values: torch.Tensor) -> tuple[float, ...]:
    ordered = values.sort().values
    return tuple(float(ordered[int(level * (len(ordered) - 1))]) for level in LEVELS)


def _dense_mlps(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(parent, attribute) of every gated MLP that is no part of a mixture of experts."""
    if _has_experts(model):
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, SparseMLP) and all(hasattr(child, part) for part in _PARTS):
                yield parent, name


def _has_experts(model: nn.Module) -> bool:
    return any(hasattr(module, "experts") for module in model.modules())
