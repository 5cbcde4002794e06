"""One data set without the patient: the whole table walked, the options, UIDs, dates and rest."""

from __future__ import annotations

from functools import cache
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from encoders.dicom.confidentiality import CLEAN, CODES, RETAIN, Profile, row_of, table
from encoders.dicom.deidentify import Deidentifier
from encoders.dicom.pseudonyms import Pseudonyms, shifted
from encoders.errors import InvalidOption
from tests.encoders.dicom.planting import (
    DATE,
    NEEDLES,
    UID,
    planted,
    rows,
    tag_of,
    texts_of,
    vr_of,
    whole_table,
)

KEY = b"a key of tests only, 32 bytes long"
OPTION = {  # ours -> column of the table
    o: o.replace("-", "_") for o in (*RETAIN, *CLEAN) if o != "pixels"
}


def tool(retain: tuple[str, ...] = (), clean: tuple[str, ...] = (), key: bytes = KEY) -> Any:
    return Deidentifier(Profile(frozenset(retain), frozenset(clean)), Pseudonyms(key))


@cache
def cleaned(nested: bool) -> Dataset:
    out = tool().dataset(whole_table(nested=nested))
    return out.SharedFunctionalGroupsSequence[0] if nested else out


def test_the_table_is_whole() -> None:
    assert len(rows()) == 656  # 652 attributes, three masks of groups, all private ones: 2026c
    counts = {a: sum(r["action"] == a for r in rows().values()) for a in ("X", "U", "D", "Z")}
    assert counts == {"X": 416, "U": 55, "D": 93, "Z": 42}
    assert table().keys() == rows().keys()


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
@pytest.mark.parametrize("row", rows())
def test_every_attribute_of_the_table_comes_out_as_its_action_demands(
    row: str, nested: bool
) -> None:
    tag, actions = tag_of(row), rows()[row]["action"].split("/")
    before, after = planted(tag), cleaned(nested).get(tag)
    texts = list(texts_of(Dataset({after.tag: after}))) if after is not None else []
    assert not [t for t in texts for needle in NEEDLES if needle in t]
    if tag >> 16 < 8:
        assert after is None  # commands and meta information have no place in a data set
    elif after is None:
        assert "X" in actions
    elif after.is_empty:
        assert {"Z", "X"} & set(actions)
        assert "Z" in actions
    elif vr_of(tag) == "UI":
        assert {"U", "D"} & set(actions)
        assert str(after.value).startswith("2.25.")
    else:
        assert {"D", "Z", "U*"} & set(actions)
        assert after.VR == before.VR
        assert after.value != before.value


@pytest.mark.parametrize(
    ("keyword", "nested", "action"),
    [
        ("InstitutionName", False, "X"), ("InstitutionName", True, "D"),  # X/Z/D: Type 3, 1C
        ("AcquisitionDate", False, "Z"), ("AcquisitionDateTime", False, "D"),  # Type 2C, 1C
        ("PatientSexNeutered", False, "Z"), ("RequestedProcedureDescription", False, "X"),
        ("ReferencedImageSequence", False, "K"), ("ContrastBolusAgent", False, "Z"),
    ],
)  # fmt: skip
def test_a_compound_action_is_decided_by_the_strictest_type(
    keyword: str, nested: bool, action: str
) -> None:
    row = row_of(pydicom.datadict.tag_for_keyword(keyword) or 0)
    assert row is not None
    assert row.basic(nested) == action


@pytest.mark.parametrize("option", [o for o in RETAIN if o != "safe-private"])
def test_what_an_option_retains_comes_out_unchanged(option: str) -> None:
    out = tool(retain=(option,)).dataset(whole_table())
    kept = [r for r in rows() if rows()[r][OPTION[option]] == "K" and int(r[:4], 16) >= 8]
    for row in kept:
        element = out[tag_of(row)]
        if vr_of(tag_of(row)) != "SQ":
            assert element.value == planted(tag_of(row)).value, row
    assert kept or option == "modified-dates"


