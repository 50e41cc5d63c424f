/** The pictures of each mode, side by side; the chosen one lies under the boxes on the canvas. */

import { byId, el, set } from "./dom.js";
import { MODES } from "./scene.js";

/**
 * @typedef {import("./scene.js").Mode} Mode
 * @typedef {import("./drawing.js").Picture} Picture
 * @typedef {import("./drawing.js").Pictures} Pictures
 */

/** @type {Record<Mode, {title: string, text: string}>} */
const ABOUT = {
  plain: { title: "Plain", text: "The model alone: it reads the whole prompt everywhere." },
  spatial: { title: "Spatial", text: "Each place also reads the words of its own object." },
  "spatial-temporal": {
    title: "Spatial-temporal",
    text: "The same, strong at first and fading as details are drawn.",
  },
};

/**
 * @param {object} parts
 * @param {HTMLElement} parts.root
 * @param {import("./store.js").Observable<Pictures>} parts.pictures
 * @param {import("./store.js").Observable<import("./main.js").View>} parts.view
 */
export function createPictures({ root, pictures, view }) {
  const panels = new Map(MODES.map((mode) => [mode, newPanel(mode, view)]));
  root.append(...[...panels.values()].map(({ node }) => node));

  function show() {
    const { shown, modes } = view.get();
    for (const [mode, panel] of panels) {
      panel.show(pictures.get()[mode], mode === shown, modes.includes(mode));
    }
  }
  pictures.listen(show);
  view.listen(show);
  show();
}

/**
 * What is to be seen of a picture now.
 * @param {Picture | undefined} picture
 * @returns {string | null}
 */
export function sourceOf(picture) {
  return picture?.preview ?? picture?.url ?? null;
}

/**
 * @param {Mode} mode
 * @param {import("./store.js").Observable<import("./main.js").View>} view
 */
function newPanel(mode, view) {
  const { title, text } = ABOUT[mode];
  const image = el("img", { alt: "", hidden: true, draggable: "false" });
  const wanted = el("input", {
    type: "checkbox",
    "aria-label": `Draw ${title}`,
    change: () => {
      const others = view.get().modes.filter((each) => each !== mode);
      const modes = wanted.checked ? [...others, mode] : others;
      view.set({ modes: modes.length ? modes : [mode] });
      wanted.checked = view.get().modes.includes(mode);
    },
  });
  const choose = el(
    "button",
    { type: "button", class: "choose", click: () => view.set({ shown: mode, word: null }) },
    image,
  );
  const progress = el("progress", { max: 1, value: 0, "aria-label": `Progress of ${title}` });
  const status = el("p", { class: "status" });
  const node = el(
    "figure",
    { class: "panel" },
    el("figcaption", {}, el("label", {}, wanted, el("strong", {}, title))),
    choose,
    progress,
    status,
    el("p", { class: "hint" }, text),
  );
  return {
    node,
    /**
     * @param {Picture | undefined} picture
     * @param {boolean} isShown
     * @param {boolean} isWanted
     */
    show(picture, isShown, isWanted) {
      const source = sourceOf(picture);
      const busy = picture?.status === "waiting" || picture?.status === "drawing";
      if (source) image.src = source;
      image.hidden = !source;
      wanted.checked = isWanted;
      node.classList.toggle("shown", isShown);
      node.classList.toggle("old", busy && !picture?.preview);
      node.classList.toggle("failed", picture?.status === "failed");
      set(node, { "aria-busy": `${busy}` });
      set(choose, {
        "aria-pressed": `${isShown}`,
        "aria-label": `${title}${source ? "" : ", not drawn yet"}: show on the canvas`,
      });
      progress.hidden = !busy;
      progress.value = picture?.steps ? picture.step / picture.steps : 0;
      status.textContent = statusOf(picture);
    },
  };
}

/** @param {Picture | undefined} picture */
function statusOf(picture) {
  if (!picture) return "";
  if (picture.status === "drawing") return `Step ${picture.step} of ${picture.steps}`;
  return picture.message;
}

/**
 * The picture under the boxes.
 * @param {object} parts
 * @param {HTMLImageElement} parts.image
 * @param {import("./store.js").Observable<Pictures>} parts.pictures
 * @param {import("./store.js").Observable<import("./main.js").View>} parts.view
 */
export function createBackdrop({ image, pictures, view }) {
  const stage = byId("stage");
  function show() {
    const { shown, boxes } = view.get();
    const source = sourceOf(pictures.get()[shown]);
    if (source) image.src = source;
    image.hidden = !source;
    stage.classList.toggle("drawn", Boolean(source));
    stage.classList.toggle("bare", !boxes);
  }
  pictures.listen(show);
  view.listen(show);
  show();
}
