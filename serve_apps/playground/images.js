// Images in and out of files, and their pixels.
const MAX_BYTES = 60_000_000, MAX_SIDE = 1024;

const surface = (width, height) => {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = "#fff"; // what is transparent becomes white, as on the server
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  return { canvas, context };
};

// A data URL (PNG) of the middle square of a file's image, scaled to side px as the server would: what is seen is what
// is sent. side null: as it is, at most MAX_SIDE.
export async function readImage(blob, side) {
  if (blob.size > MAX_BYTES) throw new Error(`This image has ${Math.round(blob.size / 1e6)} MB; at most ${MAX_BYTES / 1e6} are read.`);
  let bitmap;
  try { bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" }); } catch {
    throw new Error(`${blob.name ? `“${blob.name}”` : "This"} is no image that the browser can read.`);
  }
  return square(bitmap, bitmap.width, bitmap.height, side);
}

// The server scales the short side to its size and cuts the middle out of whole pixels (wm.images.fit_square).
function square(source, width, height, side) {
  const edge = Math.min(width, height), target = side || Math.min(edge, MAX_SIDE);
  const cut = (length) => {
    const scaled = Math.max(target, Math.round((length * target) / edge)), unit = length / scaled;
    return { start: Math.floor((scaled - target) / 2) * unit, span: target * unit };
  };
  let remaining = source, across = cut(width), down = cut(height);
  while (Math.min(across.span, down.span) > 2 * target) { // by halves: one large step would leave pixels out
    const halves = [across, down].map(({ span }) => Math.ceil(span / 2)), half = surface(...halves);
    half.context.drawImage(remaining, across.start, down.start, across.span, down.span, 0, 0, ...halves);
    remaining = half.canvas;
    [across, down] = halves.map((span) => ({ start: 0, span }));
  }
  const { canvas, context } = surface(target, target);
  context.drawImage(remaining, across.start, down.start, across.span, down.span, 0, 0, target, target);
  return canvas.toDataURL("image/png");
}

export async function decoded(url) {
  const image = new Image();
  image.src = url;
  try { await image.decode(); } catch { throw new Error("An image cannot be read."); }
  return image;
}

// A smaller copy whose data URL has at most so many characters, for a link; null if none has.
export async function smallCopy(url, maxChars) {
  const image = await decoded(url);
  for (let side = image.naturalWidth; side >= 32; side = Math.round(side / 1.5)) {
    const { canvas, context } = surface(side, side);
    context.drawImage(image, 0, 0, side, side);
    for (const quality of [0.9, 0.7, 0.5]) {
      const webp = canvas.toDataURL("image/webp", quality); // a browser that writes none gives PNG
      const compressed = webp.startsWith("data:image/webp") ? webp : canvas.toDataURL("image/jpeg", quality);
      if (compressed.length <= maxChars) return compressed;
    }
  }
  return null;
}

// ImageData of a frame, size px wide and high, with a caption below it if one is given (its height: captionHeight).
export async function drawFrame(url, size, caption) {
  const image = await decoded(url), below = caption === null ? 0 : captionHeight(size);
  const { canvas, context } = surface(size, size + below);
  context.imageSmoothingEnabled = image.naturalWidth > 128;
  context.drawImage(image, 0, 0, size, size);
  if (below) writeCaption(context, caption, size, below);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

const captionHeight = (size) => Math.max(28, Math.round(size * 0.16));

function writeCaption(context, text, size, below) {
  const height = Math.round(below * 0.34), middle = size + below / 2;
  Object.assign(context, { fillStyle: "#1c2024", font: `600 ${height}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle" });
  const lines = wrapped(context, text, size - height);
  lines.forEach((line, turn) => context.fillText(line, size / 2, middle + (turn - (lines.length - 1) / 2) * height * 1.2));
}

// Two lines at most; what is left over ends in an ellipsis.
function wrapped(context, text, width) {
  const fits = (line) => context.measureText(line).width <= width, lines = [""];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    const line = lines[lines.length - 1], longer = line ? `${line} ${word}` : word;
    if (fits(longer) || !line) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  const shown = lines.slice(0, 2);
  if (lines.length > 2) shown[1] += " …";
  return shown.map((line) => {
    let cut = line;
    while (!fits(cut) && cut.length > 1) cut = `${cut.replace(/ ?…$/, "").slice(0, -1)}…`;
    return cut;
  });
}
