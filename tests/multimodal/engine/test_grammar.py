"""Answers under a JSON schema, from a random model: always valid, checked by jsonschema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders.errors import IncompatibleModel, InvalidMessage
from multimodal.backends import GenerateOptions, collect
from multimodal.engine.grammar import Grammars
from multimodal.engine.sampling import pick
from multimodal.engine.sequence import Sequence
from multimodal.local import LocalBackend
from multimodal.messages import user

DEMO = Path(__file__).parents[3] / "multimodal" / "demo"
SCHEMA = {
    "type": "object",
    "properties": {
        "agrees": {"enum": ["yes", "no"]},
        "size_mm": {"type": "integer", "minimum": 0, "maximum": 300},
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
        "names": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["agrees", "size_mm", "names"],
    "additionalProperties": False,
}
FINITE = {
    **SCHEMA,
    "properties": {k: v for k, v in SCHEMA["properties"].items() if k != "probability"},
}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


def test_a_thousand_answers_from_random_logits_all_fulfil_the_schema(tokenizer: Any) -> None:
    """S11."""
    jsonschema = pytest.importorskip("jsonschema")
    size, end = len(tokenizer), tokenizer.eos_token_id
    grammars = Grammars(tokenizer, size + 7, [end])
    chance = torch.Generator().manual_seed(0)
    rows = []
    for seed in range(1000):
        # the greatest of random logits is drawn evenly already; some are drawn once more
        options = GenerateOptions(temperature=float(seed % 20 == 0), seed=seed)
        sequence = Sequence(options, torch.zeros(1, 1), np.zeros(1, np.int64), bool)
        sequence.constraint = grammars.json(json.dumps(SCHEMA))
        rows.append(sequence)
    going = list(rows)
    while going:
        logits = torch.randn(len(going), size + 7, generator=chance) * 3
        still = []
        for sequence, picked in zip(going, pick(logits, going), strict=True):
            if picked.token != end:
                sequence.tokens.append(picked.token)
                sequence.constraint.advance(picked.token)
                still.append(sequence)
        going = still
    schema = jsonschema.Draft202012Validator(SCHEMA)
    for sequence in rows:
        text = tokenizer.decode(sequence.tokens, skip_special_tokens=True)
        schema.validate(json.loads(text))


def test_the_demo_answers_by_a_schema_beside_one_who_does_not(tokenizer: Any) -> None:
    backend = LocalBackend.from_pretrained(DEMO, device="cpu")
    free = collect(
        backend.generate([user("List the findings.")], GenerateOptions(max_new_tokens=8))
    )
    options = GenerateOptions(max_new_tokens=120, json_schema=json.dumps(FINITE))
    under = [backend.generate([user("List the findings.")], options) for _ in range(3)]
    beside = backend.generate([user("List the findings.")], GenerateOptions(max_new_tokens=8))
    for answer in map(collect, under):
        assert answer.reason == "stop"
        assert set(json.loads(answer.text)) == {"agrees", "size_mm", "names"}
    assert collect(beside).text == free.text
    with pytest.raises(InvalidMessage, match=r"json_schema cannot be used: .*nonsense"):
        backend.generate([user("?")], GenerateOptions(json_schema='{"type": "nonsense"}'))
    with pytest.raises(InvalidMessage, match="json_schema cannot be used"):
        backend.estimate([user("?")], GenerateOptions(json_schema='{"type": "nonsense"}'))
    backend.close()


def test_a_tokenizer_of_whole_words_is_refused_by_the_options_name(tiny_composite: Any) -> None:
    backend = LocalBackend(*tiny_composite)
    with pytest.raises(IncompatibleModel, match="json_schema cannot be honoured"):
        backend.generate([user("list")], GenerateOptions(json_schema="{}"))
