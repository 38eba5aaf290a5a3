// Puts the parts together.
import { key } from "./api.js";
import { drawAsking, wireAsking } from "./asking.js";
import { drawBoard, drawTools, wireBoard } from "./board.js";
import { mark } from "./candidates.js";
import { drawComparing, readComparisons, wireComparing } from "./compare.js";
import { byId, showError } from "./dom.js";
import { drawShare, openAddress, wireShare } from "./share.js";
import { drawStart, offerExamples, wireStart } from "./start.js";
import { modelsFor, readModels, side, watch } from "./state.js";
import { drawStep, wireStep } from "./step.js";

function drawModels() {
  const names = (task) => modelsFor(task).map(({ id }) => id).join(", ");
  const family = modelsFor("fdm")[0]?.family;
  byId("models").textContent = side()
    ? `predicts: ${names("fdm")} · verifies: ${names("idm")} · ${family ? `${family}, ` : ""}${side()} × ${side()} px` : "";
}

async function greet() {
  try {
    await readModels();
    await readComparisons();
    await offerExamples();
  } catch (error) {
    showError(error.message);
    if (error.status === 401 || error.status === 403) byId("key-box").open = true;
  }
}

function wireKey() {
  const showStatus = () => { byId("key-status").textContent = key.get() ? "A key is set." : "No key is set."; };
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    key.set(byId("key").value.trim());
    byId("key").value = "";
    showStatus();
    showError("");
    await greet();
  });
  byId("key-forget").addEventListener("click", () => { key.set(""); showStatus(); });
  showStatus();
}

for (const draw of [drawStart, drawModels, drawStep, mark, drawComparing, drawBoard, drawTools, drawAsking, drawShare]) watch(draw);
for (const wire of [wireKey, wireStart, wireStep, wireComparing, wireBoard, wireAsking, wireShare]) wire();
byId("error-close").addEventListener("click", () => showError(""));
await openAddress();
document.documentElement.dataset.ready = "yes";
await greet();
