// One plane of a volume on one canvas: picture, letters, scale bar, readings, outlines, distances.
// Pixels of the picture are (row, column) with centres at whole numbers; the screen is in CSS pixels.

import { say } from "./words.js";

const INK = "#b9d3ea";
const EVIDENCE = "#ffc400";
const MEASURE = "#5ee6a8";

export class Pane {
  constructor(viewer, plane) {
    this.viewer = viewer;
    this.plane = plane;
    this.stack = viewer.stack;
    this.box = document.createElement("div");
    this.box.className = "cr-pane";
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.box.append(this.canvas);
    this.context = this.canvas.getContext("2d", { alpha: false });
    const [rows, columns] = this.stack.size(plane);
    this.image = new ImageData(columns, rows);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.buffer = document.createElement("canvas");
    [this.buffer.width, this.buffer.height] = [columns, rows];
    this.bufferContext = this.buffer.getContext("2d", { alpha: false });
    this.index = Math.floor(this.count / 2);
    this.lines = []; // distances: {index, from, to}
    this.cursor = null; // (row, column) under the pointer
    this.reset();
  }

  get count() {
    return this.stack.count(this.plane.axes[0]);
  }

  reset() {
    [this.zoom, this.panX, this.panY] = [1, 0, 0];
    this.lines = [];
  }

  show(index) {
    this.index = Math.min(Math.max(Math.round(index), 0), this.count - 1);
  }

  /** CSS pixels for one mm. */
  get scale() {
    const [rows, columns] = this.stack.size(this.plane);
    const [, down, across] = this.plane.mm;
    return this.zoom * Math.min(this.width / (columns * across), this.height / (rows * down));
  }

  toScreen([row, column]) {
    const [rows, columns] = this.stack.size(this.plane);
    const [, down, across] = this.plane.mm;
    return [
      this.width / 2 + this.panX + (column + 0.5 - columns / 2) * across * this.scale,
      this.height / 2 + this.panY + (row + 0.5 - rows / 2) * down * this.scale,
    ];
  }

  toPixel([x, y]) {
    const [rows, columns] = this.stack.size(this.plane);
    const [, down, across] = this.plane.mm;
    return [
      (y - this.height / 2 - this.panY) / (down * this.scale) + rows / 2 - 0.5,
      (x - this.width / 2 - this.panX) / (across * this.scale) + columns / 2 - 0.5,
    ];
  }

  /** Zoom by a factor, keeping what lies under (x, y) where it is. */
  zoomAt(factor, [x, y]) {
    const zoom = Math.min(Math.max(this.zoom * factor, 0.5), 20);
    const change = zoom / this.zoom;
    this.panX = x - this.width / 2 - (x - this.width / 2 - this.panX) * change;
    this.panY = y - this.height / 2 - (y - this.height / 2 - this.panY) * change;
    this.zoom = zoom;
  }

  /** Fit the canvas to its box, in the screen's own pixels. */
  resize() {
    [this.width, this.height] = [this.box.clientWidth, this.box.clientHeight];
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(Math.round(this.width * ratio), 1);
    this.canvas.height = Math.max(Math.round(this.height * ratio), 1);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  draw() {
    if (!this.width) return;
    const { context } = this;
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.width, this.height);
    if (this.stack.ready(this.plane.axes[0], this.index)) this.drawPicture();
    else this.write(say("loading"), this.width / 2, this.height / 2, "center");
    this.drawOutlines();
    this.drawCrossings();
    this.drawLines();
    this.drawWords();
    this.drawBar();
  }

  drawPicture() {
    const { viewer, plane, index } = this;
    const made = [index, viewer.tableNumber, plane.axes[0] === 0 ? 0 : this.stack.numThere].join();
    if (made !== this.made) {
      this.stack.draw(plane, index, viewer.table, this.pixels);
      this.bufferContext.putImageData(this.image, 0, 0);
      this.made = made; // a moved crossing line needs no new picture
    }
    const [left, top] = this.toScreen([-0.5, -0.5]);
    const [rows, columns] = this.stack.size(this.plane);
    const [right, bottom] = this.toScreen([rows - 0.5, columns - 0.5]);
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(this.buffer, left, top, right - left, bottom - top);
  }

  /** Evidence of this slice: boxes in pixels of the stored slice. */
  drawOutlines() {
    if (this.plane.axes[0] !== 0) return;
    const { context } = this;
    const { stride } = this.stack.info;
    for (const { slice, box, label, chosen } of this.viewer.evidence) {
      if (slice !== this.index || !box) continue;
      const voxel = (x, y) => [slice, y / stride - 0.5, x / stride - 0.5];
      const [x0, y0] = this.toScreen(this.stack.pixelOf(this.plane, voxel(box[0], box[1])));
      const [x1, y1] = this.toScreen(this.stack.pixelOf(this.plane, voxel(box[2], box[3])));
      const [left, top] = [Math.min(x0, x1), Math.min(y0, y1)];
      context.lineWidth = chosen ? 2.5 : 1.25;
      context.strokeStyle = EVIDENCE;
      context.setLineDash(chosen ? [] : [5, 4]);
      context.strokeRect(left, top, Math.abs(x1 - x0), Math.abs(y1 - y0));
      context.setLineDash([]);
      this.write(label, left, Math.max(top - 8, 30), "left", EVIDENCE);
    }
  }

