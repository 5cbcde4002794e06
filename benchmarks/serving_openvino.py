"""OpenVINO GenAI's continuous batching as a peer of `benchmarks.serving`: the same weights, in float32.

Needs `pip install crossread[bench]`. A Llama of transformers becomes OpenVINO's own form here, with no
network and no other environment: its layers are traced over past keys and values, which then are made
the state that GenAI turns into its paged cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from benchmarks.serving import Clock, Job

SLOTS, STEP_TOKENS = 32, 256
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
    "KV_CACHE_PRECISION": "f32",  # else 8 bits
    "INFERENCE_NUM_THREADS": 1,
}


class _WithPast(nn.Module):
    """A Llama as GenAI wants it: past keys and values in, logits and all keys and values out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

        inner, (batch, num) = self.model.model, input_ids.shape
        x = inner.embed_tokens(input_ids)
        angles = inner.rotary_emb(x, position_ids)
        total = attention_mask.shape[1]
        behind = torch.arange(total)[None] <= torch.arange(total - num, total)[:, None]
        mask = behind[None, None] & attention_mask[:, None, None].bool()
        present = []
        for at, layer in enumerate(inner.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(x)
            query, key, value = (
                project(normed).view(batch, num, -1, attention.head_dim).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, *angles)
            key, value = torch.cat([past[2 * at], key], 2), torch.cat([past[2 * at + 1], value], 2)
            present += [key, value]
            groups = attention.num_key_value_groups
            done = scaled_dot_product_attention(
                query, repeat_kv(key, groups), repeat_kv(value, groups), mask
            )
            x = x + attention.o_proj(done.transpose(1, 2).reshape(batch, num, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.lm_head(inner.norm(x)), *present


def openvino_continuous(model: Any, jobs: list[Job]) -> None:
    """Run the jobs, all at once."""
    from benchmarks.serving import Clock

    with tempfile.TemporaryDirectory() as folder:
        _export(model, Path(folder))
        pipe = _pipe(Path(folder))
        _run(pipe, jobs, Clock())


def _run(pipe: Any, jobs: list[Job], clock: Clock) -> None:
    import openvino
    import openvino_genai

    left = {}
    for number, job in enumerate(jobs):
        config = openvino_genai.GenerationConfig(
            max_new_tokens=job.num_new, min_new_tokens=job.num_new, ignore_eos=True, do_sample=False
        )
        prompt = openvino.Tensor(np.array([job.prompt], np.int64))
        left[pipe.add_request(number, prompt, config)] = job
    while left:
        pipe.step()
        for handle, job in list(left.items()):
            while handle.can_read():
                for output in handle.read().values():
                    job.tokens += output.generated_ids
                    job.first_s = job.first_s or clock.now()
            if len(job.tokens) >= job.num_new:
                job.done_s = clock.now()
                del left[handle]


def _pipe(folder: Path) -> Any:
    import openvino_genai

    config = openvino_genai.SchedulerConfig()
    config.max_num_seqs, config.max_num_batched_tokens = SLOTS, STEP_TOKENS
    config.enable_prefix_caching, config.cache_size = False, 1
    return openvino_genai.ContinuousBatchingPipeline(folder, config, "CPU", EXACT)


@torch.no_grad()
def _export(model: Any, folder: Path) -> None:
    import openvino
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    config = model.config
    heads, dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    example = {
        "input_ids": torch.ones(2, 5, dtype=torch.int64),
        "attention_mask": torch.ones(2, 8, dtype=torch.int64),
        "position_ids": torch.arange(3, 8).repeat(2, 1),
        "past": [torch.zeros(2, heads, 3, dim)] * (2 * config.num_hidden_layers),
    }
    made = openvino.convert_model(_WithPast(model), example_input=example)
    for port, name in zip(made.inputs, list(example)[:3], strict=False):
        port.get_tensor().set_names({name})
    made.outputs[0].get_tensor().set_names({"logits"})
    beam = ops.parameter(openvino.PartialShape([-1]), openvino.Type.i32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    pairs = {}
    for number, (past, present) in enumerate(zip(made.inputs[3:], made.outputs[1:], strict=True)):
        names = (f"past_key_values.{number}", f"present.{number}")
        past.get_tensor().set_names({names[0]})
        present.get_tensor().set_names({names[1]})
        pairs[names[0]] = names[1]
        users = list(past.get_target_inputs())
        picked = ops.gather(past, beam, ops.constant(np.int64(0)))
        for user in users:
            user.replace_source_output(picked.output(0))
    made.add_parameters([beam])
    made.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(made, pairs)
    _begin_empty(made, heads, dim)
    openvino.save_model(made, folder / "openvino_model.xml", compress_to_fp16=False)
    _save_tokenizer(folder, config.vocab_size)


def _begin_empty(made: Any, heads: int, dim: int) -> None:
    """States of no positions, as many as the batch has rows."""
    from openvino import opset13 as ops

    shape = ops.shape_of(made.input("input_ids"), output_type="i64")
    batch = ops.gather(shape, ops.constant(np.array([0])), ops.constant(np.int64(0)))
    rest = [ops.constant(np.array([size])) for size in (heads, 0, dim)]
    for node in made.get_ops():
        if node.get_type_name() == "ReadValue":
            empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, *rest], 0))
            node.set_arguments([empty])
    made.validate_nodes_and_infer_types()


def _save_tokenizer(folder: Path, size: int) -> None:
    """GenAI loads no model without one, though the jobs are token ids."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{at}": at for at in range(size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", unk_token="w0")
    names = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
    for part, name in zip(convert_tokenizer(fast, with_detokenizer=True), names, strict=True):
        openvino.save_model(part, folder / name)
