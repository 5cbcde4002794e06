"""Dictation by espeak-ng: several voices, rates and pitches, a microphone's filter and room noise."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave

import numpy as np

from encoders.audio import load_speech
from encoders.errors import MissingInput
from multimodal.training.world.wording import Language

VOICES: dict[Language, tuple[str, ...]] = {
    "en": ("en-us", "en-gb", "en-us+m3", "en-us+f2", "en-gb+m7", "en-gb+f4", "en-us+m1", "en-gb+f1"),
    "zh": ("cmn", "cmn+m3", "cmn+f2", "cmn+m7", "cmn+f4", "cmn+m1"),
}  # fmt: skip
HELD_OUT_VOICES: dict[Language, tuple[str, ...]] = {  # never trained on
    "en": ("en-us+f3", "en-gb+m4"),
    "zh": ("cmn+f3", "cmn+m4"),
}


def synthesise(
    text: str, voice: str, rng: np.random.Generator, *, microphone: bool = False
) -> np.ndarray:
    """Speak a sentence: float32 mono 16 kHz; `microphone` narrows its band and adds room noise.

    Raises:
        MissingInput: espeak-ng is not installed.
    """
    if shutil.which("espeak-ng") is None:
        raise MissingInput("espeak-ng is not installed; on Debian: apt-get install espeak-ng")
    rate, pitch = int(rng.integers(140, 195)), int(rng.integers(35, 65))
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(rate), "-p", str(pitch), text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as recording:
        rate_hz = recording.getframerate()
        samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
    speech = load_speech(samples, rate_hz)
    if microphone:  # who dictates does not begin at once
        speech = np.pad(speech, (int(rng.integers(0, 16000)), int(rng.integers(0, 16000))))
    heard = _room(speech, rng)
    return _microphone(heard, rng) if microphone else heard


def _room(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A little silence around, one echo, hiss, and a gain."""
    speech = np.pad(speech, (int(rng.integers(800, 4000)), int(rng.integers(800, 4000))))
    delay = int(rng.integers(80, 900))
    echo = np.concatenate([np.zeros(delay, np.float32), speech[:-delay]])
    noise = rng.standard_normal(len(speech)).astype(np.float32)
    level = rng.uniform(0.0, 0.25)
    mixed = speech + level * echo + rng.uniform(0.0005, 0.008) * noise
    return (mixed * rng.uniform(0.4, 1.1)).astype(np.float32)


def _microphone(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A band-pass between a good desk microphone and a telephone, and the hum of a room."""
    from scipy.signal import butter, sosfilt

    low, high = rng.uniform(60, 280), rng.uniform(3600, 7400)
    band = butter(2, [low, high], "bandpass", fs=16000, output="sos")
    rumble = np.cumsum(rng.standard_normal(len(speech)))
    rumble -= np.linspace(rumble[0], rumble[-1], len(rumble))
    hum = np.sin(2 * np.pi * 50.0 * np.arange(len(speech)) / 16000 + rng.uniform(0, 6))
    noise = 0.5 * rumble / (np.abs(rumble).max() + 1e-9) + 0.3 * hum
    return sosfilt(band, speech + rng.uniform(0, 0.02) * noise).astype(np.float32)
