// Makes the frames of a link again: each asked of the server with the seed and settings that made it.
import { checksum } from "./tree.js";
import { predict, rollout } from "./predict.js";

// Fills in every frame that waits for its image, in order; onFrame(frame, isSame) after each, isSame null where the link
// holds nothing to compare with. A frame is asked for once its parent is there.
export async function replay(board, { onFrame, signal }) {
  for (const frame of board.waiting()) {
    const parent = board.get(frame.parent);
    if (frame.image || !parent?.image) continue;
    if (frame.via.kind === "edit") await again(frame, parent, onFrame, signal);
    else await allAgain(board, frame, parent, onFrame, signal);
  }
}

const request = ({ settings, seed, best_of, model }) => ({ ...settings, seed, ...(best_of ? { best_of } : {}), ...(model ? { model } : {}) });

async function again(frame, parent, onFrame, signal) {
  const { candidates } = await predict(parent.image, frame.action, request(frame.via), { signal });
  const candidate = candidates.find(({ verification }) => verification.index === frame.via.index) || candidates[0];
  fill(frame, candidate, onFrame);
}

// The frames of a rollout follow each other from the first one's parent.
async function allAgain(board, first, parent, onFrame, signal) {
  const chain = [first];
  for (;;) {
    const last = chain[chain.length - 1];
    const next = board.children(last.id).find(({ via }) => via.kind === "rollout" && via.group === first.via.group && via.step === last.via.step + 1);
    if (!next) break;
    chain.push(next);
  }
  const actions = first.via.actions || chain.map(({ action }) => action);
  const { steps } = await rollout(parent.image, actions, request(first.via), { signal });
  chain.forEach((frame, place) => fill(frame, steps[place], onFrame));
}

function fill(frame, { image, verification }, onFrame) {
  const isSame = frame.sum === null ? null : frame.sum === checksum(image);
  Object.assign(frame, { image, verification });
  onFrame(frame, isSame);
}
