/** The pictures of this visit, newest first; to choose one brings back all that made it. */

import { el } from "./dom.js";
import { sourceOf } from "./pictures.js";

/**
 * @typedef {import("./scene.js").Scene} Scene
 * @typedef {import("./drawing.js").Pictures} Pictures
 * @typedef {{scene: Scene, pictures: Pictures}} Visited
 */

const MOST = 60;

/**
 * @param {object} parts
 * @param {HTMLElement} parts.list
 * @param {(visited: Visited) => void} parts.onChoose
 */
export function createVisit({ list, onChoose }) {
  return {
    /** @param {Visited} visited */
    add(visited) {
      const { scene, pictures } = visited;
      const best = pictures["spatial-temporal"] ?? pictures.spatial ?? pictures.plain;
      const image = el("img", { src: sourceOf(best), alt: "", draggable: "false" });
      const label = `${scene.prompt}, seed ${scene.seed}`;
      const click = () => onChoose(visited);
      const button = el("button", { type: "button", title: label, "aria-label": label, click }, image);
      list.prepend(el("li", {}, button));
      while (list.children.length > MOST) list.lastElementChild?.remove();
      const section = list.closest("section");
      if (section) section.hidden = false;
    },
  };
}
