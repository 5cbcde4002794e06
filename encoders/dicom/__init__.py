"""Everything that knows the DICOM standard; the only room that imports pydicom."""

from encoders.dicom.export import Exported, deidentify
from encoders.dicom.gate import let_through
from encoders.dicom.header import SeriesInfo, SliceFile
from encoders.dicom.pictures import Picture, load_pictures, views_of
from encoders.dicom.resampling import resample
from encoders.dicom.results import write_results
from encoders.dicom.series import Series, Study, describe, scan
from encoders.dicom.suv import load_suv
from encoders.dicom.views import PROFILES, ViewProfile, Views, Window, make_views
from encoders.dicom.volume import Volume, load_preview, load_volume
from encoders.dicom.write import write_ct_series

__all__ = [
    "PROFILES",
    "Exported",
    "Picture",
    "Series",
    "SeriesInfo",
    "SliceFile",
    "Study",
    "ViewProfile",
    "Views",
    "Volume",
    "Window",
    "deidentify",
    "describe",
    "let_through",
    "load_pictures",
    "load_preview",
    "load_suv",
    "load_volume",
    "make_views",
    "resample",
    "scan",
    "views_of",
    "write_ct_series",
    "write_results",
]
