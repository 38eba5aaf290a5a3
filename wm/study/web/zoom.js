// An image as large as the window; the others follow in the same place, so that differences are seen.
import { byId, el } from "./dom.js";

let pages = [], index = 0;

export function openZoom(list, start) {
  pages = list;
  show(start);
  byId("zoom").showModal();
}

function show(position) {
  index = (position + pages.length) % pages.length;
  const [name, src] = pages[index];
  byId("zoom-name").textContent = name;
  const image = el("img", { src, alt: name === "Input" ? "Input image" : `Image of ${name.toLowerCase()}` });
  image.addEventListener("load", () => image.classList.toggle("sharp", image.naturalWidth <= 128));
  byId("zoom-image").replaceChildren(image);
}

export function wireZoom() {
  const zoom = byId("zoom");
  byId("zoom-previous").addEventListener("click", () => show(index - 1));
  byId("zoom-next").addEventListener("click", () => show(index + 1));
  byId("zoom-close").addEventListener("click", () => zoom.close());
  // A click beside the image closes it; on the image it shows the next one.
  zoom.addEventListener("click", (event) => {
    if (event.target.tagName === "IMG") show(index + 1);
    else if (!event.target.closest("button")) zoom.close();
  });
  zoom.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
    if (step) show(index + step);
    else if (digit && Number(digit[1]) < pages.length) show(Number(digit[1]));
    else return;
    event.preventDefault();
  });
}
