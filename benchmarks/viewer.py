"""How fast the slice viewer is in a real browser: 300 slices of 512 x 512, from upload to scrolling.

    python -m benchmarks.viewer [--niivue FOLDER]

Generates the study, uploads it to the running app through Chromium, and scrolls. With the unpacked
npm package `@niivue/niivue` in FOLDER (`npm pack @niivue/niivue`), NiiVue shows the same voxels as
NIfTI from a local server in the same browser: it has no upload, so its times start at the fetch.
Wall-clock times of this machine; the last line is JSON.
"""

from __future__ import annotations

import argparse
import http.server
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sparse import machine
from tests.browser.conftest import FLAGS
from tests.served import serve

SHAPE = (300, 512, 512)
SPACING_MM = (1.0, 0.7, 0.7)
NUM_CHANGES = 120
WEBGL = ["--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]  # software, without a GPU
_VIEWER = "document.querySelector('.cr-viewer').viewer"
# what each change costs the page's thread, and how long it takes until the next frame is due
_SCROLL = """async ([change, times]) => {
  const act = eval(change), cost = [], frames = [];
  let last = await new Promise(requestAnimationFrame);
  for (let i = 0; i < times; i++) {
    const start = performance.now();
    act(i);
    cost.push(performance.now() - start);
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last);
    last = now;
  }
  return { cost, frames };
}"""
_NIIVUE = """<!doctype html><canvas id=c width=841 height=612></canvas><script type=module>
import { Niivue, SLICE_TYPE } from "/niivue.js";
const nv = new Niivue({ show3Dcrosshair: false });
const start = performance.now();
await nv.attachToCanvas(document.getElementById("c"));
nv.setSliceType(SLICE_TYPE.AXIAL);
await nv.loadVolumes([{ url: "/volume.nii", cal_min: -1350, cal_max: 150 }]);
const gl = nv.gl, pixel = new Uint8Array(4);
const drawn = () => { nv.drawScene(); gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel); };
drawn();
window.first = performance.now() - start;
window.change = (i) => { nv.scene.crosshairPos = [0.5, 0.5, (40 + i + 0.5) / 300]; drawn(); };
</script>"""


def voxels() -> np.ndarray:
    """A body of soft tissue with lungs and noise: as hard to compress as a real chest."""
    rng = np.random.default_rng(0)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE)
    rows, columns = y[:, None], x[None, :]
    body = (columns / 0.85) ** 2 + (rows / 0.65) ** 2 < 1
    hu = np.where(body, 40, -1000).astype(np.float32)
    noise = rng.normal(0, 20, SHAPE[1:]).astype(np.float32)
    stack = np.empty(SHAPE, np.int16)
    for index, height in enumerate(z):
        lungs = (abs(columns) - 0.4) ** 2 / 0.09 + rows**2 / 0.2 + height**2 < 1
        stack[index] = np.where(lungs & body, -850, hu) + np.roll(noise, 17 * index, 1)
    np.maximum(stack, -1024, out=stack)
    return stack


def affine() -> np.ndarray:
    """(slice, row, column) -> LPS mm."""
    made = np.zeros((4, 4))
    made[2, 0], made[1, 1], made[0, 2], made[3, 3] = *SPACING_MM, 1.0
    return made


@contextmanager
def browser(*flags: str) -> Iterator[Any]:
    """A tab of Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path="/usr/bin/chromium", args=[*FLAGS, *flags]
        )
        yield chromium.new_page(viewport={"width": 1280, "height": 900})
        chromium.close()


def summary(scrolled: dict[str, list[float]]) -> dict[str, float]:
    """Median, 95th percentile and maximum in ms."""
    cost, frames = scrolled["cost"], scrolled["frames"]
    return {
        "change_ms_median": round(float(np.median(cost)), 2),
        "change_ms_p95": round(float(np.percentile(cost, 95)), 2),
        "change_ms_max": round(max(cost), 2),
        "frame_ms_median": round(float(np.median(frames)), 2),
        "frame_ms_p95": round(float(np.percentile(frames, 95)), 2),
    }


def measure_ours(study: Path) -> dict[str, float]:
    """Upload through the app, wait for one slice and for all, then scroll one pane and three."""
    with closing(serve("app.py")) as served, browser() as page:
        page.goto(next(served))
        upload = page.locator("#study-files input[type=file]")
        upload.wait_for(state="attached", timeout=60_000)
        page.wait_for_function("document.querySelector('.cr-viewer')?.viewer")
        start = time.perf_counter()
        upload.set_input_files(sorted(study.iterdir()))
        page.wait_for_function(f"{_VIEWER}.stack", timeout=300_000, polling=20)
        first = time.perf_counter() - start
        page.wait_for_function(
            f"{_VIEWER}.stack.info.shape[0] === {SHAPE[0]} && {_VIEWER}.stack.complete",
            timeout=300_000, polling=50,
        )  # fmt: skip
        everything = time.perf_counter() - start
        streamed = page.evaluate(f"{_VIEWER}.times")
        result = {
            "upload_to_first_slice_s": round(first, 2), "upload_to_all_slices_s": round(everything, 2),
            "open_to_first_slice_ms": round(streamed["first"], 1),
            "open_to_all_slices_ms": round(streamed["all"], 1),
        }  # fmt: skip
        for layout in ("axial", "all"):
            page.evaluate(f"{_VIEWER}.arrange('{layout}')")
            change = f"(i) => {{ const v = {_VIEWER}; v.go(v.main, 40 + i); v.paint(); }}"
            scrolled = summary(page.evaluate(_SCROLL, [change, NUM_CHANGES]))
            result |= {f"{layout}_{name}": value for name, value in scrolled.items()}
    return result


def measure_niivue(package: Path, stack: np.ndarray, folder: Path) -> dict[str, float]:
    """The same voxels in NiiVue: from fetch to its first picture, and a change of slice."""
    import nibabel

    ras = np.diag([-1, -1, 1, 1]) @ affine()[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(stack.transpose(2, 1, 0), ras), folder / "volume.nii")
    (folder / "index.html").write_text(_NIIVUE)
    (folder / "niivue.js").symlink_to((package / "dist" / "index.js").resolve())
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with browser(*WEBGL) as page:
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_function("window.first", timeout=300_000)
            first = page.evaluate("window.first")
            scrolled = summary(page.evaluate(_SCROLL, ["window.change", NUM_CHANGES]))
        server.shutdown()
    return {"open_to_first_slice_ms": round(first, 1), **scrolled}


def main() -> None:
    """Print both viewers' times."""
    from encoders.dicom import write_ct_series

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--niivue", type=Path, help="unpacked npm package to compare with")
    options = parser.parse_args()
    stack = voxels()
    with tempfile.TemporaryDirectory() as place:
        write_ct_series(stack, affine(), Path(place) / "study")
        values: dict[str, Any] = {"ours": measure_ours(Path(place) / "study")}
        if options.niivue:
            values["niivue"] = measure_niivue(options.niivue, stack, Path(place))
    for viewer, times in values.items():
        for name, value in times.items():
            print(f"{viewer:7} {name:28} {value:10.2f}")
    print(json.dumps({"benchmark": "viewer", "machine": machine(), **values}))


if __name__ == "__main__":
    main()
