"""Forward passes for the engine: segments of many sequences in, logits out.

`PackedRunner` runs all of them in one pass, for decoders whose every layer attends to everything;
`PlainRunner` runs one after the other with transformers' own cache, for all other decoders.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache

from encoders.errors import IncompatibleModel
from multimodal.backends import GenerateOptions
from multimodal.engine import sequence as seq
from multimodal.engine.attending import ATTENTION, plan_of, register
from multimodal.engine.cache import Pool, num_shared
from multimodal.engine.fusing import fuse
from multimodal.loading import devices_of
from multimodal.rewind import can_crop, crop
from multimodal.sparse import sparse_mlps

NUM_KEPT = 4  # finished sequences whose keys and values `PlainRunner` keeps
_PROBE_TOKENS = 11
_PROBE_PLACES = 4 * _PROBE_TOKENS
_PROBE_TOLERANCE = (
    1e-2  # of the largest logit; half precision differs by less, a wrong mask by more
)


class Runner(Protocol):
    """What the engine needs of a model."""

    def open(self, sequence: seq.Sequence) -> bool:
        """Make room for a sequence and set how much of its prompt is there; false if none is free."""
        ...

    def close(self, sequence: seq.Sequence, *, keep: bool) -> None:
        """Give its room back; what is not kept is wiped out."""
        ...

    def run(self, segments: Sequence[seq.Segment]) -> list[torch.Tensor | Exception]:
        """Logits `[num_logits, vocabulary]` of each segment, in float32, or why there are none."""
        ...

    def used(self) -> float:
        """Share of the room that sequences under way hold, 0 to 1."""
        ...

    def capacity(self) -> int:
        """Positions that one sequence may take at most."""
        ...


class PackedRunner:
    """All segments in one pass; attention reads each sequence's run of places.

    The model's modules are copied and its weights shared, so that its own attention stays as it is
    for everyone else.

    Args:
        model: a causal language model.
        num_places: positions that all sequences together may take.
        way: says how the model computes just now; what was computed otherwise is not reused, and
            the copy is made anew.
        tune: makes the copy fast in place.

    Raises:
        IncompatibleModel: a packed pass does not give what the model itself gives.
    """

    def __init__(
        self,
        model: Any,
        num_places: int,
        way: Callable[[], Hashable] = lambda: None,
        tune: Callable[[Any], None] = lambda model: None,
    ) -> None:
        self.pool, self._way, self._tune = Pool(num_places), way, tune
        self._source, self._made = model, way()
        self.model = self._twin()
        _check_same(model, self)
        self.pool = Pool(num_places)

    def open(self, sequence: seq.Sequence) -> bool:
        """See `Runner.open`."""
        way = self._way()
        if way != self._made:
            self._made = way
            self.model = self._twin()
        owner = (sequence.options.tenant, way)
        taken = self.pool.take(sequence.content, sequence.size, owner)
        if taken is None:
            return False
        sequence.place, sequence.done = taken
        sequence.reused = sequence.done
        return True

    def close(self, sequence: seq.Sequence, *, keep: bool) -> None:
        """See `Runner.close`."""
        self.pool.give_back(sequence.place, _filled(sequence) if keep else None)
        sequence.place = None

    def run(self, segments: Sequence[seq.Segment]) -> list[torch.Tensor | Exception]:
        """See `Runner.run`; where a pass fails, each is run alone, which writes the same places."""
        try:
            return [*self.forward(segments)]
        except Exception as error:  # of one of them; only alone can it be told whose
            if len(segments) == 1:
                return [error]
            return [result for segment in segments for result in self.run([segment])]

    @torch.inference_mode()
    def forward(self, segments: Sequence[seq.Segment]) -> list[torch.Tensor]:
        """One pass for all segments."""
        device = self.model.device
        ends = np.cumsum([s.count for s in segments])
        wanted = np.concatenate(
            [np.arange(end - s.num_logits, end) for s, end in zip(segments, ends, strict=True)]
        )
        positions = _side_by_side([_positions(segment) for segment in segments])
        output = self.model(
            inputs_embeds=self._embeds(segments), use_cache=False,
            position_ids=torch.from_numpy(positions).to(device)[..., None, :],
            logits_to_keep=torch.from_numpy(wanted).to(device),
            plan=plan_of(segments, self.pool, device),
        )  # fmt: skip
        for segment in segments:
            if segment.ids is None:
                sequence = segment.sequence
                sequence.place.content = sequence.content[: sequence.done + segment.count]
        return list(output.logits[0].float().split([s.num_logits for s in segments]))

    def used(self) -> float:
        """See `Runner.used`."""
        return self.pool.num_held / self.pool.num_places

    def capacity(self) -> int:
        """See `Runner.capacity`."""
        return self.pool.num_places

    def _twin(self) -> Any:
        """The model's modules anew, with the same weights, attention that packs, and tuned."""
        register()
        source = self._source
        shared: dict[int, Any] = {id(m.tally): m.tally for m in sparse_mlps(source)}
        shared |= {id(t): t for t in itertools.chain(source.parameters(), source.buffers())}
        twin = copy.deepcopy(source, shared)
        twin.config._attn_implementation = ATTENTION
        self._tune(twin)
        fuse(twin, lambda: self.probe(twin))
        return twin

    def probe(self, model: Any) -> torch.Tensor:
        """Logits of a short prompt, run with these modules in two passes on places of its own."""
        trial = copy.copy(self)
        trial.model, trial.pool = model, Pool(_PROBE_PLACES)
        return _run_probe(trial)

    def _embeds(self, segments: Sequence[seq.Segment]) -> torch.Tensor:
        """`[1, rows, hidden]`; the tokens of all answers are looked up at once."""
        ids = list(itertools.chain.from_iterable(s.ids or () for s in segments))
        device, found = self.model.device, iter(())
        if ids:
            embedding = self.model.get_input_embeddings()
            looked_up = embedding(torch.tensor(ids, device=device))
            found = iter(looked_up.split([len(s.ids) for s in segments if s.ids]))
        rows = [
            next(found) if s.ids else s.sequence.embeds[s.sequence.done : s.sequence.done + s.count]
            for s in segments
        ]
        return torch.cat(rows)[None]


