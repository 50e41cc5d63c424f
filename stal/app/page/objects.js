/** The list of objects, front to back: names, order, shape, place, and how strongly each counts. */

import { colourOf } from "./colours.js";
import { announce, el, show } from "./dom.js";
import { reshaped, LEAST_SIDE, clamp, percent } from "./geometry.js";
import { patched, removed, renamed, reordered } from "./scene.js";

/**
 * @typedef {import("./scene.js").Item} Item
 * @typedef {import("./scene.js").Scene} Scene
 * @typedef {{node: HTMLElement, show: (item: Item, isSelected: boolean) => void, name: HTMLInputElement}} Row
 */

export const MOST_STRENGTH = 3;

const SIDES = ["left", "top", "width", "height"];

/**
 * @param {object} parts
 * @param {HTMLElement} parts.list
 * @param {ReturnType<typeof import("./store.js").undoable<Scene>>} parts.scene
 * @param {import("./store.js").Observable<import("./main.js").View>} parts.view
 */
export function createObjects({ list, scene, view }) {
  /** @type {Map<number, Row>} */
  const rows = new Map();

  function update() {
    const { items } = scene.get();
    const { selected } = view.get();
    for (const [id, row] of rows) {
      if (items.some((item) => item.id === id)) continue;
      row.node.remove();
      rows.delete(id);
    }
    items.forEach((item, index) => {
      const row = rows.get(item.id) ?? newRow(item.id, scene, view);
      rows.set(item.id, row);
      if (list.children[index] !== row.node) list.insertBefore(row.node, list.children[index]);
      row.show(item, item.id === selected);
    });
  }

  scene.listen(update);
  view.listen((now, before) => {
    if (now.selected !== before.selected) update();
  });
  update();
  return {
    /** @param {number} id puts the focus into its name */
    rename(id) {
      const name = rows.get(id)?.name;
      name?.focus();
      name?.select();
    },
  };
}

/**
 * @param {number} id
 * @param {ReturnType<typeof import("./store.js").undoable<Scene>>} scene
 * @param {import("./store.js").Observable<import("./main.js").View>} view
 * @returns {Row}
 */
