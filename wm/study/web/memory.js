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
  get: () => decode(location.hash.slice(1)) || read(KEY),
  keep: () => { if (location.hash.length > 1) write(KEY, decode(location.hash.slice(1))); },
};

function decode(text) {
  try { return decodeURIComponent(text); } catch { return ""; }
}

export const code = {
  get: (studyId) => read(codeName(studyId)),
  set: (studyId, value) => write(codeName(studyId), value),
};
