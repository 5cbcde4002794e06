"""Fixtures of every room: real DICOM where it lies, tiny checkpoints of the real classes, phantoms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from tests import makers

ROOT = Path(__file__).parent.parent
settings.register_profile("crossread", deadline=None)  # time never decides a test
settings.load_profile("crossread")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded DICOM with references, outside the repository (see CONTRIBUTING.md)."""
    folder = Path(os.environ.get("CROSSREAD_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "MANIFEST.md").is_file():
        pytest.skip("needs the recorded DICOM files of ../shared/data")
    return folder


@pytest.fixture(scope="session")
def phantom_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT series of 24 slices 4 mm apart, 64 x 48 pixels, asymmetric in every direction."""
    folder = tmp_path_factory.mktemp("phantom")
    makers.write_blocks(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with its tokenizer, saved as on the Hub."""
    return makers.save_backbone("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_composite(tmp_path_factory: pytest.TempPathFactory):
    """A random composite with sight and hearing, and its processor."""
    return makers.tiny_composite(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def speech() -> np.ndarray:
    """Two seconds of a rising tone with pauses, float32 16 kHz."""
    t = np.arange(32000) / 16000
    tone = 0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t)
    return (tone * (np.sin(2 * np.pi * 2 * t) > -0.5)).astype(np.float32)


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running Orthanc; see `tests.archive`."""
    from tests.archive import running_orthanc

    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as archive:
        yield archive


@pytest.fixture(scope="session")
def stored(orthanc: Any, phantom_series: Path) -> str:
    """The address of the phantom's study, stored in Orthanc by STOW-RS."""
    import pydicom

    from encoders.dicom.remote import store

    files = sorted(phantom_series.iterdir())
    assert store(orthanc.base, files, orthanc.access) == len(files)
    return f"{orthanc.base}/studies/{pydicom.dcmread(files[0]).StudyInstanceUID}"


@pytest.fixture
def model_server() -> Iterator[Any]:
    """A server of a model on loopback, scripted; see `tests.scripted_server`."""
    from tests.scripted_server import running

    with running() as server:
        yield server


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of video, 20 frames, each brighter than the last."""
    import av

    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * i + 20, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