function newRow(id, scene, view) {
  const item = () => /** @type {Item} */ (scene.get().items.find((each) => each.id === id));
  const patch = (/** @type {Partial<Item>} */ change, /** @type {string} */ kind) =>
    scene.change(patched(scene.get(), id, change), `${kind} ${id}`);

  const swatch = el("button", {
    type: "button",
    class: "swatch",
    click: () => view.set({ selected: view.get().selected === id ? null : id }),
  });
  const name = el("input", {
    type: "text",
    class: "name",
    "aria-label": "Name of the object",
    maxlength: 200,
    focus: () => view.set({ selected: id }),
    change: () => {
      scene.change(renamed(scene.get(), id, name.value));
      name.value = item().phrase;
    },
    keydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter") name.blur();
    },
  });
  const forward = mover("Bring to the front", "▲", -1);
  const back = mover("Send to the back", "▼", 1);
  const remove = el(
    "button",
    {
      type: "button",
      class: "icon",
      title: "Delete (Delete key)",
      click: () => {
        announce(`${item().phrase} is deleted.`);
        scene.change(removed(scene.get(), id));
      },
    },
    "✕",
  );

  /**
   * @param {string} label
   * @param {string} sign
   * @param {-1 | 1} by
   */
  function mover(label, sign, by) {
    const click = () => scene.change(reordered(scene.get(), id, by));
    return el("button", { type: "button", class: "icon", title: label, click }, sign);
  }

  const strength = slider("Strength", MOST_STRENGTH, (value) => patch({ strength: value }, "strength"));
  const start = slider("From", 1, (value) =>
    patch({ start: value, stop: Math.max(value, item().stop) }, "start"),
  );
  const stop = slider("Until", 1, (value) =>
    patch({ stop: value, start: Math.min(value, item().start) }, "stop"),
  );
  const shape = el(
    "select",
    {
      change: () => {
        const chosen = shape.value === "ellipse" ? "ellipse" : null;
        scene.change(patched(scene.get(), id, { shape: chosen, placed: true }));
      },
    },
    ...["box", "ellipse", "polygon", "painted"].map((kind) => el("option", { value: kind }, kind)),
  );
  const edges = SIDES.map((side, k) =>
    el("input", {
      type: "number",
      min: 0,
      max: 100,
      step: 1,
      "aria-label": `${side} in percent of the canvas`,
      change: (/** @type {any} */ event) => {
        const region = withSide(item(), k, Number(event.target.value) / 100);
        scene.change(patched(scene.get(), id, { ...region, placed: true }));
        event.target.value = percent(sidesOf(item().box)[k]);
      },
    }),
  );
  const more = el(
    "div",
    { class: "more" },
    strength.node,
    start.node,
    stop.node,
    el("label", { class: "line" }, el("span", {}, "Shape"), shape),
    el(
      "div",
      { class: "line", role: "group", "aria-label": "Place in percent of the canvas" },
      el("span", {}, "Place %"),
      el("span", { class: "edges" }, ...edges),
    ),
  );
  const head = el("div", { class: "head" }, swatch, name, forward, back, remove);
  const node = el("li", { class: "object" }, head, more);

  return {
    node,
    name,
    show(now, isSelected) {
      node.classList.toggle("selected", isSelected);
      swatch.style.setProperty("--colour", colourOf(now.hue));
      swatch.setAttribute("aria-label", `${now.phrase}: details`);
      swatch.setAttribute("aria-expanded", `${isSelected}`);
      forward.setAttribute("aria-label", `Bring ${now.phrase} to the front`);
      back.setAttribute("aria-label", `Send ${now.phrase} to the back`);
      remove.setAttribute("aria-label", `Delete ${now.phrase}`);
      more.hidden = !isSelected;
      show(name, now.phrase);
      if (!isSelected) return;
      strength.show(now.strength, `${now.strength.toFixed(2)} ×`);
      start.show(now.start, `${percent(now.start)} %`);
      stop.show(now.stop, `${percent(now.stop)} %`);
      const kind = kindOf(now.shape);
      for (const option of shape.options) {
        option.hidden = ["polygon", "painted"].includes(option.value) && option.value !== kind;
      }
      show(shape, kind);
      sidesOf(now.box).forEach((side, k) => show(edges[k], percent(side)));
    },
  };
}

/**
 * @param {string} label
 * @param {number} most
 * @param {(value: number) => void} change
 */
function slider(label, most, change) {
  const output = el("output", {});
  const input = el("input", {
    type: "range",
    min: 0,
    max: most,
    step: 0.05,
    input: () => change(Number(input.value)),
  });
  return {
    node: el("label", { class: "line" }, el("span", {}, label), input, output),
    /**
     * @param {number} value
     * @param {string} text
     */
    show(value, text) {
      input.value = `${value}`;
      input.setAttribute("aria-valuetext", text);
      output.textContent = text;
    },
  };
}

/** @param {import("./geometry.js").Shape} shape */
function kindOf(shape) {
  if (shape === null) return "box";
  if (shape === "ellipse") return "ellipse";
  return Array.isArray(shape) ? "polygon" : "painted";
}

/** @param {import("./geometry.js").Box} box */
function sidesOf([x0, y0, x1, y1]) {
  return [x0, y0, x1 - x0, y1 - y0];
}

/**
 * @param {Item} item
 * @param {number} k which of left, top, width and height
 * @param {number} value
 */
function withSide(item, k, value) {
  const sides = sidesOf(item.box);
  const axis = k % 2;
  if (k < 2) sides[axis] = clamp(value, 0, 1 - sides[axis + 2]);
  else sides[axis + 2] = clamp(value, LEAST_SIDE, 1 - sides[axis]);
  const [x, y, width, height] = sides;
  return reshaped(item, [x, y, x + width, y + height]);
}
