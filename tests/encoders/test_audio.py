"""Audio against Whisper's own feature extractor, FFmpeg's decoders and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.audio import (
    AudioTower,
    build_audio_tower,
    chunk_speech,
    load_speech,
    log_mel,
    num_audio_tokens,
    num_mel_frames,
    tower_from_config,
)
from encoders.errors import (
    IncompatibleModel,
    MissingInput,
    ModelNotFound,
    UnknownSpec,
    UnreadableAudio,
)
from tests import makers

FORMATS = {
    "wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus",
    "opus": "libopus", "m4a": "aac", "webm": "libopus",
}  # fmt: skip


def _encode(path: Path, codec: str, samples: np.ndarray, rate: int = 48000) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.repeat((samples * 32767).astype(np.int16), 2)[None], format="s16", layout="stereo"
        )
        frame.rate = rate
        fitted = av.AudioResampler(format=stream.format.name, layout="stereo", rate=rate,
                                   frame_size=stream.codec_context.frame_size or 0)  # fmt: skip
        for piece in [*fitted.resample(frame), *fitted.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("ending", FORMATS)
def test_every_usual_container_is_read_as_mono_16_khz(ending: str, tmp_path: Path) -> None:
    t = np.arange(48000) / 48000
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    path = tmp_path / f"tone.{ending}"
    _encode(path, FORMATS[ending], tone)
    speech = load_speech(path)
    assert speech.dtype == np.float32
    assert abs(len(speech) - 16000) < 1500  # lossy codecs pad their first and last frame
    middle = speech[4000:12000]
    peak = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle))))) * 16000 / len(middle)
    assert abs(peak - 440) < 3
    assert abs(np.abs(middle).max() - 0.5) < 0.05


def test_a_files_bytes_are_read_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tone.ogg"
    _encode(path, "libopus", 0.5 * np.sin(np.arange(48000) / 20))
    assert np.array_equal(load_speech(path.read_bytes()), load_speech(path))
    with pytest.raises(UnreadableAudio, match="the recording cannot be decoded"):
        load_speech(b"nothing to hear")


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.3, 2.0, 7.77])
def test_log_mel_equals_whispers_feature_extractor(num_mel_bins: int, seconds: float) -> None:
    from transformers import WhisperFeatureExtractor

    rng = np.random.default_rng(0)
    speech = (0.3 * rng.standard_normal(int(seconds * 16000))).astype(np.float32)
    theirs = WhisperFeatureExtractor(feature_size=num_mel_bins)(
        speech, sampling_rate=16000, padding=False, return_tensors="np"
    )["input_features"][0]
    ours = log_mel(speech, num_mel_bins).numpy()
    assert ours.shape == theirs.shape == (num_mel_bins, num_mel_frames(len(speech)))
    assert np.abs(ours - theirs).max() < 1e-4


@given(
    seconds=st.floats(0.05, 9.0),
    limit=st.floats(0.5, 4.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_chunks_joined_are_the_recording(seconds: float, limit: float, seed: int) -> None:
    speech = np.random.default_rng(seed).standard_normal(int(seconds * 16000)).astype(np.float32)
    chunks = chunk_speech(speech, limit)
    assert np.array_equal(np.concatenate([c for _, _, c in chunks]), speech)
    assert all(len(c) <= limit * 16000 for _, _, c in chunks)
    ends = [end for _, end, _ in chunks]
    starts = [start for start, _, _ in chunks]
    assert starts == [0.0, *ends[:-1]]


def test_a_long_recording_is_cut_in_its_pause() -> None:
    speech = np.full(16000 * 6, 0.5, np.float32)
    speech[int(16000 * 3.2) : int(16000 * 3.4)] = 0.0
    (_, first_end, _), *_ = chunk_speech(speech, 4.0)
    assert 3.2 <= first_end <= 3.4


def test_integers_stereo_and_other_rates_become_float_mono_16_khz() -> None:
    t = np.arange(44100) / 44100
    left = np.sin(2 * np.pi * 300 * t)
    stereo = (np.stack([left, np.zeros_like(left)], 1) * 32767).astype(np.int16)
    speech = load_speech(stereo, 44100)
    wanted = 0.5 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)
    assert len(speech) == 16000
    assert np.abs(speech[500:-500] - wanted[500:-500]).max() < 5e-3


@pytest.mark.parametrize(
    ("source", "rate", "words"),
    [
        (np.zeros(0, np.float32), 16000, "no sound"),
        (np.array([0.1, np.nan], np.float32), 16000, "NaN"),
        (np.zeros(8, np.float32), None, "rate_hz"),
        (np.zeros((2, 3, 4), np.float32), 16000, r"\[2, 3, 4\]"),
    ],
)
def test_unusable_samples_are_refused(source: np.ndarray, rate: int | None, words: str) -> None:
    with pytest.raises(UnreadableAudio, match=words):
        load_speech(source, rate)


def test_files_that_are_missing_or_no_sound_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"gone\.wav"):
        load_speech(tmp_path / "gone.wav")
    (tmp_path / "words.mp3").write_text("not a recording")
    with pytest.raises(UnreadableAudio, match=r"words\.mp3"):
        load_speech(tmp_path / "words.mp3")


def test_whisper_tower_gives_whispers_own_features(tmp_path: Path, speech: np.ndarray) -> None:
    from transformers import WhisperFeatureExtractor, WhisperModel

    makers.save_whisper(tmp_path)
    model = WhisperModel.from_pretrained(tmp_path).eval()
    tower = build_audio_tower(str(tmp_path)).eval()
    padded = WhisperFeatureExtractor(chunk_length=4)(
        speech, sampling_rate=16000, return_tensors="pt"
    )
    wanted = model.encoder(padded["input_features"]).last_hidden_state
    mel = log_mel(speech)
    ours = tower(mel[None])
    assert ours.shape == (1, (mel.shape[1] + 1) // 2, 16)
    # the last frame hears the recording's end mirrored, where Whisper's hears padding
    torch.testing.assert_close(ours[:, :-1], wanted[:, : ours.shape[1] - 1], atol=1e-4, rtol=1e-3)


def _small_tower(variable: bool) -> AudioTower:
    torch.manual_seed(0)
    arch = {
        "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "num_mel_bins": 80, "max_source_positions": 200,
    }  # fmt: skip
    return tower_from_config({"arch": arch, "variable_length": variable}).eval()


@pytest.mark.parametrize("variable", [True, False])
def test_a_batch_of_unequal_recordings_equals_each_alone(variable: bool) -> None:
    tower = _small_tower(variable)
    rng = np.random.default_rng(0)
    mels = [log_mel(rng.standard_normal(n).astype(np.float32)) for n in (16000, 30000, 7000)]
    lengths = torch.tensor([m.shape[1] for m in mels])
    longest = int(lengths.max())
    batch = torch.stack([torch.nn.functional.pad(m, (0, longest - m.shape[1])) for m in mels])
    together = tower(batch, lengths)
    for row, mel in zip(together, mels, strict=True):
        alone = tower(mel[None])[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_short_speech_does_not_pay_for_the_window() -> None:
    tower = _small_tower(variable=True)
    seen = []
    tower.encoder.layers[0].register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].shape[1])
    )
    tower(log_mel(np.zeros(8000, np.float32))[None])
    assert seen == [25]  # half a second: 50 frames, halved; the window would be 200


def test_sound_longer_than_the_window_is_refused() -> None:
    with pytest.raises(UnreadableAudio, match=r"5\.0 s .* window of 4 s"):
        _small_tower(variable=True)(torch.zeros(1, 80, 500))


@given(num=st.integers(1, 100_000), stack=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_token_count_follows_the_shapes(num: int, stack: int) -> None:
    frames = log_mel(np.zeros(num, np.float32)).shape[1]
    assert num_audio_tokens(num, stack) == -(-((frames + 1) // 2) // stack)


def test_bad_specs_are_refused_by_name(tmp_path: Path, tiny_backbone: Path) -> None:
    with pytest.raises(UnknownSpec, match="clap:music"):
        build_audio_tower("clap:music")
    with pytest.raises(ModelNotFound, match="whisper-none"):
        build_audio_tower("hf:nobody/whisper-none")
    with pytest.raises(IncompatibleModel, match="is a llama, not a Whisper"):
        build_audio_tower(str(tiny_backbone))
