"""The viewer's arithmetic in a real browser, against numpy and the DICOM room."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.dicom import Volume, load_volume
from encoders.dicom.display import PRESETS, Voi
from pipelines.ui.viewer import PREFIX
from pipelines.ui.viewer.panes import describe, panes_of, shown
from tests import makers
from tests.pipelines.test_viewer import picture

SIGMOID = Voi("soft", 40, 350, "SIGMOID")
NARROW = Voi("step", 100, 1)
TABLE = Voi("table", function="TABLE", first=-50, table=bytes(range(0, 250, 3)))
EXACT = Voi("exact", -3.25, 0.5, "LINEAR_EXACT")


def imported(page: Any, url: str, module: str, code: str, value: Any = None) -> Any:
    """What JavaScript gives that gets a module of the viewer and a value."""
    page.goto(f"{url}{PREFIX}/words.json")  # a page of the same origin, without the app's own work
    return page.evaluate(
        f"async (value) => {{ const m = await import('{PREFIX}/{module}.js'); {code} }}", value
    )


@pytest.mark.parametrize(
    "voi", [*PRESETS.values(), SIGMOID, NARROW, TABLE, EXACT], ids=lambda v: v.name
)
@pytest.mark.parametrize("inverted", [False, True])
def test_a_window_gives_the_greys_of_the_dicom_room(
    open_page: Any, app_url: str, voi: Voi, inverted: bool
):
    window = {"center": voi.center, "width": voi.width, "function": voi.function, "first": voi.first,
              "table": base64.b64encode(voi.table).decode()}  # fmt: skip
    info = {"slope": 1, "base": 0, "padding": [[-3000, -2000]]}
    code = "return [...m.colours(value[0], value[1], value[2])].map((v) => v & 255);"
    found = imported(open_page("about:blank"), app_url, "grey", code, [window, info, inverted])
    values = np.arange(-32768, 32768)
    unit = voi.unit(values)
    wanted = np.rint(255 * (1 - unit if inverted else unit)).astype(int)
    wanted[(values >= -3000) & (values <= -2000)] = 0
    assert np.abs(np.array(found) - wanted).max() <= (1 if voi is SIGMOID else 0)


@pytest.mark.parametrize(
    ("row", "column"), [((1, 0, 0), (0, 1, 0)), ((0, 1, 0), (0, 0, -1)), ((0, 0, -1), (-1, 0, 0))]
)
def test_pictures_and_places_are_those_of_the_volume(
    open_page: Any, app_url: str, tmp_path: Path, row: Any, column: Any
):
    makers.write_blocks(tmp_path, row, column)
    volume = load_volume(tmp_path)
    page = open_page("about:blank")
    code = """
        const [info, raw, points] = value;
        const stack = new m.Stack({ ...info, token: "" }, "");
        stack.data.set(raw); stack.there.fill(1); stack.numThere = info.shape[0];
        const table = Uint32Array.from({ length: 65536 }, (_, i) => i);
        return info.panes.map((pane) => {
          const [rows, columns] = stack.size(pane), out = new Uint32Array(rows * columns);
          const index = Math.floor(stack.count(pane.axes[0]) / 2);
          stack.draw(pane, index, table, out);
          const there = points.map((p) => stack.voxelAt(pane, index, ...p));
          return { rows, columns, index, out: [...out], there,
            back: there.map((v) => stack.pixelOf(pane, v)), places: there.map((v) => stack.place(v)) };
        });"""
    points = [[0, 0], [3, 5.5], [20, 11]]
    value = [describe(shown(volume)), volume.voxels.reshape(-1).tolist(), points]
    for pane, got in zip(
        panes_of(volume), imported(page, app_url, "stack", code, value), strict=True
    ):
        thin = [slice(None)] * 3
        thin[pane.axes[0]] = slice(got["index"], got["index"] + 1)
        wanted = picture(replace(volume, voxels=volume.voxels[tuple(thin)]), pane)
        drawn = np.array(got["out"]).reshape(got["rows"], got["columns"]) - 32768
        assert np.array_equal(drawn, wanted)
        assert np.allclose(got["back"], points)
        assert np.allclose(got["places"], volume.at(got["there"]), atol=1e-6)


def test_a_missing_slice_is_a_black_row_and_distances_count_it(
    open_page: Any, app_url: str, tmp_path: Path
):
    makers.write_blocks(tmp_path)
    (tmp_path / "slice_0010.dcm").unlink()
    volume: Volume = load_volume(tmp_path)
    code = """
        const stack = new m.Stack({ ...value, token: "" }, "");
        const coronal = value.panes.find((pane) => pane.name === "coronal");
        return { rows: [...stack.rowOf], voxel: stack.voxelAt(coronal, 3, 24 - 1 - 11, 0),
          place: stack.place([10, 0, 0]) };"""
    got = imported(open_page("about:blank"), app_url, "stack", code, describe(shown(volume)))
    assert got["rows"] == [*range(10), -1, *range(10, 23)]
    assert got["voxel"][0] == pytest.approx(10)
    assert got["place"] == pytest.approx(volume.at([10, 0, 0]))
