// The voxels of one volume in the browser: fetched in slabs, nearest to where one looks first;
// cut into pictures along any axis. Knows no canvas and no words.

const BUSY = 3; // requests at a time

export class Stack {
  /** info: what the server's `describe` says; base: the address slabs are fetched below. */
  constructor(info, base) {
    this.info = info;
    this.base = base;
    const [slices, rows, columns] = info.shape;
    this.area = rows * columns;
    this.strides = [this.area, columns, 1];
    this.data = new Int16Array(slices * this.area);
    this.there = new Uint8Array(slices);
    this.numThere = 0;
    this.rowOf = rowsOfSteps(info.steps);
    this.closed = new AbortController();
  }

  /** Number of pictures along a voxel axis: stored slices, or places along the even grid. */
  count(axis) {
    return this.info.shape[axis];
  }

  get complete() {
    return this.numThere === this.info.shape[0];
  }

  /** Fetch everything: one slice first, then chunks around where `near()` says one looks. */
  async load(first, near, onSlices) {
    const { shape, chunk } = this.info;
    await this.fetchSlices(first, 1, onSlices);
    const waiting = new Set();
    for (let start = 0; start < shape[0]; start += chunk) waiting.add(start);
    const worker = async () => {
      while (waiting.size && !this.closed.signal.aborted) {
        const at = near();
        const away = (start) => Math.abs(start + (chunk - 1) / 2 - at);
        const next = [...waiting].reduce((a, b) => (away(b) < away(a) ? b : a));
        waiting.delete(next);
        await this.fetchSlices(next, Math.min(chunk, shape[0] - next), onSlices);
      }
    };
    await Promise.all(Array.from({ length: BUSY }, worker));
  }

  async fetchSlices(first, count, onSlices) {
    const url = `${this.base}/slab/${this.info.token}/${first}/${count}`;
    const reply = await fetch(url, { signal: this.closed.signal });
    if (!reply.ok) throw new Error(`slices ${first} to ${first + count - 1}: ${reply.status}`);
    this.data.set(new Int16Array(await reply.arrayBuffer()), first * this.area);
    for (let i = first; i < first + count; i++) {
      this.numThere += 1 - this.there[i];
      this.there[i] = 1;
    }
    onSlices(first, count);
  }

  close() {
    this.closed.abort();
  }

  /** Whether a picture can be drawn: of reformats, whether anything of them is there. */
  ready(axis, index) {
    return axis === 0 ? this.there[index] === 1 : this.numThere > 0;
  }

  /** Rows and columns of the pictures of a pane. */
  size(pane) {
    const length = (axis) => (axis === 0 ? this.rowOf.length : this.info.shape[axis]);
    return [length(pane.axes[1]), length(pane.axes[2])];
  }

  /**
   * Write one picture through a table (raw + 32768 -> 32-bit colour) into `out`.
   * What is not there, and the gap where slices are missing, stays black.
   */
  draw(pane, index, table, out) {
    const [rows, columns] = this.size(pane);
    const [depth, down, across] = pane.axes;
    const { data } = this;
    const start = depth === 0 ? index * this.area : index * this.strides[depth];
    const rowStarts = this.starts(down, pane.flips[0]);
    const columnStarts = this.starts(across, pane.flips[1]);
    let at = 0;
    for (let row = 0; row < rows; row++) {
      if (rowStarts[row] < 0) {
        out.fill(0xff000000, at, at + columns);
        at += columns;
        continue;
      }
      const begin = start + rowStarts[row];
      for (let column = 0; column < columns; column++) {
        const from = columnStarts[column];
        out[at++] = from < 0 ? 0xff000000 : table[data[begin + from] + 32768];
      }
    }
  }

  /** Offsets into the voxels of every row (or column) of a picture along an axis, -1 where none. */
  starts(axis, flipped) {
    const length = axis === 0 ? this.rowOf.length : this.info.shape[axis];
    const offsets = new Int32Array(length);
    for (let i = 0; i < length; i++) {
      const index = axis === 0 ? this.rowOf[i] : i;
      const empty = axis === 0 && (index < 0 || !this.there[index]);
      offsets[flipped ? length - 1 - i : i] = empty ? -1 : index * this.strides[axis];
    }
    return offsets;
  }

  /** (row, column) of a pane's picture, counted in pixels -> fractional voxel index; may lie outside. */
  voxelAt(pane, index, row, column) {
    const [rows, columns] = this.size(pane);
    const voxel = [0, 0, 0];
    voxel[pane.axes[0]] = index;
    voxel[pane.axes[1]] = pane.flips[0] ? rows - 1 - row : row;
    voxel[pane.axes[2]] = pane.flips[1] ? columns - 1 - column : column;
    if (pane.axes[0] !== 0) voxel[0] = this.sliceOfStep(voxel[0]);
    return voxel;
  }

  /** The inverse of `voxelAt`: where a voxel lies in a pane's picture. */
  pixelOf(pane, voxel) {
    const [rows, columns] = this.size(pane);
    const along = (axis) => (axis === 0 && pane.axes[0] !== 0 ? this.stepOf(voxel[0]) : voxel[axis]);
    const [row, column] = [along(pane.axes[1]), along(pane.axes[2])];
    return [pane.flips[0] ? rows - 1 - row : row, pane.flips[1] ? columns - 1 - column : column];
  }

  /** The value of a voxel in its unit, null outside or before it is there. */
  value(voxel) {
    const index = voxel.map(Math.round);
    if (index.some((v, axis) => v < 0 || v >= this.info.shape[axis])) return null;
    if (!this.there[index[0]]) return null;
    const raw = this.data[index[0] * this.area + index[1] * this.strides[1] + index[2]];
    return raw * this.info.slope + this.info.base;
  }

  /** LPS mm of a voxel, by the true places of the slices. */
  place(voxel) {
    const counted = [this.stepOf(voxel[0]), voxel[1], voxel[2]];
    return this.info.affine.map((row) => row[3] + row[0] * counted[0] + row[1] * counted[1] + row[2] * counted[2]);
  }

  stepOf(slice) {
    return interpolated(this.info.steps, slice);
  }

  sliceOfStep(step) {
    const { steps } = this.info;
    if (steps.length < 2) return 0;
    let low = 0;
    while (low < steps.length - 2 && steps[low + 1] <= step) low++;
    return low + (step - steps[low]) / (steps[low + 1] - steps[low]);
  }
}

/** For each place of an even grid the slice that lies there, -1 in a gap. */
export function rowsOfSteps(steps) {
  const rows = new Int32Array(Math.round(steps[steps.length - 1]) + 1).fill(-1);
  let slice = 0;
  for (let row = 0; row < rows.length; row++) {
    while (slice < steps.length - 1 && Math.abs(steps[slice + 1] - row) <= Math.abs(steps[slice] - row)) slice++;
    if (Math.abs(steps[slice] - row) <= 0.75) rows[row] = slice;
  }
  return rows;
}

function interpolated(values, at) {
  if (values.length < 2) return at;
  const low = Math.min(Math.max(Math.floor(at), 0), values.length - 2);
  return values[low] + (at - low) * (values[low + 1] - values[low]);
}
