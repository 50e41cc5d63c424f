/** How to draw: size, seed, steps, sampler, guidance, and what not to draw. */

import { byId, el, show } from "./dom.js";

/**
 * @typedef {import("./scene.js").Scene} Scene
 * @typedef {import("./api.js").About} About
 */

const ASPECTS = ["1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16"];

/**
 * The size of an aspect that has about the model's own number of pixels.
 * @param {number} aspect width / height
 * @param {About} about
 * @returns {{width: number, height: number}}
 */
export function sizeOf(aspect, about) {
  const area = about.width * about.height;
  const side = (/** @type {number} */ pixels) =>
    Math.max(1, Math.round(pixels / about.unit)) * about.unit;
  return { width: side(Math.sqrt(area * aspect)), height: side(Math.sqrt(area / aspect)) };
}

/**
 * @param {object} parts
 * @param {ReturnType<typeof import("./store.js").undoable<Scene>>} parts.scene
 * @param {About} parts.about
 */
export function createSettings({ scene, about }) {
  const aspect = byId("aspect");
  const sampler = byId("sampler");
  aspect.append(...ASPECTS.map((name) => el("option", {}, name)), el("option", {}, "other"));
  sampler.append(
    el("option", { value: "" }, `${about.default_sampler} (the model's)`),
    ...about.samplers.map((name) => el("option", {}, name)),
  );
  byId("steps").max = about.limits.steps;

  aspect.addEventListener("change", () => {
    const [wide, high] = aspect.value.split(":").map(Number);
    if (high) scene.change({ ...scene.get(), ...sizeOf(wide / high, about) });
  });
  number("width", (value) => ({ width: toUnit(value, about.unit) }));
  number("height", (value) => ({ height: toUnit(value, about.unit) }));
  number("seed", (value) => ({ seed: Math.max(0, Math.floor(value)) }));
  number("steps", (value) => ({ steps: Math.max(1, Math.round(value)) }));
  number("guidance", (value) => ({ guidance: value }));
  byId("dice").addEventListener("click", () => {
    scene.change({ ...scene.get(), seed: Math.floor(Math.random() * 1e6) });
  });
  sampler.addEventListener("change", () => {
    scene.change({ ...scene.get(), sampler: sampler.value });
  });
  byId("negative").addEventListener("change", () => {
    scene.change({ ...scene.get(), negative: byId("negative").value });
  });

  /**
   * @param {string} id
   * @param {(value: number) => Partial<Scene>} patch
   */
  function number(id, patch) {
    const input = byId(id);
    input.addEventListener("change", () => {
      const value = Number(input.value);
      if (input.value !== "" && Number.isFinite(value)) {
        scene.change({ ...scene.get(), ...patch(value) });
      }
      input.value = scene.get()[/** @type {"seed"} */ (id)];
    });
  }

  function update() {
    const now = scene.get();
    for (const id of /** @type {const} */ (["width", "height", "seed", "steps", "guidance"])) {
      show(byId(id), now[id]);
    }
    show(byId("negative"), now.negative);
    show(sampler, now.sampler);
    const named = ASPECTS.find((name) => {
      const [wide, high] = name.split(":").map(Number);
      const { width, height } = sizeOf(wide / high, about);
      return width === now.width && height === now.height;
    });
    show(aspect, named ?? "other");
  }
  scene.listen(update);
  update();
}

/**
 * @param {number} value
 * @param {number} unit
 */
function toUnit(value, unit) {
  return Math.max(1, Math.round(value / unit)) * unit;
}