  /** Where the other panes on the screen cut this one. */
  drawCrossings() {
    const { context } = this;
    context.strokeStyle = "rgba(120, 190, 255, 0.45)";
    context.lineWidth = 1;
    for (const other of this.viewer.shownPanes) {
      if (other === this) continue;
      const voxel = [0, 0, 0];
      voxel[other.plane.axes[0]] = other.index;
      const [row, column] = this.stack.pixelOf(this.plane, voxel);
      const [x, y] = this.toScreen([row, column]);
      context.beginPath();
      if (other.plane.axes[0] === this.plane.axes[1]) {
        context.moveTo(0, y);
        context.lineTo(this.width, y);
      } else {
        context.moveTo(x, 0);
        context.lineTo(x, this.height);
      }
      context.stroke();
    }
  }

  drawLines() {
    const { context } = this;
    for (const line of this.lines) {
      if (line.index !== this.index) continue;
      const [from, to] = [this.toScreen(line.from), this.toScreen(line.to)];
      context.strokeStyle = MEASURE;
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
      for (const [x, y] of [from, to]) context.strokeRect(x - 2.5, y - 2.5, 5, 5);
      this.write(`${this.length(line).toFixed(1)} mm`, to[0] + 8, to[1] - 6, "left", MEASURE);
    }
    if (this.cursor && this.viewer.keyboardCursor) {
      const [x, y] = this.toScreen(this.cursor);
      context.strokeStyle = MEASURE;
      context.beginPath();
      context.moveTo(x - 8, y);
      context.lineTo(x + 8, y);
      context.moveTo(x, y - 8);
      context.lineTo(x, y + 8);
      context.stroke();
    }
  }

  /** mm between the ends of a distance. */
  length(line) {
    const ends = [line.from, line.to].map(([row, column]) =>
      this.stack.place(this.stack.voxelAt(this.plane, line.index, row, column)),
    );
    return Math.hypot(...ends[0].map((v, axis) => v - ends[1][axis]));
  }

  drawWords() {
    const { viewer, plane, width, height } = this;
    const [left, right, upper, lower] = plane.letters;
    this.write(left, 8, height / 2, "left");
    this.write(right, width - 8, height / 2, "right");
    this.write(upper, width / 2, width < 360 ? 32 : 14, "center"); // below the slice number where it is narrow
    this.write(lower, width / 2, height - 12, "center");
    const place = this.placeWords();
    this.write(`${say(plane.name)} ${this.index + 1} / ${this.count}${place}`, 8, 14, "left");
    if (plane.axes[0] === 0 && viewer.stack.numThere < this.count) {
      this.write(`${Math.floor((100 * viewer.stack.numThere) / this.count)} %`, width - 8, 14, "right");
    }
    if (this !== viewer.shownPanes[0]) return;
    this.write(viewer.windowWords(), width - 8, height - 12, "right");
  }

  /** The slice's own coordinate: "  F 120.5 mm". */
  placeWords() {
    if (!this.stack.info.placed) return "";
    const [rows, columns] = this.stack.size(this.plane);
    const middle = this.stack.voxelAt(this.plane, this.index, rows / 2, columns / 2);
    const axis = { sagittal: 0, coronal: 1, axial: 2 }[this.plane.name];
    return `  ${coordinate(this.stack.place(middle)[axis], axis)} mm`;
  }

  /** What is under the cursor: "−632 HU  L 23.1 P 40.2 F 120.0". */
  cursorWords() {
    if (!this.cursor) return "";
    const voxel = this.stack.voxelAt(this.plane, this.index, ...this.cursor);
    const value = this.stack.value(voxel);
    if (value === null) return "";
    const { info } = this.stack;
    const digits = info.slope === 1 ? 0 : 2;
    const words = `${value.toFixed(digits).replace("-", "−")} ${info.unit}`;
    if (!info.placed) return words;
    return `${words}   ${this.stack.place(voxel).map(coordinate).join(" ")}`;
  }

  /** A bar of a round length, and the cursor's reading above it. */
  drawBar() {
    const { context, height } = this;
    const mm = [200, 100, 50, 20, 10, 5, 2, 1].find((v) => v * this.scale < this.width / 4) ?? 1;
    const y = height - 14;
    context.strokeStyle = INK;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(8, y - 4);
    context.lineTo(8, y);
    context.lineTo(8 + mm * this.scale, y);
    context.lineTo(8 + mm * this.scale, y - 4);
    context.stroke();
    this.write(mm < 10 ? `${mm} mm` : `${mm / 10} cm`, 14 + mm * this.scale, y - 1, "left");
    this.write(this.cursorWords(), 8, y - 20, "left");
  }

  write(words, x, y, align, colour = INK) {
    if (!words) return;
    const { context } = this;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = align;
    context.textBaseline = "middle";
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0, 0, 0, 0.8)";
    context.strokeText(words, x, y);
    context.fillStyle = colour;
    context.fillText(words, x, y);
  }
}

/** A coordinate as clinicians say it: the side, then mm from the origin. */
function coordinate(mm, axis) {
  return `${["RL", "AP", "FH"][axis][mm < 0 ? 0 : 1]} ${Math.abs(mm).toFixed(1)}`;
}
