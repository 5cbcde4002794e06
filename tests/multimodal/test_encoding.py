"""The cache of encoded media: by whole content, for one tenant, within its bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from multimodal.encoding import MediaEncoder, medium_digest
from multimodal.processing import Medium
from multimodal.training.corpus import to_volume
from multimodal.training.demo_model import build_demo
from multimodal.training.world.worlds import WORLDS


def _picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)


@pytest.fixture
def encoder(tiny_composite: Any) -> Any:
    encoder = MediaEncoder(*tiny_composite)
    yield encoder
    encoder.close()


def test_a_hundred_thousand_near_duplicates_have_digests_of_their_own() -> None:
    """S8: one bit of one value differs, at every place of many pictures; or a type or shape alone."""
    pixels = torch.rand(1, 3, 8, 8)
    medium = Medium("image", "", (), pixels, torch.zeros(1, 11))
    bits = pixels.numpy().view(np.int32).reshape(-1)  # of the very pixels
    seen, num_pairs = set(), 0
    for seed in range(531):
        pixels.copy_(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
        seen.add(medium_digest(medium))
        for place in range(len(bits)):
            bits[place] ^= 1
            seen.add(medium_digest(medium))
            bits[place] ^= 1
            num_pairs += 1
    assert num_pairs >= 100_000
    assert len(seen) == num_pairs + 531
    pixels = torch.rand(1, 3, 32, 32)
    medium = replace(medium, pixels=pixels)
    seen = {medium_digest(medium)}
    seen.add(medium_digest(replace(medium, pixels=pixels.view(1, 3, 16, 64))))
    seen.add(medium_digest(replace(medium, pixels=pixels.view(torch.int32))))
    seen.add(medium_digest(replace(medium, kind="video")))
    seen.add(medium_digest(replace(medium, geometry=torch.ones(1, 11))))
    assert len(seen) == 5


def test_what_is_seen_again_is_not_encoded_again_and_others_are(encoder: MediaEncoder) -> None:
    first, new = encoder.encode([("image", _picture(0)), ("image", _picture(1))])
    again, none = encoder.encode([("image", _picture(1)), ("image", _picture(0))])
    assert (new, none) == (2, 0)
    assert again == first[::-1]
    changed = _picture(0)
    changed[3, 3, 0] ^= 1
    assert encoder.encode([("image", changed)])[1] == 1
    assert encoder.encode([("image", _picture(0))], tenant="other")[1] == 1


def test_what_has_the_digest_but_not_the_shape_of_another_is_encoded_and_counts_as_no_hit(
    encoder: MediaEncoder, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multimodal.encoding.medium_digest", lambda medium: "the same")
    spent = [encoder.encode([("audio", (speech[: 8000 * n], 16000))])[1] for n in (1, 2, 2)]
    assert spent == [1, 1, 0]
    totals = encoder.measures.told().totals
    assert totals["encoder_cache_queries", "audio"] == 3
    assert totals["encoder_cache_hits", "audio"] == 1


def test_changed_weights_encode_anew(tiny_composite: Any) -> None:
    model, processor = tiny_composite
    encoder = MediaEncoder(model, processor)
    (before,), _ = encoder.encode([("image", _picture(0))])
    weight = model.vision_projector.state_dict()
    name = next(iter(weight))
    parameter = dict(model.vision_projector.named_parameters())[name]
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.mul_(2)
    (after,), new = encoder.encode([("image", _picture(0))])
    with torch.no_grad():
        parameter.copy_(kept)
    assert new == 1
    assert not torch.equal(before.embeds, after.embeds)
    encoder.close()


def test_the_longest_unused_go_first_when_the_bytes_are_used_up(tiny_composite: Any) -> None:
    probe = MediaEncoder(*tiny_composite)
    each = probe.encode([("image", _picture(0))])[0][0].num_bytes
    probe.close()
    encoder = MediaEncoder(*tiny_composite, budget_bytes=3 * each + each // 2)
    for seed in (0, 1, 2, 0, 3):  # 1 is now the longest unused, and out
        encoder.encode([("image", _picture(seed))])
    assert [encoder.encode([("image", _picture(s))])[1] for s in (0, 2, 3)] == [0, 0, 0]
    assert encoder.encode([("image", _picture(1))])[1] == 1
    encoder.close()


def test_a_batch_across_requests_gives_what_each_gives_alone(
    encoder: MediaEncoder, tiny_composite: Any, speech: np.ndarray
) -> None:
    """Jobs that wait together are encoded together: pictures with pictures, sound with sound."""
    parts = [("image", _picture(i)) for i in range(5)]
    parts += [("audio", (speech[: 8000 * (i + 1)], 16000)) for i in range(3)]  # type: ignore[misc]
    together, _ = encoder.encode(parts)
    sizes = encoder.measures.told().spreads["encoder_batch_size", ""]
    assert sizes.count < sizes.total == len(parts)
    for part, found in zip(parts, together, strict=True):
        alone = MediaEncoder(*tiny_composite)
        (wanted,), _ = alone.encode([part])
        assert torch.allclose(found.embeds, wanted.embeds, atol=1e-5)
        alone.close()


def test_studies_encoded_together_do_not_lie_beside_each_other() -> None:
    """A tower that sees the pictures before and after one: those of its own study."""
    body = WORLDS["body"]
    model, processor = build_demo(body)
    drawn = [body.draw(np.random.default_rng(seed), 8.0, False).rendered for seed in (1, 2)]
    encoder = MediaEncoder(model, processor)
    together, _ = encoder.encode([("dicom", to_volume(of)) for of in drawn])
    encoder.close()
    assert processor.prepare("dicom", to_volume(drawn[0])).pixels.shape[1] == 5
    for of, found in zip(drawn, together, strict=True):
        alone = MediaEncoder(model, processor)
        (wanted,), _ = alone.encode([("dicom", to_volume(of))])
        alone.close()
        assert torch.allclose(found.features, wanted.features, atol=1e-4)


def test_one_that_cannot_be_encoded_fails_alone(
    encoder: MediaEncoder, tiny_composite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_composite
    plain = model.encode_images

    def breaks(pixels: torch.Tensor) -> torch.Tensor:
        if bool((pixels.amin((2, 3)) == pixels.amax((2, 3))).all(1).any()):
            raise RuntimeError("an even grey breaks this tower")
        return plain(pixels)

    monkeypatch.setattr(model, "encode_images", breaks)
    grey = np.full((40, 40, 3), 0, np.uint8)
    waiting = [encoder._ask("image", p, "", 0)[0] for p in (_picture(7), _picture(8))]
    with pytest.raises(RuntimeError, match="even grey"):
        encoder.encode([("image", _picture(9)), ("image", grey)])
    assert all(found.result().embeds.isfinite().all() for found in waiting)
    assert encoder.encode([("image", _picture(9))])[1] == 0


def test_no_thread_is_left_when_closing_returns(tiny_composite: Any) -> None:
    """One that was still leaving torch while the interpreter went aborted the process."""
    encoder = MediaEncoder(*tiny_composite)
    encoder.encode([("image", _picture(0))])
    thread = encoder._thread
    assert thread is not None
    encoder.close()
    assert not thread.is_alive()
