"""The bytes that checkpoints were trained on: our small view profiles on regular axial CT.

A change of any hash here makes a checkpoint see something it was not trained on. Other input
(tilted, irregular, not CT) is free to improve.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from encoders.dicom import PROFILES, Volume, load_volume, make_views
from encoders.dicom.header import SeriesInfo
from encoders.dicom.write import write_ct_series

# slices, rows, columns; slice, row, column distance in mm; SHA-256 of pixels by profile, of geometry in um by views and size
GOLDEN = {
    "as trained: whole slabs, pixels in pairs": (
        (32, 192, 192),
        (8.0, 1.9, 1.9),
        {
            "crossread-ct": "47fdac8df6df10b2a47aa8e0f164cc528af6e0328457d920ed8c1af1b3d4ced3",
            "crossread-ct-mip": "c2489b2ab6086b4320721faffe7b729559e826ef51e9a2231178a0fa1935bfdc",
            "crossread-ct-thin": "aef1eeda879405e21818d359e3441cafd6c9d1bd8f9f203ca079e31daaf8ca03",
            "crossread-ct-fine": "2e819c4cfb8b2ab97aec6339ea2408242c9eb51675df49ab76245002d9ba84c3",
        },
        {
            (16, 96): "6d25e15f7bbbddf3e0572e6971058d83345ee271f9754e3010a309ce98de85c9",
            (32, 96): "56de298c4d9bede28f0b771c04beb7d5180fae76d48c74a44d97476cf83267d7",
            (32, 192): "d9c6515f90e94c88a1ff8ffc7c7d0052ba906a4020b7ff93e428b4a6210badd7",
        },
    ),
    "slabs and pixels that do not divide": (
        (40, 200, 176),
        (2.5, 0.7, 0.8),
        {
            "crossread-ct": "02346c09e7477e7e6387f13313583d74eae5b6270360129794368b125b8eea2c",
            "crossread-ct-mip": "32f5326a45bfdad0f3bf6540962489faa3803d2b224bd852b5823b17a411e3ea",
            "crossread-ct-thin": "0194d23a03e50dd1e17e525f30f179c93cd30864c0ecf717728a4f4b8ae72e4a",
            "crossread-ct-fine": "809dc13bf6e3e22b78d464e0984bc656c8d5a802de73b4a4d01cb580283a83d7",
        },
        {
            (16, 96): "dfe3bed4e9a2efcf887bcd5cfb52eb8ba98d6dd7257f5de272ff8d7d103fc728",
            (32, 96): "709f4722fc3879a63a1401422b8ab23bafbc1da42b882c386d57fbe8724f8689",
            (32, 192): "3e598f4512352522659e84bd8c8a9ba238dfe988c2ab973742034d2e4a5fd7c0",
        },
    ),
    "fewer slices and pixels than views": (
        (12, 40, 64),
        (5.0, 3.0, 2.0),
        {
            "crossread-ct": "7a2e97ac9cc6ee0b0bad4780dcbaabd6f696e9536f0987fd70391fac6cf229eb",
            "crossread-ct-mip": "7a2e97ac9cc6ee0b0bad4780dcbaabd6f696e9536f0987fd70391fac6cf229eb",
            "crossread-ct-thin": "7a2e97ac9cc6ee0b0bad4780dcbaabd6f696e9536f0987fd70391fac6cf229eb",
            "crossread-ct-fine": "7097b80d6c6ed99650e83d24e3baa38b048079d5c319a621c7fe12047fd5f0ae",
        },
        {
            (16, 96): "5aa15f36353cc448bbcc7d8507cc553ccb7db6b4bb731b12c305e6d2de485136",
            (32, 96): "5aa15f36353cc448bbcc7d8507cc553ccb7db6b4bb731b12c305e6d2de485136",
            (32, 192): "576441ce7ad3a1e9604a76e4a47a5f84a2509c35f303a7c2b3ab2bdaff1bde82",
        },
    ),
}


def _body(shape: tuple[int, int, int]) -> np.ndarray:
    """Air, lung, soft tissue and bone in every channel's window, different in every voxel."""
    s, r, c = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    waves = (s * 7919 + r * 104729 + c * 1299709) % 2111 - 1100
    inside = (r - shape[1] / 2) ** 2 / shape[1] ** 2 + (c - shape[2] / 2) ** 2 / shape[2] ** 2 < 0.2
    return np.where(inside, np.maximum(waves, -1024), -1000).astype(np.int16)


def _affine(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)[[2, 1, 0, 3]] * [*spacing, 1.0]
    affine[:3, 3] = -(affine[:3, :3] @ ((np.array(shape) - 1) / 2)) + [3.0, -20.0, 140.0]
    return affine


def _hashes(volume: Volume, profile: str) -> tuple[str, str]:
    views = make_views(volume, PROFILES[profile])
    assert views.pixels.dtype == np.uint8
    assert views.geometry.dtype == np.float32
    micrometres = np.round(views.geometry.astype(np.float64) * 1000).astype("<i4")
    return (
        hashlib.sha256(views.pixels.tobytes()).hexdigest(),
        hashlib.sha256(micrometres.tobytes()).hexdigest(),
    )


@pytest.mark.parametrize(
    "profile", ["crossread-ct", "crossread-ct-mip", "crossread-ct-thin", "crossread-ct-fine"]
)
@pytest.mark.parametrize("name", GOLDEN)
def test_views_of_regular_axial_ct_are_the_bytes_that_were_trained_on(
    name: str, profile: str
) -> None:
    shape, spacing, pixels, geometry = GOLDEN[name]
    affine = _affine(shape, spacing)
    positions = affine[2, 3] + affine[2, 0] * np.arange(shape[0])
    volume = Volume(_body(shape), affine, positions, (), SeriesInfo(modality="CT"))
    views = PROFILES[profile]
    wanted = pixels[profile], geometry[views.num_views, views.size]
    assert _hashes(volume, profile) == wanted


def test_files_of_a_series_give_the_same_bytes_as_the_volume_in_memory(tmp_path: Path) -> None:
    shape, spacing, pixels, geometry = GOLDEN["slabs and pixels that do not divide"]
    write_ct_series(_body(shape), _affine(shape, spacing), tmp_path)
    assert _hashes(load_volume(tmp_path), "crossread-ct-thin") == (
        pixels["crossread-ct-thin"],
        geometry[32, 96],
    )
