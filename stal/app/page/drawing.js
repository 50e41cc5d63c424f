/** Drawing a scene in several modes at once, and following it to its end. */

import { layoutOf, weightsOf } from "./scene.js";

/**
 * @typedef {import("./scene.js").Mode} Mode
 * @typedef {import("./scene.js").Scene} Scene
 *
 * @typedef {object} Picture
 * @property {"waiting" | "drawing" | "done" | "failed" | "cancelled"} status
 * @property {number} step
 * @property {number} steps
 * @property {string | null} preview  a data address
 * @property {Blob | null} blob  the PNG with its settings
 * @property {string | null} url  of the blob
 * @property {string | null} id  of the drawing
 * @property {string} message
 *
 * @typedef {Partial<Record<Mode, Picture>>} Pictures
 */

/** @type {Picture} */
const WAITING = {
  status: "waiting",
  step: 0,
  steps: 0,
  preview: null,
  blob: null,
  url: null,
  id: null,
  message: "Waiting",
};

/**
 * @param {Blob} blob
 * @param {string | null} id
 * @param {string} message
 * @returns {Picture}
 */
export function finished(blob, id, message) {
  return { ...WAITING, status: "done", blob, url: URL.createObjectURL(blob), id, message };
}

/**
 * @param {object} parts
 * @param {import("./api.js").Api} parts.api
 * @param {import("./store.js").Observable<Pictures>} parts.pictures
 * @param {(scene: Scene, drawn: Pictures) => void} parts.onDone
 * @param {(error: unknown) => void} parts.fail
 */
export function createDrawer({ api, pictures, onDone, fail }) {
  let stopper = new AbortController();
  /** @type {Set<string>} */
  const running = new Set();

  /**
   * @param {Mode} mode
   * @param {Partial<Picture>} patch
   */
  function show(mode, patch) {
    pictures.set({ [mode]: { ...WAITING, ...pictures.get()[mode], ...patch } });
  }

  /**
   * @param {Scene} scene
   * @param {Mode} mode
   * @param {AbortSignal} signal
   */
  async function follow(scene, mode, signal) {
    const { id } = await api.draw(request(scene, mode));
    running.add(id);
    try {
      if (signal.aborted) await api.cancel(id);
      signal.throwIfAborted();
      for await (const { event, data } of api.events(id, signal)) {
        if (event === "queued") show(mode, { message: waits(data.position) });
        if (event === "step") show(mode, stepped(pictures.get()[mode], data));
        if (event === "error") throw new Error(data.message);
        if (event === "cancelled") throw new Error("Cancelled");
        if (event === "done") {
          const seconds = `${data.seconds.toFixed(1)} s`;
          const message = [seconds, ...data.warnings].join(". ");
          show(mode, finished(await api.picture(id), id, message));
        }
      }
    } finally {
      running.delete(id);
    }
  }

  /**
   * @param {Scene} scene
   * @param {Mode} mode
   * @param {AbortSignal} signal
   */
  async function draw(scene, mode, signal) {
    show(mode, { ...WAITING, url: pictures.get()[mode]?.url, blob: null });
    try {
      await follow(scene, mode, signal);
    } catch (error) {
      if (signal.aborted) return;
      show(mode, { status: "failed", preview: null, message: "Not drawn" });
      fail(error);
    }
  }

  function cancel() {
    stopper.abort();
    for (const id of running) api.cancel(id).catch(() => {});
    running.clear();
    for (const [mode, picture] of Object.entries(pictures.get())) {
      if (picture?.status !== "waiting" && picture?.status !== "drawing") continue;
      show(/** @type {Mode} */ (mode), { status: "cancelled", preview: null, message: "Cancelled" });
    }
  }

  return {
    cancel,
    /**
     * @param {Scene} scene
     * @param {Mode[]} modes
     */
    async draw(scene, modes) {
      cancel();
      stopper = new AbortController();
      const { signal } = stopper;
      await Promise.all(modes.map((mode) => draw(scene, mode, signal)));
      const drawn = Object.entries(pictures.get()).filter(
        ([mode, picture]) => modes.includes(/** @type {Mode} */ (mode)) && picture?.status === "done",
      );
      if (!signal.aborted && drawn.length) onDone(scene, Object.fromEntries(drawn));
    },
  };
}

/** @param {Pictures} pictures */
export function isRunning(pictures) {
  return Object.values(pictures).some(
    (picture) => picture?.status === "waiting" || picture?.status === "drawing",
  );
}

/**
 * A step is told when it is done, and once more when its preview is made, which may be later than
 * the next step.
 * @param {Picture | undefined} picture
 * @param {{step: number, steps: number, preview: string | null}} told
 * @returns {Partial<Picture>}
 */
function stepped(picture, { step, steps, preview }) {
  const latest = Math.max(step, picture?.step ?? 0);
  const seen = preview ?? picture?.preview ?? null;
  return { status: "drawing", message: "", step: latest, steps, preview: seen };
}

/**
 * @param {Scene} scene
 * @param {Mode} mode
 */
function request(scene, mode) {
  return {
    prompt: scene.prompt,
    layout: layoutOf(scene),
    attention: mode,
    weights: weightsOf(scene, mode),
    negative_prompt: scene.negative,
    seed: scene.seed,
    steps: scene.steps,
    sampler: scene.sampler || null,
    guidance_scale: scene.guidance,
    width: scene.width,
    height: scene.height,
    previews: true,
  };
}

/** @param {number} position */
function waits(position) {
  return position > 0 ? `Waiting, ${position} before it` : "Waiting";
}
