"""Errors as the page's visitors are told them, and as the log is."""

from __future__ import annotations

import logging

import gradio as gr
import pytest

from encoders.errors import NotDicom
from pipelines.ui.guards import errors_as_help


def test_an_error_is_told_without_html_as_gradio_shows_it_as_html():
    with (
        pytest.raises(gr.Error, match=r"'&lt;img src=x&gt;\.dcm' is") as told,
        errors_as_help(),
    ):
        raise NotDicom("'<img src=x>.dcm' is no DICOM file")
    assert not told.value.print_exception


def test_what_nobody_expected_is_told_and_logged_without_its_words(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.ERROR)
    with pytest.raises(gr.Error, match="on our side") as told, errors_as_help():
        raise ValueError("Zebra^Quagga")
    assert told.value.__cause__ is None
    assert "ValueError at test_guards.py:" in caplog.text
    assert "Zebra" not in caplog.text
