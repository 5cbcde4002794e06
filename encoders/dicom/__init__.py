"""Everything that knows the DICOM standard; the only room that imports pydicom."""

from encoders.dicom.series import Series, SeriesInfo, SliceFile, Study, describe, read_study
from encoders.dicom.views import PROFILES, ViewProfile, Views, Window, make_views
from encoders.dicom.volume import Volume, load_volume
from encoders.dicom.write import write_ct_series

__all__ = [
    "PROFILES",
    "Series",
    "SeriesInfo",
    "SliceFile",
    "Study",
    "ViewProfile",
    "Views",
    "Volume",
    "Window",
    "describe",
    "load_volume",
    "make_views",
    "read_study",
    "write_ct_series",
]
