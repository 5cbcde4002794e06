"""Results as DICOM: parsed back by pydicom alone, checked by dciodvfy and dsrdump."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from encoders.dicom import Series, Volume, load_volume, scan, write_results
from encoders.dicom.results import STRIP_ROWS, Maker, Observation, Place, Remark, Result
from encoders.errors import InputError, UnreadableImage
from encoders.features import Problem
from tests import makers

LEFT_HU = makers.BLOCKS["left"][1]
MAKER = Maker("demo", "ab" * 32, "view profile crossread-ct", "0.1.0")


def _picture(width: int = 33, height: int = 21) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 10)).save(out, "PNG")
    return out.getvalue()


def _result(volume: Volume, index: int = 2, box: Any = (3.0, 4.5, 10.0, 12.0)) -> Result:
    index = min(index, len(volume.voxels) - 1)
    place = Place(index, float(volume.positions_mm[index]), box)
    return Result(
        (
            Observation("nodule", "right", 12.0, 0.93, place),
            Observation("aortic calcification", None, None, None),
            Observation("something a native model said", "left", None, 0.5, replace(place, box=None)),
        ),
        (
            Remark("direction", "Left nodule 结节.", "Right nodule.", 0.8, place),
            Remark("omission", None, "There is fluid.", None),
        ),
        (Problem("MISSING_SLICE", "2 slices are missing", "after slice 3"), Problem("LOSSY", "loss")),
        "The report and the images differ in 2 points.", MAKER, ((place, _picture()),),
        b"%PDF-1.4 odd", True,
    )  # fmt: skip


def _written(study: Path, folder: Path, result: Result | None = None) -> list[Any]:
    series = scan(study).default()
    files = write_results(result or _result(load_volume(series)), series, folder)
    return [pydicom.dcmread(file) for file in files]


def _named(item: Any, meaning: str) -> list[Any]:
    """Content items below `item` with this concept name, in order."""
    found = []
    for child in item.get("ContentSequence", ()):
        name = child.get("ConceptNameCodeSequence")
        if name and name[0].CodeMeaning == meaning:
            found.append(child)
        found += _named(child, meaning)
    return found


def _findings(report: Any) -> list[tuple[Any, ...]]:
    """(name, side, size, probability, box, instance) of every measurement group."""
    found = []
    for group in _named(report, "Measurement Group"):
        numbers = {
            n.ConceptNameCodeSequence[0].CodeMeaning: float(n.MeasuredValueSequence[0].NumericValue)
            for n in group.ContentSequence if n.ValueType == "NUM"
        }  # fmt: skip
        side = _named(group, "Laterality")
        region = _named(group, "Image Region")
        box, instance = None, None
        if region:
            points = np.reshape(region[0].GraphicData, (-1, 2))
            box = (*points.min(0).tolist(), *points.max(0).tolist())
            instance = (
                region[0].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            )
        found.append((
            _named(group, "Finding")[0].ConceptCodeSequence[0].CodeMeaning,
            side[0].ConceptCodeSequence[0].CodeMeaning.lower() if side else None,
            numbers.get("Diameter"), numbers.get("Probability"), box, instance,
        ))  # fmt: skip
    return found


def test_findings_are_recovered_from_the_report_by_pydicom_alone(
    phantom_series: Path, tmp_path: Path
) -> None:
    report = _written(phantom_series, tmp_path)[0]
    series = scan(phantom_series).default()
    assert _findings(report) == [
        ("nodule", "right", 12.0, 0.93, (3.0, 4.5, 10.0, 12.0), series.files[2].sop_uid),
        ("aortic calcification", None, None, None, None, None),
        ("something a native model said", "left", None, 0.5, None, None),
    ]
    units = [
        n.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]
        for n in _named(report, "Diameter")
    ]
    assert [(u.CodingSchemeDesignator, u.CodeValue) for u in units] == [("UCUM", "mm")]
    codes = [f.ConceptCodeSequence[0] for f in _named(report, "Finding")]
    assert [(c.CodingSchemeDesignator, c.CodeValue) for c in codes[:2]] == [
        ("SCT", "27925004"), ("99CROSSREAD", "AorticCalcifi"),
    ]  # fmt: skip


def test_report_carries_verdict_label_discrepancies_warnings_and_maker(
    phantom_series: Path, tmp_path: Path
) -> None:
    report = _written(phantom_series, tmp_path)[0]

    def told(meaning: str) -> list[str]:
        return [str(item.TextValue) for item in _named(report, meaning)]

    assert told("Conclusion") == ["The report and the images differ in 2 points."]
    assert told("Intended use") == ["AI result for research, not for diagnosis"]
    assert told("Warning") == [
        "MISSING_SLICE: 2 slices are missing (after slice 3)", "LOSSY: loss"
    ]  # fmt: skip
    assert told("Model") == ["demo"]
    assert told("SHA-256 of the model's weights") == ["ab" * 32]
    assert told("Preprocessing") == ["view profile crossread-ct"]
    first, second = _named(report, "Discrepancy")
    kind = _named(first, "Type of discrepancy")[0].ConceptCodeSequence[0].CodeValue
    assert (kind, _named(first, "Sentence of the report")[0].TextValue) == (
        "direction", "Left nodule 结节."
    )  # fmt: skip
    assert _named(first, "Suggested correction")[0].TextValue == "Right nodule."
    assert _named(second, "Sentence of the report") == []


def test_results_are_drafts_in_new_series_of_the_same_study_and_patient(
    phantom_series: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_series, tmp_path / "study")
    for file in (tmp_path / "study").iterdir():
        header = pydicom.dcmread(file)
        header.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        header.PatientName, header.PatientID = "Yamada^Tarou=山田^太郎", "P-1"
        header.PatientBirthDate, header.PatientSex = "19610203", "F"
        header.AccessionNumber, header.StudyID, header.StudyDate = "A-7", "S-2", "20240229"
        header.PatientIdentityRemoved = "YES"
        header.save_as(file)
    source = pydicom.dcmread(next((tmp_path / "study").iterdir()))
    objects = _written(tmp_path / "study", tmp_path / "out")
    for data in objects:
        for name in ("StudyInstanceUID", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
                     "AccessionNumber", "StudyID", "StudyDate", "PatientIdentityRemoved"):  # fmt: skip
            assert data[name].value == source[name].value, name
        assert data.SeriesInstanceUID != source.SeriesInstanceUID
        assert data.SeriesNumber >= 900
        assert data.SeriesDescription.startswith("AI ")
        assert "not for diagnosis" in data.SeriesDescription
        assert (data.Manufacturer, data.SoftwareVersions) == ("CrossRead", "0.1.0")
    report, picture, document = objects
    assert (
        len({o.SeriesInstanceUID for o in objects}) == len({o.SOPInstanceUID for o in objects}) == 3
    )
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert document.VerificationFlag == "UNVERIFIED"
    assert picture.ContentQualification == "RESEARCH"


def test_key_image_and_document_hold_their_bytes_and_name_their_slice(
    phantom_series: Path, tmp_path: Path
) -> None:
    _, picture, document = _written(phantom_series, tmp_path)
    series = scan(phantom_series).default()
    assert (picture.pixel_array[:21] == np.array([200, 30, 10])).all()
    assert picture.pixel_array.shape == (21 + STRIP_ROWS, 33, 3)
    assert picture.pixel_array[21:].max() > 200  # the label
    source = picture.SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == series.files[2].sop_uid
    assert document.EncapsulatedDocument[: document.EncapsulatedDocumentLength] == b"%PDF-1.4 odd"
    assert document.BurnedInAnnotation == "YES"  # it quotes the report, which may name a patient
    assert document.SourceInstanceSequence[0].ReferencedSOPInstanceUID == series.files[2].sop_uid


def test_outline_lies_on_the_lesion_of_the_slice_it_names_though_one_was_left_out(
    phantom_series: Path, tmp_path: Path
) -> None:
    """The second slice cannot be decoded, so the volume's indices are one behind the series'."""
    shutil.copytree(phantom_series, tmp_path / "study")
    files = scan(tmp_path / "study").default().files
    broken = pydicom.dcmread(files[1].open())
    broken.PixelData = b"\0" * 10
    broken.save_as(files[1].open())
    series = scan(tmp_path / "study").default()
    volume = load_volume(series)
    assert len(volume.voxels) == len(files) - 1
    index = int(np.argwhere(volume.voxels == LEFT_HU)[0][0])
    rows, columns = np.nonzero(volume.voxels[index] == LEFT_HU)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    report = _written(
        tmp_path / "study", tmp_path / "out", _result(volume, index, tuple(float(v) for v in box))
    )[0]
    _, _, _, _, outline, instance = _findings(report)[0]
    named = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (tmp_path / "study").iterdir())}
    hu = named[instance].pixel_array.astype(int) - 1024
    x0, y0, x1, y1 = (int(v) for v in outline)
    assert (hu[y0:y1, x0:x1] == LEFT_HU).all()
    assert (hu == LEFT_HU).sum() == (x1 - x0) * (y1 - y0)


def test_frames_of_one_file_are_named_by_their_number(shared_data: Path, tmp_path: Path) -> None:
    study = shared_data / "derived/chest_lowres_legacy_enhanced.dcm"
    report, picture, _ = _written(study, tmp_path)
    source = pydicom.dcmread(study, stop_before_pixels=True)
    place = picture.SourceImageSequence[0]
    assert place.ReferencedSOPInstanceUID == source.SOPInstanceUID
    group = source.PerFrameFunctionalGroupsSequence[place.ReferencedFrameNumber - 1]
    volume = load_volume(study)
    assert abs(group.PlanePositionSequence[0].ImagePositionPatient[2]) == pytest.approx(
        abs(float(volume.positions_mm[2])), abs=1e-3
    )
    region = _named(report, "Image Region")[0].ContentSequence[0].ReferencedSOPSequence[0]
    assert region.ReferencedFrameNumber == place.ReferencedFrameNumber


def test_values_no_archive_would_accept_are_left_empty(
    phantom_series: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_series, tmp_path / "study")
    with pydicom.config.disable_value_validation():
        for file in (tmp_path / "study").iterdir():
            header = pydicom.dcmread(file)
            header.StudyDate, header.PatientSex, header.StudyTime = "2024.01", "female", "noon"
            del header.PatientName
            header.save_as(file)
    for data in _written(tmp_path / "study", tmp_path / "out"):
        assert not data.StudyDate
        assert not data.PatientSex
        assert not data.StudyTime
        assert not data.PatientName


def test_result_without_findings_still_names_an_image(phantom_series: Path, tmp_path: Path) -> None:
    bare = Result((), (), (), "No report was given.", MAKER)
    (report,) = _written(phantom_series, tmp_path, bare)
    series = scan(phantom_series).default()
    used = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert used.SeriesInstanceUID == series.files[0].series_uid
    assert used.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == series.files[12].sop_uid


def test_study_or_picture_that_cannot_be_referred_to_is_refused(
    phantom_series: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_series, tmp_path / "study")
    for file in (tmp_path / "study").iterdir():
        header = pydicom.dcmread(file)
        del header.StudyInstanceUID
        header.save_as(file)
    volume = load_volume(phantom_series)
    with pytest.raises(InputError, match=r"no StudyInstanceUID \(0020,000D\)"):
        _written(tmp_path / "study", tmp_path / "out", _result(volume))
    broken = replace(_result(volume), pictures=((Place(0), b"no picture"),))
    with pytest.raises(UnreadableImage, match="give PNG bytes"):
        _written(phantom_series, tmp_path / "out", broken)
    series = scan(phantom_series).default()
    nameless = Series(tuple(replace(f, sop_uid="") for f in series.files), series.info)
    with pytest.raises(InputError, match="no SOP class or instance UID"):
        write_results(_result(volume), nameless, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    ["phantom", "chest_lidc_0001", "head_phantom_study", "head_tilt_irregular",
     "enhanced/eCT_Supplemental.dcm", "derived/chest_lowres_legacy_enhanced.dcm"],
)  # fmt: skip
def test_written_objects_have_no_error_for_dciodvfy_and_dsrdump(
    name: str, phantom_series: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for tool, package in (("dciodvfy", "dicom3tools"), ("dsrdump", "dcmtk")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (apt-get install {package})")
    study = phantom_series if name == "phantom" else request.getfixturevalue("shared_data") / name
    _written(study, tmp_path)
    for file in sorted(tmp_path.iterdir()):
        told = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True).stderr
        errors = [line for line in told.splitlines() if line.startswith("Error")]
        assert not errors, (file.name, errors)
    dump = subprocess.run(
        ["dsrdump", str(tmp_path / "sr.dcm")], capture_output=True, encoding="utf-8"
    )
    assert dump.returncode == 0
    assert not [line for line in dump.stderr.splitlines() if line.startswith(("E:", "F:"))]
    assert "Left nodule 结节." in dump.stdout
