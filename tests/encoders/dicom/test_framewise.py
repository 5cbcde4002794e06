"""Objects of many frames over DICOMweb: metadata first, then frame by frame, resumable, else whole."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless, RLELossless

from encoders.dicom import Volume, load_volume
from encoders.dicom.framewise import comes_in_frames, syntax_of
from encoders.dicom.remote import fetch, store
from encoders.errors import Unreachable
from tests.archive import Orthanc
from tests.encoders.dicom.slices import ROOT, write_enhanced
from tests.encoders.dicom.test_remote import Server, serving

HEIGHTS = [3.5, 1.0, 6.0, 8.5, 11.0]


@pytest.fixture
def enhanced(tmp_path: Path) -> Path:
    """An Enhanced CT of five frames out of order."""
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2000, (len(HEIGHTS), 32, 32)).astype("<i2")
    return write_enhanced(
        tmp_path / "there/e.dcm", HEIGHTS, Rows=32, Columns=32, PixelData=values.tobytes(),
        PatientName="Bücher^Ü",
        SpecificCharacterSet="ISO_IR 100", KVP=None, SliceThickness="0.333333333333",
    )  # fmt: skip


@pytest.fixture
def server(enhanced: Path) -> Iterator[Server]:
    with serving([enhanced]) as archive:
        yield archive


def frames_asked(server: Server) -> list[int]:
    return sorted(int(p.rpartition("/")[2]) for p, _ in server.asked if "/frames/" in p)


def same(a: Volume, b: Volume) -> bool:
    return a.digest == b.digest and a.info == b.info and a.problems == b.problems


def test_frames_come_one_by_one_and_make_the_object_that_is_there(
    server: Server, enhanced: Path, tmp_path: Path
) -> None:
    assert fetch(server.url, tmp_path / "here", server.access) == []
    assert server.asked[0][0].endswith("/metadata")
    assert frames_asked(server) == [1, 2, 3, 4, 5]
    assert not [p for p, _ in server.asked if p.endswith(tuple(server.files))]  # never the whole
    (file,) = (tmp_path / "here").iterdir()
    assert same(load_volume(file), load_volume(enhanced))
    there, here = pydicom.dcmread(enhanced), pydicom.dcmread(file)
    assert here.PatientName == there.PatientName
    del there.SpecificCharacterSet, here.SpecificCharacterSet
    assert here == there


@pytest.mark.parametrize(
    ("syntax", "plugin"), [(RLELossless, "pylibjpeg"), (JPEGLSLossless, "pyjpegls")]
)
def test_compressed_frames_stay_as_they_are(
    enhanced: Path, tmp_path: Path, syntax: str, plugin: str
) -> None:
    wanted = load_volume(enhanced).digest
    header = pydicom.dcmread(enhanced)
    header.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    header.save_as(enhanced)
    with serving([enhanced]) as server:
        fetch(server.url, tmp_path / "here", server.access)
        assert frames_asked(server) == [1, 2, 3, 4, 5]
    (file,) = (tmp_path / "here").iterdir()
    assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == syntax
    assert load_volume(file).digest == wanted


def test_interrupted_object_goes_on_at_its_frame(
    server: Server, enhanced: Path, tmp_path: Path
) -> None:
    server.routes["/frames/4"] = lambda: (503, {}, b"")
    with pytest.raises(Unreachable, match="503"):
        fetch(server.url, tmp_path / "here", server.access)
    assert not list((tmp_path / "here").glob("*.dcm"))
    server.routes.clear()
    server.asked.clear()
    assert fetch(server.url, tmp_path / "here", server.access) == []
    assert frames_asked(server) == [4]
    (file,) = (tmp_path / "here").iterdir()
    assert same(load_volume(file), load_volume(enhanced))


ANOTHER = 'multipart/related; type="application/octet-stream; transfer-syntax=1.2.3"; boundary=XX'


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("code", [400, 404, 406, 200])
def test_object_comes_whole_where_the_server_gives_no_frames(
    server: Server, enhanced: Path, tmp_path: Path, number: int, code: int
) -> None:
    """It refuses the first or a later one, or gives one in another transfer syntax."""
    body = b"--XX\r\n\r\nx\r\n--XX--"
    server.routes[f"/frames/{number}"] = lambda: (code, {"Content-Type": ANOTHER}, body)
    assert fetch(server.url, tmp_path / "here", server.access) == []
    (file,) = (tmp_path / "here").iterdir()
    assert file.read_bytes() == enhanced.read_bytes()


def test_nothing_is_under_way_when_the_whole_is_asked_for(
    server: Server, enhanced: Path, tmp_path: Path
) -> None:
    """A late frame was written into the folder that was just being removed."""
    refused, too_early = threading.Event(), []

    def refuse() -> Any:
        refused.set()
        return 406, {}, b""

    def late() -> Any:
        refused.wait(10)
        time.sleep(0.5)  # long enough to be overtaken
        too_early.extend(p for p, _ in server.asked if p.endswith(tuple(server.files)))
        return 406, {}, b""

    server.routes["/frames/2"], server.routes["/frames/3"] = refuse, late
    assert fetch(server.url, tmp_path / "here", server.access) == []
    assert refused.is_set()
    assert too_early == []


@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:1/x", "//evil.example.org/x", "file:///etc/passwd"]
)
def test_values_on_another_host_are_not_asked_for(
    server: Server, enhanced: Path, tmp_path: Path, where: str
) -> None:
    listed = pydicom.dcmread(enhanced, stop_before_pixels=True).to_json_dict()
    listed["00281201"] = {"vr": "OW", "BulkDataURI": where}
    answer: Any = (200, {"Content-Type": "application/dicom+json"}, json.dumps([listed]).encode())
    server.routes["/metadata"] = lambda: answer
    assert fetch(server.url, tmp_path / "here", server.access) == []
    (file,) = (tmp_path / "here").iterdir()
    assert file.read_bytes() == enhanced.read_bytes()  # it came whole


def test_single_frames_bits_and_nonsense_come_whole() -> None:
    def item(frames: Any, bits: Any) -> dict[str, Any]:
        return {"00280008": {"Value": [frames]}, "00280100": {"Value": [bits]}}

    assert comes_in_frames(item(2, 16))
    assert comes_in_frames(item("7", 8))
    for frames, bits in ((1, 16), (None, 16), (2, 1), (2, None), (10**9, 16)):
        assert not comes_in_frames(item(frames, bits))
    assert not comes_in_frames({})
    assert syntax_of('a; transfer-syntax="1.2.5"', "") == "1.2.5"
    assert syntax_of("application/octet-stream") == "1.2.840.10008.1.2.1"


def test_orthanc_gives_an_enhanced_object_frame_by_frame(
    orthanc: Orthanc, enhanced: Path, tmp_path: Path
) -> None:
    header = pydicom.dcmread(enhanced)
    header.StudyInstanceUID, header.SOPInstanceUID = ROOT + "77", ROOT + "78"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.save_as(enhanced)
    store(orthanc.base, [enhanced], orthanc.access)
    url = f"{orthanc.base}/studies/{header.StudyInstanceUID}"
    assert fetch(url, tmp_path / "here", orthanc.access) == []
    (file,) = (tmp_path / "here").iterdir()
    assert file.read_bytes() != enhanced.read_bytes()  # put together here
    assert load_volume(file).digest == load_volume(enhanced).digest


def test_recorded_enhanced_objects_come_back_from_orthanc_as_they_are(
    orthanc: Orthanc, shared_data: Path, tmp_path: Path
) -> None:
    for name in ("enhanced/eCT_Supplemental.dcm", "derived/chest_lowres_legacy_enhanced.dcm"):
        there = shared_data / name
        store(orthanc.base, [there], orthanc.access)
        uid = pydicom.dcmread(there, stop_before_pixels=True).StudyInstanceUID
        here = tmp_path / str(uid)
        assert fetch(f"{orthanc.base}/studies/{uid}", here, orthanc.access) == []
        (file,) = here.iterdir()
        assert load_volume(file).digest == load_volume(there).digest
