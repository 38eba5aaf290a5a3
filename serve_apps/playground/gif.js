// An animated GIF (CompuServe, GIF89a): a palette for each frame, exact up to 256 colours, median cut beyond.

// frames: [{data: RGBA of width x height, delay_cs}] -> Uint8Array. Plays for ever.
export function encodeGif({ width, height, frames }) {
  const out = new Bytes();
  out.text("GIF89a");
  out.word(width);
  out.word(height);
  out.push(0x70, 0, 0); // no palette for all, 8 bits a colour
  out.push(0x21, 0xff, 11);
  out.text("NETSCAPE2.0");
  out.push(3, 1, 0, 0, 0); // repeat without end
  for (const { data, delay_cs } of frames) writeFrame(out, data, width, height, delay_cs);
  out.push(0x3b);
  return out.bytes();
}

function writeFrame(out, data, width, height, delay_cs) {
  const { palette, indices } = quantise(data);
  const bits = Math.max(1, Math.ceil(Math.log2(palette.length / 3)));
  out.push(0x21, 0xf9, 4, 0x04);
  out.word(delay_cs);
  out.push(0, 0);
  out.push(0x2c);
  for (const value of [0, 0, width, height]) out.word(value);
  out.push(0x80 | (bits - 1));
  for (let place = 0; place < 3 << bits; place++) out.push(palette[place] || 0);
  writeCodes(out, indices, Math.max(2, bits));
}

// The Bytes grow by doubling.
class Bytes {
  constructor() { this.data = new Uint8Array(1 << 16); this.length = 0; }
  push(...values) {
    if (this.length + values.length > this.data.length) {
      const larger = new Uint8Array(this.data.length * 2);
      larger.set(this.data);
      this.data = larger;
    }
    for (const value of values) this.data[this.length++] = value;
  }
  text(value) { this.push(...[...value].map((char) => char.charCodeAt(0))); }
  word(value) { this.push(value & 255, value >> 8); }
  bytes() { return this.data.slice(0, this.length); }
}

// LZW with codes that grow from minBits + 1 to 12 bits, in blocks of at most 255 bytes (GIF89a, appendix F).
function writeCodes(out, indices, minBits) {
  const clear = 1 << minBits, end = clear + 1, maxCode = 4096;
  let table = new Map(), next = end + 1, size = minBits + 1, held = 0, count = 0, block = [];
  const emit = (code) => {
    held |= code << count;
    for (count += size; count >= 8; count -= 8, held >>>= 8) {
      block.push(held & 255);
      if (block.length === 255) { out.push(255, ...block); block = []; }
    }
  };
  out.push(minBits);
  emit(clear);
  let prefix = indices[0];
  for (let place = 1; place < indices.length; place++) {
    const key = (prefix << 8) | indices[place], known = table.get(key);
    if (known !== undefined) { prefix = known; continue; }
    emit(prefix);
    prefix = indices[place];
    if (next === maxCode) {
      emit(clear);
      [table, next, size] = [new Map(), end + 1, minBits + 1];
      continue;
    }
    table.set(key, next);
    if (next++ === 1 << size) size++; // the reader's table is one entry behind
  }
  emit(prefix);
  emit(end);
  if (count) block.push(held & 255);
  if (block.length) out.push(block.length, ...block);
  out.push(0);
}

// {palette: [r, g, b, ...], indices: one a pixel}
export function quantise(data) {
  const exact = new Map(), indices = new Uint8Array(data.length / 4), palette = [];
  for (let place = 0; place < indices.length; place++) {
    const at = 4 * place, colour = (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
    let index = exact.get(colour);
    if (index === undefined) {
      if (exact.size === 256) return medianCut(data, indices);
      index = exact.size;
      exact.set(colour, index);
      palette.push(data[at], data[at + 1], data[at + 2]);
    }
    indices[place] = index;
  }
  return { palette, indices };
}

const BITS = 5, SHIFT = 8 - BITS;
const bin = (data, at) => ((data[at] >> SHIFT) << (2 * BITS)) | ((data[at + 1] >> SHIFT) << BITS) | (data[at + 2] >> SHIFT);

// Heckbert, 1982: the box with the widest range, weighted by its pixels, is cut at its median until there are 256; each
// becomes its pixels' mean. Colours count by their upper 5 bits, their means are of all 8.
function medianCut(data, indices) {
  const cells = 1 << (3 * BITS), counts = new Float64Array(cells), sums = new Float64Array(3 * cells);
  for (let at = 0; at < data.length; at += 4) {
    const cell = bin(data, at);
    counts[cell]++;
    for (let channel = 0; channel < 3; channel++) sums[3 * cell + channel] += data[at + channel];
  }
  const colours = [];
  for (let cell = 0; cell < cells; cell++) {
    if (counts[cell]) colours.push({ cell, count: counts[cell], rgb: [0, 1, 2].map((channel) => sums[3 * cell + channel] / counts[cell]) });
  }
  const boxes = [box(colours)];
  while (boxes.length < 256) {
    const widest = boxes.reduce((best, each) => (each.weight > best.weight ? each : best));
    if (!widest.weight) break;
    boxes.splice(boxes.indexOf(widest), 1, ...halves(widest));
  }
  const means = boxes.map(({ colours: members, count }) =>
    [0, 1, 2].map((channel) => members.reduce((sum, { rgb, count: share }) => sum + rgb[channel] * share, 0) / count));
  const nearest = new Uint8Array(cells);
  for (const { cell, rgb } of colours) nearest[cell] = closest(means, rgb);
  for (let place = 0; place < indices.length; place++) indices[place] = nearest[bin(data, 4 * place)];
  return { palette: means.flat().map(Math.round), indices };
}

function box(colours) {
  const ranges = [0, 1, 2].map((channel) => {
    let low = 255, high = 0;
    for (const { rgb } of colours) { low = Math.min(low, rgb[channel]); high = Math.max(high, rgb[channel]); }
    return high - low;
  });
  const range = Math.max(...ranges), count = colours.reduce((sum, each) => sum + each.count, 0);
  return { colours, count, channel: ranges.indexOf(range), weight: colours.length > 1 ? range * Math.sqrt(count) : 0 };
}

function halves({ colours, count, channel }) {
  const sorted = [...colours].sort((a, b) => a.rgb[channel] - b.rgb[channel]);
  let cut = 0, passed = 0;
  while (cut < sorted.length - 1 && passed < count / 2) passed += sorted[cut++].count;
  return [box(sorted.slice(0, Math.max(1, cut))), box(sorted.slice(Math.max(1, cut)))];
}

function closest(means, rgb) {
  let best = 0, minimum = Infinity;
  means.forEach((mean, index) => {
    const distance = (mean[0] - rgb[0]) ** 2 + (mean[1] - rgb[1]) ** 2 + (mean[2] - rgb[2]) ** 2;
    if (distance < minimum) { minimum = distance; best = index; }
  });
  return best;
}
