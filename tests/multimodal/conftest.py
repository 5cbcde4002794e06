"""Native checkpoints of every family, made and loaded when a test first asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from encoders.dicom import Volume, load_volume, scan
from multimodal.backends import load_backend
from multimodal.native import NativeBackend
from tests.multimodal import native_zoo, native_zoo_more


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny checkpoint, made when it is first asked for."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            zoo = native_zoo if hasattr(native_zoo, f"save_{family}") else native_zoo_more
            made[family] = getattr(zoo, f"save_{family}")(tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture(scope="session")
def native(checkpoint: Callable[[str], Path]) -> Callable[[str], NativeBackend]:
    """A family's backend, loaded once; nothing is kept of other tests' studies."""
    loaded: dict[str, NativeBackend] = {}

    def backend(family: str) -> NativeBackend:
        if family not in loaded:
            made = load_backend(checkpoint(family))
            assert isinstance(made, NativeBackend)
            loaded[family] = made
        loaded[family].loop.forget()
        return loaded[family]

    return backend


@pytest.fixture(scope="session")
def volume(phantom_series: Path) -> Volume:
    return load_volume(scan(phantom_series).default())


@pytest.fixture(scope="session")
def picture() -> Pictures.Image:
    return Pictures.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
