"""Speech in, features out: any recording -> mono 16 kHz -> log-mel -> a Whisper-style encoder.

The mel arithmetic is Whisper's (Radford et al. 2022, arXiv 2212.04356, section 2.2). A recording
longer than the tower's window is cut at its quietest places: nothing is lost, nothing repeated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from encoders.errors import (
    IncompatibleModel,
    MissingInput,
    ModelNotFound,
    UnknownSpec,
    UnreadableAudio,
)

RATE_HZ = 16000
_N_FFT, _HOP = 400, 160
FRAMES_PER_SECOND = RATE_HZ // _HOP


def load_speech(source: Path | str | bytes | np.ndarray, rate_hz: int | None = None) -> np.ndarray:
    """A recording as float32 mono 16 kHz samples `[n]`.

    Args:
        source: a file that FFmpeg reads (wav, flac, mp3, ogg, m4a, webm, ...) or its bytes, or
            samples `[n]`, `[n, channels]` or `[channels, n]`, integers of full scale or floats
            within -1..1.
        rate_hz: of an array; a file knows its own.

    Raises:
        MissingInput: no such file.
        UnreadableAudio: not audio, empty, or non-finite samples.
    """
    if isinstance(source, np.ndarray):
        name = "the recording"
        samples = _from_array(source, rate_hz)
    elif isinstance(source, bytes):
        name = "the recording"
        samples = _decoded(BytesIO(source), name)
    else:
        path = Path(source)
        name = repr(path.name)
        if not path.is_file():
            raise MissingInput(f"recording {name} does not exist; check the path")
        samples = _decoded(str(path), name)
    if samples.size == 0:
        raise UnreadableAudio(f"{name} holds no sound; record it again")
    if not np.isfinite(samples).all():
        raise UnreadableAudio(f"{name} holds NaN or infinite samples; export it again")
    return samples


def _from_array(samples: np.ndarray, rate_hz: int | None) -> np.ndarray:
    from torchaudio.functional import resample

    if rate_hz is None or rate_hz <= 0:
        raise UnreadableAudio("an array of samples needs its rate: pass rate_hz, e.g. 44100")
    if samples.ndim > 2 or (samples.ndim == 2 and min(samples.shape) > 8):
        raise UnreadableAudio(f"samples must be [n] or [n, channels], not {list(samples.shape)}")
    scale = 1.0
    if np.issubdtype(samples.dtype, np.integer):
        scale = 1.0 / (np.iinfo(samples.dtype).max + 1.0)
    values = samples.astype(np.float32) * np.float32(scale)
    if values.ndim == 2:
        values = values.mean(int(np.argmin(values.shape)))
    if rate_hz == RATE_HZ or values.size == 0:
        return values
    return resample(torch.from_numpy(values), rate_hz, RATE_HZ).numpy()


def _decoded(file: str | BytesIO, name: str) -> np.ndarray:
    import av

    try:
        with av.open(file, mode="r") as container:
            if not container.streams.audio:
                raise UnreadableAudio(f"{name} has no sound track; give a recording")
            # channels are averaged here: FFmpeg's own downmix would raise the level by 3 dB
            resampler = av.AudioResampler(format="fltp", rate=RATE_HZ)
            pieces = [
                out.to_ndarray().mean(0)
                for frame in [*container.decode(audio=0), None]
                for out in resampler.resample(frame)
            ]
    except (av.FFmpegError, ValueError) as error:
        raise UnreadableAudio(
            f"{name} cannot be decoded as audio ({type(error).__name__});"
            " convert it to WAV and try again"
        ) from error
    return np.concatenate(pieces).astype(np.float32) if pieces else np.zeros(0, np.float32)


@functools.lru_cache(maxsize=4)
def _mel_filters(num_mel_bins: int) -> torch.Tensor:
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(
        _N_FFT // 2 + 1, 0.0, RATE_HZ / 2, num_mel_bins, RATE_HZ, norm="slaney", mel_scale="slaney"
    )


def num_mel_frames(num_samples: int) -> int:
    """Frames that `log_mel` makes of this many samples."""
    return max(num_samples // _HOP, 1)


def log_mel(samples: np.ndarray, num_mel_bins: int = 80) -> torch.Tensor:
    """Whisper's log-mel spectrogram of 16 kHz samples `[n]`: `[mel, n // 160]`."""
    wave = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    if len(wave) <= _N_FFT // 2:  # the reflection at the edges needs more than half a window
        wave = nn.functional.pad(wave, (0, _N_FFT // 2 + 1 - len(wave)))
    spectrum = torch.stft(wave, _N_FFT, _HOP, window=torch.hann_window(_N_FFT), return_complex=True)
    power = spectrum[:, : num_mel_frames(len(samples))].abs().square()
    log_spec = (_mel_filters(num_mel_bins).T @ power).clamp(min=1e-10).log10()
    return (torch.maximum(log_spec, log_spec.max() - 8.0) + 4.0) / 4.0


def chunk_speech(samples: np.ndarray, max_seconds: float) -> list[tuple[float, float, np.ndarray]]:
    """Cut a recording into (start_s, end_s, samples) no longer than `max_seconds`.

    Each cut is made where the last third of the window is quietest, so words stay whole. The
    pieces joined are the recording.
    """
    limit = int(max_seconds * RATE_HZ)
    pieces, start = [], 0
    while len(samples) - start > limit:
        cut = start + _quietest(samples[start : start + limit], 2 * limit // 3)
        pieces.append((start, cut))
        start = cut
    pieces.append((start, len(samples)))
    return [(a / RATE_HZ, b / RATE_HZ, samples[a:b]) for a, b in pieces]


def find_phrases(samples: np.ndarray, pause_s: float = 0.5) -> list[tuple[int, int]]:
    """Where someone speaks: (start, stop) samples between pauses, a tenth of a second around each.

    Loud is what is above a hundredth of full scale and a tenth of the loudest 20 ms.
    """
    frame, margin = RATE_HZ // 50, RATE_HZ // 10
    num_frames = len(samples) // frame
    cut = samples[: num_frames * frame].reshape(num_frames, frame).astype(np.float64)
    level = np.sqrt(np.square(cut).mean(1))
    loud = np.flatnonzero(level > max(0.01, 0.1 * level.max(initial=0.0)))
    if len(loud) == 0:
        return []
    ends = np.flatnonzero(np.diff(loud) > pause_s * 50)
    firsts, lasts = loud[np.r_[0, ends + 1]], loud[np.r_[ends, len(loud) - 1]]
    spans = zip((firsts * frame).tolist(), ((lasts + 1) * frame).tolist(), strict=True)
    return [(max(a - margin, 0), min(b + margin, len(samples))) for a, b in spans]


def _quietest(window: np.ndarray, earliest: int) -> int:
    """The sample from `earliest` on around which a tenth of a second holds the least energy."""
    width = RATE_HZ // 10
    energy = np.concatenate([[0.0], np.cumsum(np.square(window, dtype=np.float64))])
    stop = len(window)
    centres = np.arange(earliest, stop)
    low, high = np.maximum(centres - width // 2, 0), np.minimum(centres + width // 2, stop)
    mean = (energy[high] - energy[low]) / (high - low)
    return max(int(centres[int(mean.argmin())]), 1)


class AudioTower(nn.Module):
    """A Whisper encoder and what it takes to feed it.

    Attributes:
        width: features per frame.
        window_seconds: the longest stretch it takes at once.
        variable_length: whether shorter stretches run unpadded (a tower trained so), instead of
            being filled up to the window with silence as Whisper expects.
    """

    def __init__(self, encoder: nn.Module, *, variable_length: bool = False) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.variable_length = variable_length
        config: Any = encoder.config
        self.width: int = config.d_model
        self.num_mel_bins: int = config.num_mel_bins
        self.window_frames: int = 2 * config.max_source_positions
        self.window_seconds = self.window_frames / FRAMES_PER_SECOND

    def to_dict(self) -> dict[str, Any]:
        """All that `tower_from_config` needs to rebuild this tower without weights."""
        return {
            "arch": self.encoder.config.to_dict(),
            "variable_length": self.variable_length,
            "width": self.width,
            "window_seconds": self.window_seconds,
            "num_mel_bins": self.num_mel_bins,
        }

    def forward(self, mel: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Log-mel `[N, mel, frames]` -> `[N, ceil(frames / 2), width]`.

        `lengths [N]` tells the frames of each that are sound; what lies beyond does not change
        the result of a variable-length tower.

        Raises:
            UnreadableAudio: longer than the window.
        """
        frames = mel.shape[-1]
        if frames > self.window_frames:
            raise UnreadableAudio(
                f"{frames / FRAMES_PER_SECOND:.1f} s of sound exceed this tower's window of"
                f" {self.window_seconds:.0f} s; cut it with chunk_speech first"
            )
        if self.variable_length:
            return self._unpadded(mel, lengths)
        if lengths is not None:  # beyond each recording lies silence: the mel floor, as in Whisper
            floor = mel.new_tensor(
                [m[:, : int(n)].max() for m, n in zip(mel, lengths, strict=True)]
            )
            beyond = torch.arange(frames, device=mel.device) >= lengths[:, None].to(mel.device)
            mel = torch.where(beyond[:, None], (floor - 2.0)[:, None, None], mel)
        filled = torch.cat(
            [mel, (mel.amax((1, 2), keepdim=True) - 2.0).expand(
                -1, mel.shape[1], self.window_frames - frames)], dim=2
        )  # fmt: skip
        return self.encoder(filled).last_hidden_state[:, : (frames + 1) // 2]

    def _unpadded(self, mel: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        encoder, gelu = self.encoder, nn.functional.gelu
        mask = None
        if lengths is None or bool((lengths == mel.shape[-1]).all()):
            hidden = gelu(encoder.conv2(gelu(encoder.conv1(mel))))
        else:
            sound = self._before(lengths, mel.shape[-1], mel)
            hidden = gelu(encoder.conv1(mel * sound[:, None])) * sound[:, None]
            hidden = gelu(encoder.conv2(hidden))
            kept = self._before((lengths + 1) // 2, hidden.shape[-1], mel).bool()
            mask = torch.zeros(kept.shape, dtype=mel.dtype, device=mel.device)
            mask = mask.masked_fill(~kept, torch.finfo(mel.dtype).min)[:, None, None, :]
        hidden = hidden.transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        if mask is not None:
            mask = mask.expand(-1, 1, hidden.shape[1], -1)
        for layer in encoder.layers:
            hidden = layer(hidden, mask)
        return encoder.layer_norm(hidden)

    @staticmethod
    def _before(lengths: torch.Tensor, size: int, like: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(size, device=like.device)
        return (steps < lengths[:, None].to(like.device)).to(like.dtype)


def build_audio_tower(spec: str) -> AudioTower:
    """A tower with its weights from a Whisper checkpoint: `hf:NAME`, `NAME` or a local folder.

    Raises:
        UnknownSpec: an empty spec or another library's.
        ModelNotFound: the checkpoint cannot be had.
        IncompatibleModel: the checkpoint is no Whisper.
    """
    from transformers import AutoConfig, WhisperModel

    name = spec.removeprefix("hf:")
    if not name or (":" in name and not Path(name).exists()):
        raise UnknownSpec(f"unknown audio spec {spec!r}; use 'hf:openai/whisper-small' or a folder")
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "whisper":
            raise IncompatibleModel(
                f"{Path(name).name!r} is a {config.model_type}, not a Whisper; give a Whisper model"
            )
        model = WhisperModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"audio model {Path(name).name!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    return AudioTower(model.encoder)


def tower_from_config(config: Mapping[str, Any]) -> AudioTower:
    """A tower with random weights from what `AudioTower.to_dict` wrote."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    arch = {k: v for k, v in config["arch"].items() if k != "model_type"}
    encoder = WhisperEncoder(WhisperConfig(**arch))
    return AudioTower(encoder, variable_length=config["variable_length"])


def num_audio_tokens(num_samples: int, stack: int) -> int:
    """Prompt tokens for this many samples: mel frames, halved by the encoder, `stack` to one."""
    return math.ceil(((num_mel_frames(num_samples) + 1) // 2) / stack)
