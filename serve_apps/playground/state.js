// What the parts of the page share: the storyboard, the current frame, the models served, the work in progress.
import { get, Refused } from "./api.js";
import { showError } from "./dom.js";

// isCopy: the source is a smaller copy, from a link; differing: names of replayed frames that are not what was shared.
export const state = { board: null, current: 0, models: [], suggestions: [], isCopy: false, differing: [], busy: null };

const watchers = [];
export const watch = (then) => { watchers.push(then); };
export const changed = () => watchers.forEach((then) => then());

export const frame = () => state.board?.get(state.current);
// "Step 2: the action", with a number behind where several steps are called so.
export const nameOf = (id) => {
  const { board } = state, { action } = board.get(id), depth = board.path(id).length;
  if (depth === 1) return "Source";
  const same = board.all.filter((frame) => frame.action === action && board.path(frame.id).length === depth);
  const turn = same.length > 1 ? ` (${same.findIndex((frame) => frame.id === id) + 1})` : "";
  return `Step ${depth - 1}: ${action}${turn}`;
};

// Another storyboard; work on the one before it ends.
export function begin(board, { current = 0, suggestions = [], isCopy = false } = {}) {
  state.busy?.stop();
  Object.assign(state, { board, current, suggestions, isCopy, differing: [] });
  changed();
}

export function select(id) {
  state.current = id;
  changed();
}

// One piece of work at a time; it is given a signal and what goes wrong is shown. Returns whether it was done.
export async function work(what, job) {
  if (state.busy) return false;
  const busy = new AbortController();
  state.busy = { what, stop: () => busy.abort() };
  showError("");
  changed();
  try {
    await job(busy.signal);
    return true;
  } catch (error) {
    if (busy.signal.aborted) return false;
    if (!(error instanceof Refused) && error.constructor !== Error) console.error(error);
    showError(error.message || String(error));
    return false;
  } finally {
    state.busy = null;
    changed();
  }
}

// The models by the task they do; an entry's task is "fdm" (predicts) or "idm" (verifies, says what happened).
export async function readModels() {
  const { data } = await get("v1/models");
  state.models = Array.isArray(data) ? data : [];
  changed();
}

export const modelsFor = (task) => state.models.filter((model) => (model.task || model.id) === task);
export const side = () => modelsFor("fdm").find((model) => model.side_px > 0)?.side_px || null;