class PlainRunner:
    """One segment after the other, with the cache that transformers makes for the model."""

    def __init__(self, model: Any, way: Callable[[], Hashable] = lambda: None) -> None:
        self.model, self._way = model, way
        self._kept: list[tuple[Hashable, np.ndarray, DynamicCache]] = []

    def open(self, sequence: seq.Sequence) -> bool:
        """See `Runner.open`."""
        owner = (sequence.options.tenant, self._way())
        alike = [
            (min(num_shared(content, sequence.content), sequence.length - 1), at)
            for at, (whose, content, _) in enumerate(self._kept)
            if whose == owner
        ]
        shared, at = max(alike, default=(0, 0))
        cache: DynamicCache | None = None
        if shared:
            _, content, cache = self._kept[at]
            if 2 * shared >= len(content):
                self._kept.pop(at)
            else:
                cache = copy.deepcopy(cache)
        if cache is None or not crop(cache, shared):
            cache, shared = DynamicCache(config=self.model.config), 0
            cache.activate_past_recording()  # so that sliding windows can be wound back
        sequence.place, sequence.done = (owner, cache), shared
        sequence.reused = shared
        return True

    def close(self, sequence: seq.Sequence, *, keep: bool) -> None:
        """See `Runner.close`."""
        if keep:
            owner, cache = sequence.place
            self._kept = [*self._kept[1 - NUM_KEPT :], (owner, _filled(sequence), cache)]
        sequence.place = None

    def run(self, segments: Sequence[seq.Segment]) -> list[torch.Tensor | Exception]:
        """See `Runner.run`."""
        return [self._try(segment) for segment in segments]

    def used(self) -> float:
        """See `Runner.used`."""
        return 0.0

    def capacity(self) -> int:
        """See `Runner.capacity`."""
        return 2**31

    def _try(self, segment: seq.Segment) -> torch.Tensor | Exception:
        try:
            return self._run_alternatives(segment) if segment.groups else self._run(segment)
        except Exception as error:  # this request's own
            return error

    def _run(self, segment: seq.Segment) -> torch.Tensor:
        sequence, cache = segment.sequence, segment.sequence.place[1]
        if segment.ids is None:
            embeds = sequence.embeds[sequence.done : sequence.done + segment.count]
        else:
            embeds = self._embeds(segment.ids)
        logits = self._step(embeds, cache, _positions(segment), max(segment.num_logits, 1))
        return logits[: segment.num_logits]

    def _run_alternatives(self, segment: seq.Segment) -> torch.Tensor:
        """Each alternative behind the prompt alone."""
        sequence, rows, at = segment.sequence, [], 0
        assert segment.ids is not None
        for count in segment.groups:
            cache = sequence.place[1]
            if not can_crop(cache):
                cache = copy.deepcopy(cache)
            embeds = self._embeds(segment.ids[at : at + count])
            own = _positions(segment)[..., at : at + count]
            rows.append(self._step(embeds, cache, own, count))
            at += count
            if cache is sequence.place[1]:
                crop(cache, sequence.done)
        return torch.cat(rows)

    def _embeds(self, ids: Sequence[int]) -> torch.Tensor:
        return self.model.get_input_embeddings()(torch.tensor(ids, device=self.model.device))

    def _step(
        self, embeds: torch.Tensor, cache: DynamicCache, positions: np.ndarray, num_logits: int
    ) -> torch.Tensor:
        output = self.model(
            inputs_embeds=embeds[None], past_key_values=cache, use_cache=True,
            position_ids=torch.from_numpy(positions).to(embeds.device)[..., None, :],
            logits_to_keep=num_logits,
        )  # fmt: skip
        return output.logits[0].float()


