// The storyboard: a tree of frames. Frame 0 is the source; every other one is what an action made of its parent.
//
// A frame: {id, parent, action, image (data URL; null until replayed), verification, via, sum}. via says how to get it
// again: {kind: "edit", seed, best_of, index, model, settings} or {kind: "rollout", group, step, actions, seed, model, settings}
// (the frames of one rollout share their group and follow each other; actions: all of them). sum: a checksum of the image as it first came.

export class Storyboard {
  constructor(source) {
    this.frames = new Map([[0, { id: 0, parent: null, action: "", image: source, verification: {}, via: null, sum: null }]]);
    this.next = 1;
  }

  get(id) { return this.frames.get(id); }
  get all() { return [...this.frames.values()]; }
  children(id) { return this.all.filter((frame) => frame.parent === id); }
  waiting() { return this.all.filter((frame) => !frame.image); }

  // The new frame; the one that is there already if it came from the same candidate.
  add(parent, { action, image, verification = {}, via, sum = checksum(image) }) {
    const same = this.children(parent).find((frame) =>
      frame.action === action && frame.via.kind === via.kind && frame.via.seed === via.seed && frame.via.index === via.index &&
      frame.via.group === via.group && frame.image === image);
    if (same) return same;
    const frame = { id: this.next++, parent, action, image, verification, via, sum };
    this.frames.set(frame.id, frame);
    return frame;
  }

  // From the source to a frame, both included.
  path(id) {
    const frames = [];
    for (let frame = this.get(id); frame; frame = this.get(frame.parent)) frames.unshift(frame);
    return frames;
  }

  // A frame and all that follows from it.
  branch(id) { return [this.get(id), ...this.children(id).flatMap((child) => this.branch(child.id))]; }

  // Takes a branch away; what it returns puts it back.
  remove(id) {
    const taken = this.branch(id);
    taken.forEach((frame) => this.frames.delete(frame.id));
    return () => taken.forEach((frame) => this.frames.set(frame.id, frame));
  }

  // [{frame, row, column}], row by row: the first child continues in its parent's row, each further one begins a row.
  layout() {
    const places = [];
    let rows = 0;
    const place = (frame, row, column) => {
      places.push({ frame, row, column });
      this.children(frame.id).forEach((child, turn) => place(child, turn ? ++rows : row, column + 1));
    };
    place(this.get(0), 0, 0);
    return places.sort((a, b) => a.row - b.row || a.column - b.column);
  }
}

// CRC-32 (ISO 3309) of the text, 8 hexadecimal digits.
export function checksum(text) {
  let crc = ~0;
  for (let place = 0; place < text.length; place++) crc = TABLE[(crc ^ text.charCodeAt(place)) & 255] ^ (crc >>> 8);
  return ((~crc) >>> 0).toString(16).padStart(8, "0");
}

const TABLE = Int32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});
