"""Who a series is of: the one place that reads identifiers in order to show them.

For a page on which a person asks for them; nothing else calls this, and nothing is kept.
"""

from __future__ import annotations

from encoders.dicom.series import Series
from encoders.dicom.silence import quiet_pydicom
from encoders.errors import UnreadableFile

IDENTIFIERS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber",
    "StudyDescription", "SeriesDescription", "InstitutionName", "ReferringPhysicianName",
)  # fmt: skip


@quiet_pydicom()
def identifiers_of(series: Series) -> dict[str, str]:
    """The values of `IDENTIFIERS` in the first file of a series; "" where it has none.

    Raises:
        UnreadableFile: its header can no longer be read.
    """
    import pydicom

    first = series.files[0]
    try:
        header = pydicom.dcmread(
            first.open(), stop_before_pixels=True, specific_tags=list(IDENTIFIERS)
        )
        return {keyword: str(header.get(keyword) or "") for keyword in IDENTIFIERS}
    except Exception as error:  # pydicom raises many kinds; none may pass with a value quoted
        raise UnreadableFile(f"the header of {first.name!r} can no longer be read") from error
