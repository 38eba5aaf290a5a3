// What this device remembers: the code of the person, and the key of the invitation. No cookie, nothing else.
const KEY = "wm-study-key";
const codeName = (studyId) => `wm-study-code-${studyId}`;

function read(name) {
  try { return localStorage.getItem(name) || ""; } catch { return ""; }
}

// A private window may refuse: then the page works until it is closed.
function write(name, value) {
  try { if (value) localStorage.setItem(name, value); else localStorage.removeItem(name); } catch { /* as above */ }
}

export const key = {
  // The link of the invitation has it behind the #, which no server is sent.
  get: () => fragment() || read(KEY),
  keep: () => { if (fragment()) write(KEY, fragment()); },
};

// Mail programs take the quote or full stop after a link for a part of it; no key has one.
function fragment() {
  try { return decodeURIComponent(location.hash.slice(1)).replace(/[^A-Za-z0-9_-]/g, ""); } catch { return ""; }
}

export const code = {
  get: (studyId) => read(codeName(studyId)),
  set: (studyId, value) => write(codeName(studyId), value),
};
