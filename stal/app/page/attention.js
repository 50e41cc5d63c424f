/** Where the picture on the canvas looked at a word: a heat map over it. */

import { sentence } from "./api.js";
import { el } from "./dom.js";

/** From little to much attention: red, green, blue. */
const HEAT = [
  [20, 11, 52],
  [124, 29, 109],
  [213, 68, 71],
  [251, 155, 6],
  [252, 255, 164],
];
const MOST_OPAQUE = 0.85;

/**
 * @param {object} parts
 * @param {import("./api.js").Api} parts.api
 * @param {HTMLElement} parts.words
 * @param {HTMLCanvasElement} parts.canvas
 * @param {import("./store.js").Observable<import("./drawing.js").Pictures>} parts.pictures
 * @param {import("./store.js").Observable<import("./main.js").View>} parts.view
 */
export function createAttention({ api, words, canvas, pictures, view }) {
  /** @type {string | null} */
  let of = null;

  async function showWords() {
    const id = pictures.get()[view.get().shown]?.id ?? null;
    if (id === of) return;
    of = id;
    canvas.hidden = true;
    words.replaceChildren();
    const section = words.parentElement;
    if (section) section.hidden = !id;
    if (!id) return;
    try {
      const found = await api.words(id);
      if (of === id) words.replaceChildren(...found.words.map(newWord));
    } catch (error) {
      if (of === id) words.replaceChildren(el("p", { class: "hint" }, sentence(error)));
    }
  }

  /** @param {{index: number, text: string}} word */
  function newWord({ index, text }) {
    const click = () => view.set({ word: view.get().word === index ? null : index });
    return el(
      "button",
      { type: "button", class: "chip", "data-word": index, "aria-pressed": "false", click },
      text,
    );
  }

  async function showHeat() {
    const { word } = view.get();
    const id = of;
    for (const chip of words.querySelectorAll("[data-word]")) {
      chip.setAttribute("aria-pressed", `${Number(chip.getAttribute("data-word")) === word}`);
    }
    if (word === null || id === null) {
      canvas.hidden = true;
      return;
    }
    try {
      const map = await createImageBitmap(await api.attention(id, word));
      if (of === id && view.get().word === word) paint(canvas, map);
    } catch (error) {
      view.set({ word: null, notice: sentence(error) });
    }
  }

  pictures.listen(showWords);
  view.listen((now, before) => {
    if (now.shown !== before.shown) showWords();
    if (now.word !== before.word || now.shown !== before.shown) showHeat();
  });
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {ImageBitmap} map grey: white is the most attention
 */
function paint(canvas, map) {
  canvas.width = map.width;
  canvas.height = map.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) return;
  context.drawImage(map, 0, 0);
  const pixels = context.getImageData(0, 0, map.width, map.height);
  for (let k = 0; k < pixels.data.length; k += 4) {
    const share = pixels.data[k] / 255;
    pixels.data.set(heatOf(share), k);
    pixels.data[k + 3] = 255 * MOST_OPAQUE * (0.2 + 0.8 * share);
  }
  context.putImageData(pixels, 0, 0);
  canvas.hidden = false;
}

/**
 * @param {number} share in [0, 1]
 * @returns {number[]} red, green, blue
 */
function heatOf(share) {
  const at = share * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((from, k) => from + (HEAT[low + 1][k] - from) * (at - low));
}