def _filled(sequence: seq.Sequence) -> np.ndarray:
    """What the positions of a sequence hold whose keys and values are there."""
    answer = np.array(sequence.tokens, np.int64)
    return np.concatenate([sequence.content, answer])[: sequence.done]


def _positions(segment: seq.Segment) -> np.ndarray:
    """Of a segment's rows, `[count]`, or `[3, count]` where its sequence turns in space."""
    done = segment.sequence.done
    groups = segment.groups or (segment.count,)
    in_a_row = np.concatenate([np.arange(done, done + count) for count in groups])
    return segment.sequence.turned(in_a_row)


def _side_by_side(positions: Sequence[np.ndarray]) -> np.ndarray:
    """Positions of several segments; those in a row are alike in all three where others are not."""
    if any(own.ndim == 2 for own in positions):
        positions = [np.broadcast_to(own, (3, own.shape[-1])) for own in positions]
    return np.concatenate(positions, -1)


def _check_same(model: Any, runner: PackedRunner) -> None:
    """Refuse a model whose packed passes give something else than the model itself.

    Told by its configuration where that is enough, else by trying: a prompt in two chunks and a
    token behind it.
    """
    if reason := why_not_packed(model):
        raise IncompatibleModel(reason)
    embeds = model.get_input_embeddings()(_probe_ids(model))
    turns = _probe_turns(model.config)
    given = {} if turns is None else {"position_ids": torch.from_numpy(turns)[:, None]}
    try:
        output = model(
            inputs_embeds=embeds[None], **{k: v.to(model.device) for k, v in given.items()}
        )
        wanted = output.logits[0, -1].float()
        found = runner.probe(runner.model)
    except (TypeError, AttributeError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise IncompatibleModel(
            f"{type(model).__name__} cannot be packed ({type(error).__name__}: {error})"
        ) from error
    worst = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
    if not worst <= _PROBE_TOLERANCE:
        raise IncompatibleModel(
            f"a packed pass of {type(model).__name__} differs by {worst:.1e} from the model's own"
        )


def _probe_ids(model: Any) -> torch.Tensor:
    return torch.arange(_PROBE_TOKENS, device=model.device) * 7 % model.config.vocab_size


def _probe_turns(config: Any) -> np.ndarray | None:
    """Positions of the probe where a model turns in space: they differ, and words go on behind them."""
    if not turns_in_space(config):
        return None
    turns = np.arange(_PROBE_TOKENS)[None] // np.array([[1], [2], [3]])
    turns[:, -1] = turns[:, :-1].max() + 1
    return turns


def _run_probe(runner: PackedRunner) -> torch.Tensor:
    """Logits after all ids: the first chunk beside another sequence, the last id as an answer."""
    ids = _probe_ids(runner.model).tolist()
    embeds = runner.model.get_input_embeddings()(_probe_ids(runner.model))
    options = GenerateOptions(max_new_tokens=2)
    content, turns = np.array(ids[:-1], np.int64), _probe_turns(runner.model.config)
    one, other = (
        seq.Sequence(
            options, embeds[:-1], content, bool, turns=None if turns is None else turns[:, :-1]
        )
        for _ in range(2)
    )
    for sequence in (one, other):
        runner.open(sequence)
    both = [seq.Segment(one, 4, 0), seq.Segment(other, 3, 0)]
    runner.forward(both)
    one.done, other.done = 4, 3
    runner.forward([seq.Segment(one, len(content) - 4, 1), seq.Segment(other, 2, 0)])
    one.done, other.done = len(content), 5
    return runner.forward([seq.Segment(other, 1, 0), seq.Segment(one, 1, 1, (ids[-1],))])[1][0]


def turns_in_space(config: Any) -> bool:
    """Whether positions have three rows, so that media lie in time, height and width (mrope)."""
    return "mrope_section" in (getattr(config, "rope_parameters", None) or {})


def why_not_packed(model: Any) -> str:
    """Why a model's configuration rules packed passes out; empty where it does not."""
    config, name = model.config, type(model).__name__
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    rope = getattr(config, "rope_parameters", None) or {}
    if kinds:
        return f"{name} has layers of {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{name} attends in a sliding window"
    if getattr(config, "kv_lora_rank", None):
        return f"{name} compresses its keys and values (MLA)"
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"{name} turns positions in a way of its own ({rope['rope_type']})"
    if not getattr(model, "_supports_attention_backend", False) or len(devices_of(model)) > 1:
        return f"{name} does not let its attention be chosen, or lies on several devices"
    return ""
