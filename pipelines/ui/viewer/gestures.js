// Mouse, touch and keys on the panes of a viewer. One finger or the left button does what the tool
// says; wheel scrolls; two fingers zoom and move; middle moves, right changes the window.

const WHEEL = 60; // of delta for one slice; a notch of a mouse is 100 or more
const PER_SLICE = 6; // CSS pixels of a drag for one slice
const PAGE = 10; // slices

export class Gestures {
  constructor(viewer) {
    this.viewer = viewer;
    this.held = new Map(); // pointer id -> where it is
  }

  watch(pane) {
    const { canvas } = pane;
    canvas.addEventListener("wheel", (event) => this.wheel(pane, event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(pane, event));
    canvas.addEventListener("pointermove", (event) => this.move(pane, event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => this.leave(pane));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", (event) => this.cross(pane, pane.toPixel(at(event))));
    canvas.addEventListener("keydown", (event) => this.key(pane, event));
    canvas.addEventListener("focus", () => this.focus(pane));
  }

  focus(pane) {
    this.viewer.focused = pane;
    this.viewer.toolbar.arranged();
  }

  wheel(pane, event) {
    event.preventDefault();
    if (event.ctrlKey) {
      pane.zoomAt(Math.exp(-event.deltaY / 300), at(event));
      return this.viewer.redraw(pane);
    }
    const delta = event.deltaMode === 0 ? event.deltaY : event.deltaY * WHEEL;
    this.turned = (this.turned ?? 0) + delta;
    const slices = Math.trunc(this.turned / WHEEL) || (event.deltaMode === 0 ? 0 : Math.sign(delta));
    if (!slices) return;
    this.turned = 0; // a fast notch is still one slice
    this.viewer.go(pane, pane.index + (Math.abs(delta) > WHEEL ? Math.sign(delta) : slices));
  }

  down(pane, event) {
    pane.canvas.focus({ preventScroll: true });
    pane.canvas.setPointerCapture(event.pointerId);
    this.held.set(event.pointerId, at(event));
    this.moved = 0;
    this.tool = { 0: this.viewer.toolbar.tool, 1: "pan", 2: "window" }[event.button] ?? "";
    if (this.held.size > 1) this.tool = "pinch";
    if (this.tool === "measure") {
      this.point(pane, pane.toPixel(at(event)));
    }
  }

  move(pane, event) {
    const here = at(event);
    this.viewer.keyboardCursor = false;
    pane.cursor = pane.toPixel(here);
    const before = this.held.get(event.pointerId);
    if (!before) return this.viewer.redraw(pane);
    const [x, y] = [here[0] - before[0], here[1] - before[1]];
    if (this.tool === "pinch") this.pinch(pane, event.pointerId, here);
    else this[this.tool]?.(pane, x, y, here);
    this.held.set(event.pointerId, here);
    this.viewer.redraw(pane);
  }

  up(event) {
    this.held.delete(event.pointerId);
  }

  leave(pane) {
    pane.cursor = null;
    this.viewer.redraw(pane);
  }

  pinch(pane, id, here) {
    const before = this.held.get(id);
    const other = [...this.held].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    pane.panX += (here[0] - before[0]) / 2;
    pane.panY += (here[1] - before[1]) / 2;
    pane.zoomAt(distance(here, other) / distance(before, other), other);
  }

  // --- what a drag does, by the tool's name ---

  window(_pane, x, y) {
    this.viewer.drag(x, y);
  }

  scroll(pane, _x, y) {
    this.moved += y;
    const slices = Math.trunc(this.moved / PER_SLICE);
    this.moved -= slices * PER_SLICE;
    if (slices) this.viewer.go(pane, pane.index + slices);
  }

  pan(pane, x, y) {
    pane.panX += x;
    pane.panY += y;
  }

  zoom(pane, _x, y, here) {
    pane.zoomAt(Math.exp(-y / 150), here);
  }

  measure(pane, _x, _y, here) {
    const line = pane.lines.at(-1);
    if (line) line.to = pane.toPixel(here);
  }

  /** Begin a distance. */
  point(pane, pixel) {
    pane.lines.push({ index: pane.index, from: pixel, to: pixel });
  }

  /** The other planes through a pixel of this one. */
  cross(pane, pixel) {
    const { stack } = this.viewer;
    this.viewer.cross(stack.voxelAt(pane.plane, pane.index, ...pixel), pane);
  }

  key(pane, event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = event.shiftKey ? this.cursorKeys(pane)[event.key] : this.keys(pane)[event.key];
    if (!act) return;
    event.preventDefault();
    act();
    this.viewer.redrawAll();
  }

  keys(pane) {
    const { viewer } = this;
    const middle = [pane.width / 2, pane.height / 2];
    const by = (slices) => () => viewer.go(pane, pane.index + slices);
    const zoom = (factor) => () => pane.zoomAt(factor, middle);
    const numbered = Object.fromEntries(
      viewer.stack.info.windows.slice(0, 9).map((_, i) => [String(i + 1), () => viewer.choose(i)]),
    );
    return {
      ArrowUp: by(-1), ArrowLeft: by(-1), ArrowDown: by(1), ArrowRight: by(1),
      PageUp: by(-PAGE), PageDown: by(PAGE), Home: by(-pane.count), End: by(pane.count),
      "+": zoom(1.25), "=": zoom(1.25), "-": zoom(0.8),
      i: () => viewer.invert(), r: () => viewer.reset(), " ": () => viewer.cine(),
      m: () => this.keyMeasure(pane), x: () => pane.cursor && this.cross(pane, pane.cursor),
      Delete: () => pane.lines.pop(), ...numbered,
    };
  }

  /** Shift and arrows move a cross over the picture: for readings and distances without a mouse. */
  cursorKeys(pane) {
    const { viewer } = this;
    const by = (rows, columns) => () => {
      viewer.keyboardCursor = true;
      const [height, width] = viewer.stack.size(pane.plane);
      const [row, column] = pane.cursor ?? [Math.floor(height / 2), Math.floor(width / 2)];
      pane.cursor = [row + rows, column + columns].map(Math.round);
      if (this.drawing) this.drawing.to = pane.cursor;
    };
    return { ArrowUp: by(-1, 0), ArrowDown: by(1, 0), ArrowLeft: by(0, -1), ArrowRight: by(0, 1) };
  }

  /** The first m begins a distance at the cross, the second ends it. */
  keyMeasure(pane) {
    if (this.drawing) {
      this.drawing = null;
      return;
    }
    if (!pane.cursor) return;
    this.point(pane, pane.cursor);
    this.drawing = pane.lines.at(-1);
  }
}

/** Where a pointer is, in CSS pixels of its canvas. */
function at(event) {
  return [event.offsetX, event.offsetY];
}
