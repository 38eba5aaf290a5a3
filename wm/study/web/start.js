// The pages before the first item: consent or a code, then the code and how to choose.
import { comeBack, join } from "./api.js";
import { byId, say, showError, showProse, showView } from "./dom.js";

export function showStart(study) {
  byId("start-title").textContent = study.title;
  byId("start-size").textContent = study.num_items === 1 ? "One comparison of images." : `${study.num_items} comparisons of images, one at a time.`;
  showProse(byId("consent"), study.consent);
  byId("code").value = "";
  showView("start", byId("start-title"));
}

export function showReady(study, code) {
  byId("ready-code").textContent = code;
  showProse(byId("ready-instructions"), study.instructions);
  showView("ready", byId("ready-title"));
}

// While one request is under way its form takes no second one.
async function once(form, work) {
  const button = form.querySelector("button[type=submit]");
  if (button.disabled) return;
  button.disabled = true;
  showError("");
  try { await work(); } catch (error) { showError(error.message); } finally { button.disabled = false; }
}

export function wireStart({ study, known, open, joined, returned, begin }) {
  byId("join").addEventListener("submit", (event) => {
    event.preventDefault();
    once(event.target, async () => {
      if (known()) await open();
      else joined(await join(study().study_id));
    });
  });
  byId("return").addEventListener("submit", (event) => {
    event.preventDefault();
    const code = byId("code").value.trim();
    once(event.target, async () => {
      if (!code) throw new Error("Please give your code.");
      await returned(await comeBack(code));
    });
  });
  byId("begin").addEventListener("click", begin);
  byId("copy").addEventListener("click", async () => {
    const code = byId("ready-code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      byId("copy").textContent = "Copied";
      say("The code is copied.");
    } catch {
      // Only pages of this machine and of https may write there: then it is selected, to be copied by hand.
      getSelection().selectAllChildren(code);
    }
  });
}
