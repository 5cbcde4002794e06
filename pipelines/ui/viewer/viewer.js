// The slice viewer: `mount(host)` builds it, `show(info)` gives it a volume.
// Everything here happens in the browser; the server is asked for voxels only.

import { colours } from "./grey.js";
import { Gestures } from "./gestures.js";
import { Pane } from "./pane.js";
import { Stack } from "./stack.js";
import { Toolbar } from "./toolbar.js";
import { element, onLanguage, say, word } from "./words.js";

const BASE = new URL(".", import.meta.url).href.replace(/\/$/, "");
const CINE_PER_S = 15;

export class Viewer {
  constructor(host) {
    this.host = host;
    host.classList.add("cr-viewer");
    host.setAttribute("role", "group");
    word(host, "viewer", "label");
    this.stack = null;
    this.evidence = [];
    this.panes = [];
    this.shownPanes = [];
    this.layout = "";
    this.inverted = false;
    this.tableNumber = 0;
    this.keyboardCursor = false;
    this.dirty = new Set();
    this.stage = element("div", "cr-stage");
    this.toolbar = new Toolbar(this);
    this.gestures = new Gestures(this);
    host.replaceChildren(this.toolbar.bar, this.stage, this.toolbar.foot);
    this.empty();
    new ResizeObserver(() => this.resize()).observe(this.stage);
    onLanguage(() => this.translated());
  }

  /** Draw a volume as the server's `describe` tells of it; or a {note} instead; null for none. */
  show(info) {
    if (info?.token && this.coming?.info.token === info.token) return;
    this.coming?.close();
    this.coming = info?.token ? new Stack(info, BASE) : null;
    if (!info?.token) return this.empty(info?.note);
    this.opened = performance.now();
    this.times = { first: null, all: null };
    const stack = this.coming;
    const first = info.start ?? Math.floor(info.shape[0] / 2);
    const near = () => (this.stack === stack ? this.place : first);
    stack
      .load(first, near, (start, count) => this.arrived(stack, first, start, count))
      .catch((error) => {
        if (error.name !== "AbortError") this.tell("lost");
      });
  }

  arrived(stack, first, start, count) {
    if (stack !== this.coming) return;
    if (stack !== this.stack) this.adopt(stack, first);
    this.times.first ??= performance.now() - this.opened;
    if (stack.complete) this.times.all ??= performance.now() - this.opened;
    for (const pane of this.shownPanes) {
      const own = pane.plane.axes[0] === 0;
      if (!own || stack.complete || (pane.index >= start && pane.index < start + count)) this.redraw(pane);
    }
    this.toolbar.loaded();
  }

  /** Its first slice is here: take the place of what was shown before. */
  adopt(stack, first) {
    const before = this.stack?.info;
    const kept = before && this.window && before.modality === stack.info.modality && before.start === undefined;
    this.stack?.close();
    this.stack = stack;
    this.evidence = [];
    const { info } = stack;
    if (!kept) this.inverted = info.inverted;
    this.window = { ...info.windows[info.window] };
    this.panes = info.panes.map((plane) => new Pane(this, plane));
    for (const pane of this.panes) this.gestures.watch(pane);
    this.main.show(first);
    this.makeTable();
    this.toolbar.volumeChanged();
    this.arrange(this.wanted ?? (this.stage.clientWidth > 620 ? "all" : ""));
  }

  empty(why = "nothing_open") {
    this.stack?.close();
    [this.stack, this.panes, this.shownPanes] = [null, [], []];
    this.tell(why);
    this.toolbar.volumeChanged();
  }

  translated() {
    this.toolbar.volumeChanged();
    this.toolbar.arranged();
    this.redrawAll();
  }

  tell(key) {
    this.stage.classList.add("cr-empty");
    this.stage.replaceChildren(word(element("p", "cr-note"), key));
    this.shownPanes = [];
  }

  /** The pane whose pictures are the stored slices. */
  get main() {
    return this.panes.find((pane) => pane.plane.axes[0] === 0);
  }

  /** The stored slice that one looks at. */
  get place() {
    return this.main?.index ?? 0;
  }

  /** The pane that keys and the slider move. */
  get active() {
    return this.shownPanes.includes(this.focused) ? this.focused : this.shownPanes[0];
  }

  /** "all" panes, or one by its plane's name; the stored plane where there is no such. */
  arrange(layout) {
    if (!this.stack) return;
    const one = this.panes.find((pane) => pane.plane.name === layout) ?? this.main;
    const all = layout === "all" && this.panes.length > 1;
    this.layout = all ? "all" : one.plane.name;
    this.shownPanes = all ? [this.main, ...this.panes.filter((pane) => pane !== this.main)] : [one];
    this.stage.classList.remove("cr-empty");
    this.stage.classList.toggle("cr-all", all);
    this.stage.replaceChildren(...this.shownPanes.map((pane) => pane.box));
    this.focused = this.shownPanes[0];
    this.resize();
    this.toolbar.arranged();
  }

