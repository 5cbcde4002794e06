"""Answers that fulfil a JSON schema: which tokens may come next, by llguidance.

A tokenizer and schemas in, `Constraint`s of the engine out. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from encoders.errors import IncompatibleModel, InvalidMessage

_NUM_SCHEMAS = 32  # compiled ones that are kept


class Grammars:
    """Constraints for one tokenizer.

    Args:
        tokenizer: a fast tokenizer.
        num_logits: size of the model's vocabulary, which may be larger than the tokenizer's.
        ends: tokens that end an answer.

    Attributes:
        possible: whether the tokenizer's tokens can be told as bytes.
    """

    def __init__(self, tokenizer: Any, num_logits: int, ends: Iterable[int]) -> None:
        from llguidance.hf import from_tokenizer

        self._why_not = ""
        try:
            self._tokenizer = from_tokenizer(tokenizer, n_vocab=num_logits, eos_token=list(ends))
        except ValueError as error:
            self._why_not = str(error)
        self.possible = not self._why_not
        self._compiled = lru_cache(_NUM_SCHEMAS)(self._compile)

    def json(self, schema: str) -> JsonConstraint:
        """A constraint to answers that fulfil this schema.

        Raises:
            IncompatibleModel: the model's tokenizer allows no schema.
            InvalidMessage: no JSON schema, or one that asks for what cannot be enforced.
        """
        if self._why_not:
            raise IncompatibleModel(
                f"json_schema cannot be honoured with this model's tokenizer ({self._why_not})"
            )
        return JsonConstraint(self._compiled(schema).deep_copy())

    def _compile(self, schema: str) -> Any:
        from llguidance import LLMatcher

        # without free white space, which a model may go on with for ever
        compact: Any = {"whitespace_flexible": False}
        grammar = LLMatcher.grammar_from_json_schema(schema, compact)
        if reason := LLMatcher.validate_grammar(grammar, self._tokenizer):
            raise InvalidMessage(f"json_schema cannot be used: {reason.splitlines()[0]}")
        return LLMatcher(self._tokenizer, grammar)


class JsonConstraint:
    """What may come next of one answer."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self) -> torch.Tensor:
        """Bool `[vocabulary]`: the tokens that can still lead to a whole answer."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little").astype(bool))

    def advance(self, token: int) -> None:
        """Take a token of the answer.

        Raises:
            InvalidMessage: it was not allowed.
        """
        if not self._matcher.consume_token(token):
            raise InvalidMessage(f"the answer left its json_schema: {self._matcher.get_error()}")
