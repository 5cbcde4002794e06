"""The page's settings: every variable is read, and a value that cannot be used is refused by name."""

from __future__ import annotations

from dataclasses import fields

import pytest

from encoders.errors import InvalidOption
from pipelines.ui.settings import Settings
from tests.served import ROOT


def test_without_variables_the_defaults_hold():
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"CROSSREAD_MODEL": " "}) == Settings()


def test_every_variable_is_read():
    said = {
        "CROSSREAD_MODEL": "folder", "CROSSREAD_SPARSITY": "0.25",
        "CROSSREAD_LOGINS": "anna:a:b, ben:c", "CROSSREAD_MAX_UPLOAD_MIB": "1",
        "CROSSREAD_MAX_SESSION_MIB": "2", "CROSSREAD_MAX_FILES": "3",
        "CROSSREAD_MAX_PIXELS": "4", "CROSSREAD_MAX_SECONDS": "5",
        "CROSSREAD_MAX_WAITING": "6", "CROSSREAD_NUM_AT_ONCE": "7",
    }  # fmt: skip
    logins = (("anna", "a:b"), ("ben", "c"))
    assert Settings.from_environment(said) == Settings("folder", 0.25, logins, 1, 2, 3, 4, 5, 6, 7)
    names = {f"CROSSREAD_{field.name.upper()}" for field in fields(Settings)}
    assert names == set(said)
    table = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert not [name for name in names if f"`{name}`" not in table]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPARSITY", "0.95"), ("SPARSITY", "half"), ("LOGINS", "geheim"), ("LOGINS", "anna:"),
        ("MAX_FILES", "0"), ("MAX_UPLOAD_MIB", "1gb"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused_by_name_and_not_told(name: str, value: str):
    with pytest.raises(InvalidOption, match=f"CROSSREAD_{name} cannot be used; give") as refused:
        Settings.from_environment({f"CROSSREAD_{name}": value})
    assert value not in str(refused.value).replace("name:password", "")