  resize() {
    for (const pane of this.shownPanes) {
      pane.resize();
      pane.draw(); // at once: a resized canvas is empty
    }
  }

  /** Move a pane to a slice. */
  go(pane, index) {
    const before = pane.index;
    pane.show(index);
    if (pane.index === before) return;
    this.redrawAll();
    this.toolbar.moved();
  }

  /** Look at a piece of evidence: {slice, box, label, window}; the box is outlined. */
  look({ slice, box = null, label = "", window: name = null }) {
    if (!this.stack) return;
    for (const shown of this.evidence) {
      shown.chosen = shown.slice === slice && JSON.stringify(shown.box) === JSON.stringify(box);
    }
    if (box && !this.evidence.some((shown) => shown.chosen)) this.evidence.push({ slice, box, label, chosen: true });
    if (!this.shownPanes.includes(this.main)) this.arrange(this.main.plane.name);
    this.focused = this.main;
    if (name) this.choose(this.stack.info.windows.findIndex((w) => w.name === name && !w.file));
    this.main.show(slice);
    if (box) this.centre(slice, box);
    this.redrawAll();
    this.toolbar.arranged();
  }

  /** The other planes go through the middle of a box of a stored slice. */
  centre(slice, [x0, y0, x1, y1]) {
    const { stride } = this.stack.info;
    this.cross([slice, (y0 + y1) / 2 / stride - 0.5, (x0 + x1) / 2 / stride - 0.5], this.main);
  }

  /** Every pane but one goes through a voxel. */
  cross(voxel, except) {
    for (const pane of this.panes) {
      if (pane !== except) pane.show(voxel[pane.plane.axes[0]]);
    }
    this.redrawAll();
    this.toolbar.moved();
  }

  /** What is outlined on its slices, none of it chosen: [{slice, box, label}]. */
  mark(evidence) {
    this.evidence = evidence.map((shown) => ({ ...shown, chosen: false }));
    this.toolbar.marked();
    this.redrawAll();
  }

  /** Look through one of the volume's windows. */
  choose(number) {
    if (number < 0 || !this.stack) return;
    this.window = { ...this.stack.info.windows[number] };
    this.toolbar.windowChanged(number);
    this.makeTable();
  }

  /** Move and widen the window by a drag of so many CSS pixels. */
  drag(x, y) {
    if (this.window.function === "TABLE") return;
    const span = Math.max(this.window.width, 2 * this.stack.info.slope);
    const width = Math.max(this.window.width + (x * span) / 300, this.stack.info.slope);
    const fine = this.window.function === "SIGMOID" ? "SIGMOID" : "LINEAR_EXACT";
    this.window = { ...this.window, name: "", width, center: this.window.center + (y * span) / 300, function: fine };
    this.toolbar.windowChanged(-1);
    this.makeTable();
  }

  windowWords() {
    if (!this.window || this.window.function === "TABLE") return this.window?.name ?? "";
    const digits = this.stack.info.slope === 1 ? 0 : 2;
    const [width, center] = [this.window.width, this.window.center].map((v) => v.toFixed(digits).replace("-", "−"));
    return `W ${width}  L ${center}${this.inverted ? " ⇄" : ""}`;
  }

  invert() {
    this.inverted = !this.inverted;
    this.toolbar.inverted();
    this.makeTable();
  }

  reset() {
    if (!this.stack) return;
    this.inverted = this.stack.info.inverted;
    for (const pane of this.panes) pane.reset();
    this.toolbar.inverted();
    this.choose(this.stack.info.window);
  }

  makeTable() {
    this.table = colours(this.window, this.stack.info, this.inverted);
    this.tableNumber++;
    this.redrawAll();
  }

  /** Start or stop running through the active pane's slices. */
  cine() {
    if (this.running) {
      clearInterval(this.running);
      this.running = null;
    } else if (this.active) {
      const step = () => this.active && this.go(this.active, (this.active.index + 1) % this.active.count);
      this.running = setInterval(step, 1000 / CINE_PER_S);
    }
    this.toolbar.cine(Boolean(this.running));
  }

  redrawAll() {
    for (const pane of this.shownPanes) this.redraw(pane);
  }

  /** Once a frame, however often it is asked for. */
  redraw(pane) {
    if (!this.dirty.size) requestAnimationFrame(() => this.paint());
    this.dirty.add(pane);
  }

  paint() {
    const panes = [...this.dirty];
    this.dirty.clear();
    for (const pane of panes) if (this.shownPanes.includes(pane)) pane.draw();
  }
}

/** Build a viewer within an element; it is kept there as `host.viewer`. */
export function mount(host) {
  const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: `${BASE}/viewer.css` });
  document.head.append(style);
  host.viewer = new Viewer(host);
  return host.viewer;
}