def test_modified_dates_move_together_and_keep_their_distance() -> None:
    data = Dataset()
    data.PatientID, data.StudyDate, data.StudyTime = "4711", "20240301", "133742"
    data.AcquisitionDateTime = "20240229235959.5+0100"
    data.PatientBirthDate, data.FrameAcquisitionDateTime = "19610203", "2024"
    out = tool(retain=("modified-dates",)).dataset(data)
    days = Pseudonyms(KEY).shift_days("4711")
    assert out.StudyDate == shifted("20240301", days) != "20240301"
    assert out.AcquisitionDateTime == shifted("20240229", days) + "235959.5+0100"
    assert out.StudyTime == "133742"
    assert out.PatientBirthDate == ""  # no option keeps it
    assert out.FrameAcquisitionDateTime == "19000101000000"  # a year alone cannot move


@given(st.dates(min_value=__import__("datetime").date(1900, 1, 1)), st.integers(-3650, -1))
def test_a_shifted_date_lies_exactly_that_many_days_off(day: Any, days: int) -> None:
    import datetime

    moved = shifted(f"{day:%Y%m%d}", days)
    assert moved is not None
    assert (datetime.datetime.strptime(moved, "%Y%m%d").date() - day).days == days


def test_uids_are_valid_steady_under_a_key_and_others_under_another() -> None:
    uids = [f"1.2.840.99.{n}" for n in range(500)]
    mapped = [Pseudonyms(KEY).uid(u) for u in uids]
    assert mapped == [Pseudonyms(KEY).uid(u + "\0") for u in uids]
    assert len(set(mapped)) == 500
    assert not set(mapped) & {Pseudonyms(b"another key of 16").uid(u) for u in uids}
    assert all(pydicom.uid.UID(u).is_valid and u.startswith("2.25.") for u in mapped)
    assert Pseudonyms(KEY).uid("1.2.840.10008.5.1.4.1.1.2") == "1.2.840.10008.5.1.4.1.1.2"


def test_a_patient_keeps_one_alias_and_another_gets_another() -> None:
    def alias(patient: str) -> Any:
        data = Dataset()
        data.PatientID, data.PatientName = patient, "Doe^John"
        return tool().dataset(data)

    assert alias("1").PatientID == alias("1").PatientName == alias("1").PatientID
    assert alias("1").PatientID != alias("2").PatientID


def test_unlisted_attributes_are_judged_by_what_they_hold() -> None:
    data = Dataset()
    data.SOPClassUID, data.MultiFrameSourceSOPInstanceUID = "1.2.3.4.5", "1.2.3.4.777.1"
    data.Manufacturer, data.ExpirationDateTime = "Philips", "20240101"
    data.PatientBirthDateInAlternativeCalendar = "QXZ"
    data.add_new(0x00140104, "PN", "QXZ^Reviewer")
    data.add_new(0x00082256, "ST", "QXZ words")
    data.add_new(0x00083333, "LO", "QXZ no attribute of the standard")
    data.add_new(0x00280002, "US", 1)
    out = tool().dataset(data)
    assert "QXZ" not in str(out)
    assert out.SOPClassUID == "1.2.3.4.5"  # a private class names no patient
    assert out.MultiFrameSourceSOPInstanceUID.startswith("2.25.")
    assert out.Manufacturer == "Philips"
    assert out.SamplesPerPixel == 1
    assert out.ExpirationDateTime == "19000101000000"


def test_body_part_and_kernel_stay_only_as_known_terms() -> None:
    def copy(part: str, kernel: list[str]) -> Dataset:
        data = Dataset()
        data.BodyPartExamined, data.ConvolutionKernel = part, kernel
        return tool().dataset(data)

    kept = copy("CHEST", ["Br38f", "3"])
    assert (kept.BodyPartExamined, list(kept.ConvolutionKernel)) == ("CHEST", ["Br38f", "3"])
    emptied = copy("MRS MILLER", ["MILLER"])
    assert not emptied.BodyPartExamined
    assert not emptied.ConvolutionKernel


