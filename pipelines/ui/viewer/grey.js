// Raw 16-bit values -> screen colours, by one table of 65,536 entries for a window (PS3.3 C.11.2.1).
// The same formulas as `encoders.dicom.display.Voi`; a test compares the two.

/** Grey of one value, 0 to 1. */
function unit(window, value) {
  const { center, width } = window;
  const x = value - center;
  if (window.function === "SIGMOID") return 1 / (1 + Math.exp(Math.min(Math.max((-4 * x) / width, -80), 80)));
  if (window.function === "LINEAR" && width === 1) return x > -0.5 ? 1 : 0;
  const share = window.function === "LINEAR" ? (x + 0.5) / (width - 1) + 0.5 : x / width + 0.5;
  return Math.min(Math.max(share, 0), 1);
}

/** Uint32 colours for raw -32768 to 32767; padding is black, inverted or not. */
export function colours(window, info, inverted) {
  const table = new Uint32Array(65536);
  const lut = window.function === "TABLE" ? Uint8Array.from(atob(window.table), (c) => c.charCodeAt(0)) : null;
  for (let entry = 0; entry < 65536; entry++) {
    const value = (entry - 32768) * info.slope + info.base;
    let grey = lut
      ? lut[Math.min(Math.max(Math.round(value) - window.first, 0), lut.length - 1)]
      : Math.round(255 * unit(window, value));
    if (inverted) grey = 255 - grey;
    table[entry] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  for (const [low, high] of info.padding) {
    const [first, last] = [Math.max(Math.ceil(low), -32768), Math.min(Math.floor(high), 32767)];
    if (first <= last) table.fill(0xff000000, first + 32768, last + 32769);
  }
  return table;
}
