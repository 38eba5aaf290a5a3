// Leads from one view to the next.
import { getProgress, getStudy, withdraw } from "./api.js";
import { byId, showError, showView } from "./dom.js";
import { showItem, wireItem } from "./item.js";
import { code, key } from "./memory.js";
import { showReady, showStart, wireStart } from "./start.js";
import { wireZoom } from "./zoom.js";

let study = null, progress = null;

async function open() {
  showError("");
  try {
    study = await getStudy();
  } catch (error) {
    showBlocked(error.message);
    return;
  }
  key.keep();
  document.title = study.title;
  byId("title").textContent = study.title;
  const known = code.get(study.study_id);
  if (!known) {
    showStart(study);
    return;
  }
  try {
    await goOn(await getProgress(known));
  } catch (error) {
    if (error.code === "unknown") startAgain(error.message, known);
    else showBlocked(error.message);
  }
}

function showBlocked(text) {
  byId("blocked-text").textContent = text;
  showView("blocked", byId("blocked-title"));
}

// The code stays in its field: the server may have been started with another store by mistake.
function startAgain(text, known) {
  code.set(study.study_id, "");
  showStart(study);
  byId("code").value = known;
  showError(text);
}

async function goOn(next) {
  progress = next;
  code.set(study.study_id, next.code);
  if (next.question) {
    await showItem(study, next, advance);
    return;
  }
  byId("count").textContent = `${next.done} of ${next.total}`;
  byId("bar").max = next.total;
  byId("bar").value = next.done;
  byId("finished-text").textContent = next.total === 1 ? "Your answer is saved." : `All ${next.total} answers are saved.`;
  byId("finished-code").textContent = next.code;
  byId("foot-code").textContent = next.code;
  showView("finished", byId("finished-title"));
}

// After a choice: to the next item, or with a refusal to where the server says that the person is.
async function advance(next, error) {
  if (!error) {
    await goOn(next);
  } else if (error.code === "unknown") {
    startAgain(error.message, progress.code);
  } else if (error.code === "answered" || error.code === "stale") {
    await goOn(await getProgress(progress.code));
    showError(error.message);
  } else {
    showError(error.message);  // the choice stays on the page, to be sent again
  }
}

wireItem();
wireZoom();
wireStart({
  study: () => study,
  // Another tab may have joined meanwhile: one person must not take part twice.
  known: () => code.get(study.study_id),
  open,
  joined: (next) => {
    progress = next;
    code.set(study.study_id, next.code);
    showReady(study, next.code);
  },
  returned: goOn,
  begin: async () => {
    try { await goOn(progress); } catch (error) { showError(error.message); }
  },
});
byId("error-close").addEventListener("click", () => showError(""));
byId("again").addEventListener("click", open);
byId("left-back").addEventListener("click", open);
byId("leave").addEventListener("click", () => {
  byId("left-code").textContent = progress.code;
  code.set(study.study_id, "");
  byId("withdraw-box").hidden = true;
  byId("withdraw").setAttribute("aria-expanded", "false");
  showError("");
  showView("left", byId("left-title"));
});
byId("withdraw").addEventListener("click", () => {
  byId("withdraw-box").hidden = !byId("withdraw-box").hidden;
  byId("withdraw").setAttribute("aria-expanded", String(!byId("withdraw-box").hidden));
});
byId("withdraw-yes").addEventListener("click", async () => {
  try {
    await withdraw(progress.code, study.study_id);
    showView("withdrawn", byId("withdrawn-title"));
  } catch (error) { showError(error.message); }
});
// A link with another key, opened in the same tab, changes the fragment alone.
window.addEventListener("hashchange", open);
await open();
document.documentElement.dataset.ready = "yes";
