/** The prompt: its objects are placed while it is typed. */

import { byId, el, show } from "./dom.js";
import { disagreements, placed, reworded } from "./scene.js";

/**
 * @typedef {import("./api.js").About} About
 * @typedef {import("./scene.js").Scene} Scene
 */

const TYPING_MS = 400;
const MOST_SEED = 2 ** 31;
const EMPTY = { layout: { prompt: "", aspect: 1, objects: [], relations: [] }, warnings: [] };
const SHAPES = [
  "a red circle to the left of a blue square",
  "a yellow star above a purple ring",
  "a green triangle, a red cross and a blue circle on a black background",
];
const THINGS = [
  "a dog to the left of a bicycle",
  "three birds above a car, with a tree behind it",
  "a laptop on a desk, a cup of coffee to its right, a cat under the desk",
];

/**
 * Prompts whose words the model knows.
 * @param {About} about
 * @returns {string[]}
 */
export function examplesOf({ words }) {
  if (!words) return THINGS;
  const known = new Set(words);
  return SHAPES.filter((text) => (text.match(/\w+/g) ?? []).every((word) => known.has(word)));
}

/**
 * @param {object} parts
 * @param {import("./api.js").Api} parts.api
 * @param {About} parts.about
 * @param {ReturnType<typeof import("./store.js").undoable<Scene>>} parts.scene
 * @param {import("./store.js").Observable<import("./main.js").View>} parts.view
 * @param {(error: unknown) => void} parts.fail
 */
export function createPrompt({ api, about, scene, view, fail }) {
  const prompt = byId("prompt");
  let stopper = new AbortController();
  let timer = 0;
  let placing = Promise.resolve();
  let isPlacing = false;

  /**
   * Places the objects of the prompt.
   * @param {{keep: boolean, seed?: number | null}} how keep: those that were placed by hand
   * @returns {Promise<void>}
   */
  function place(how) {
    clearTimeout(timer);
    timer = 0;
    stopper.abort();
    stopper = new AbortController();
    isPlacing = true;
    placing = ask(how, stopper.signal);
    return placing;
  }

  /**
   * @param {{keep: boolean, seed?: number | null}} how
   * @param {AbortSignal} signal
   */
  async function ask({ keep, seed = null }, signal) {
    const { prompt: text, width, height } = scene.get();
    try {
      const found = text.trim() ? await api.layout({ prompt: text, width, height, seed }, signal) : EMPTY;
      if (signal.aborted) return;
      isPlacing = false;
      scene.change(placed(scene.get(), found.layout, { keep }), "prompt");
      view.set({ notice: found.warnings.join(" ") });
    } catch (error) {
      if (signal.aborted) return;
      isPlacing = false;
      fail(error);
    }
  }

  prompt.addEventListener("input", () => {
    scene.change({ ...scene.get(), prompt: prompt.value }, "prompt");
    clearTimeout(timer);
    timer = setTimeout(() => place({ keep: true }), TYPING_MS);
  });
  byId("replace").addEventListener("click", () => {
    place({ keep: false, seed: Math.floor(Math.random() * MOST_SEED) });
  });
  byId("reword").addEventListener("click", () => scene.change(reworded(scene.get())));
  byId("examples").append(
    ...examplesOf(about).map((text) => {
      const click = () => {
        scene.change({ ...scene.get(), prompt: text });
        place({ keep: false });
      };
      return el("button", { type: "button", class: "chip", click }, text);
    }),
  );
  byId("words-known").textContent = (about.words ?? []).join(" ");
  byId("vocabulary").hidden = !about.words;

  function update() {
    const now = scene.get();
    const said = disagreements(now);
    show(prompt, now.prompt);
    byId("disagreement").hidden = said.length === 0;
    byId("disagreements").textContent = said.join(" ");
  }
  scene.listen(update);
  update();

  return {
    /** Whether the prompt is newer than the objects. */
    isPending: () => timer !== 0 || isPlacing,
    /** When the objects are those of the prompt. */
    ready: () => (timer ? place({ keep: true }) : placing),
  };
}