def test_a_value_that_is_not_of_its_vr_does_not_come_through() -> None:
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    data = Dataset()
    for tag, vr, value in ((0x00280010, "US", b"QXZ"), (0x00180050, "DS", b"QXZ Doe")):
        data[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
    assert "QXZ" not in str(tool().dataset(data))


def test_structured_content_is_removed_whole_or_cleaned_item_by_item() -> None:
    item = Dataset()
    item.ValueType, item.TextValue, item.PersonName = "TEXT", "QXZ Doe", "QXZ^Doe"
    item.UID, item.ContentSequence = f"{UID}.5", Sequence([Dataset()])
    report = Dataset()
    report.ContentSequence = Sequence([item])
    removed = tool().dataset(report).ContentSequence
    assert [i.TextValue for i in removed] == ["REMOVED"]
    kept = tool(clean=("structured-content",)).dataset(report).ContentSequence[0]
    assert kept.ValueType == "TEXT"
    assert Pseudonyms(KEY).uid(f"{UID}.5") == kept.UID
    assert "QXZ" not in str(kept)


def test_cleaned_descriptors_keep_anatomy_and_technique_alone() -> None:
    data = Dataset()
    data.SeriesDescription = "CT Chest 5 mm for Mrs Miller, MRN 4711"
    data.StudyDescription = "Mueller Hans"
    out = tool(clean=("descriptors",)).dataset(data)
    assert out.SeriesDescription == "CT Chest 5 mm"
    assert "StudyDescription" not in out
    assert "SeriesDescription" not in tool().dataset(data)


def test_safe_private_numbers_stay_where_asked_and_no_others() -> None:
    data = Dataset()
    block = data.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.5")
    block.add_new(0x03, "ST", "QXZ file name")
    other = data.private_block(0x0009, "QXZ", create=True)
    other.add_new(0x01, "DS", "1")
    assert len(tool().dataset(data)) == 0
    kept = tool(retain=("safe-private",)).dataset(data)
    assert kept.private_block(0x7053, "Philips PET Private Group")[0x00].value == 0.5
    assert "QXZ" not in str(kept)


def test_every_safe_private_element_is_kept_and_its_neighbours_are_not() -> None:
    """The list is the numeric part of PS3.15 Table E.3.10-1: 81 elements."""
    from encoders.dicom.deidentify import _SAFE_PRIVATE

    data = Dataset()
    for (creator, group), numbers in _SAFE_PRIVATE.items():
        block = data.private_block(group, creator, create=True)
        for number in {*numbers, 0xEE}:
            block.add_new(number, "FD", 1.0)
    kept = tool(retain=("safe-private",)).dataset(data)
    numbers = [e.tag.element & 0xFF for e in kept if not e.tag.is_private_creator]
    assert 0xEE not in numbers
    assert len(numbers) == sum(map(len, _SAFE_PRIVATE.values())) == 81


@pytest.mark.parametrize("options", [(), ("uids", "modified-dates"), ("dates", "device")])
def test_what_was_done_is_written_down(options: tuple[str, ...]) -> None:
    out = Dataset()
    tool(retain=options).describe(out, "NO")
    codes = [
        (c.CodeValue, c.CodingSchemeDesignator) for c in out.DeidentificationMethodCodeSequence
    ]
    assert codes == [("113100", "DCM"), *((CODES[o][0], "DCM") for o in CODES if o in options)]
    assert out.PatientIdentityRemoved == "YES"
    assert out.BurnedInAnnotation == "NO"
    assert all(len(v) <= 64 for v in out.DeidentificationMethod or ())
    wanted = {"dates": "UNMODIFIED", "modified-dates": "MODIFIED"}
    told = next((wanted[o] for o in options if o in wanted), "REMOVED")
    assert out.LongitudinalTemporalInformationModified == told


def test_the_codes_are_those_of_the_standards_own_dictionary() -> None:
    from pydicom.sr.codedict import codes

    known = {c.value: c.meaning for c in codes.cid7050.concepts.values()}
    for value, meaning in CODES.values():
        assert known[value].lower() == meaning.lower()


def test_unknown_and_contradicting_options_are_refused() -> None:
    with pytest.raises(InvalidOption, match="unknown option faces; there are pixels"):
        Profile(clean=frozenset({"faces"}))
    with pytest.raises(InvalidOption, match="either dates or modified-dates"):
        Profile(retain=frozenset({"dates", "modified-dates"}))


def test_nothing_planted_survives_any_single_option_that_cleans() -> None:
    for option in (*CLEAN, "modified-dates"):
        given_options = ((option,), ()) if option in RETAIN else ((), (option,))
        out = tool(*given_options).dataset(whole_table())
        left = [t for t in texts_of(out) if any(n in t for n in NEEDLES[:3])]
        assert not left, (option, left[:3])
    assert DATE not in str(tool().dataset(whole_table()))
