/** The objects as marks over the picture: an outline, a label, and handles on the selected one. */

import { cellsOf, pathsOf } from "./cells.js";
import { colourOf, inkOf } from "./colours.js";
import { set, svg } from "./dom.js";
import { percent } from "./geometry.js";
import { itemOf } from "./scene.js";

/**
 * @typedef {import("./scene.js").Item} Item
 * @typedef {import("./scene.js").Scene} Scene
 * @typedef {{width: number, height: number}} Size  CSS pixels
 * @typedef {{area: string, edge: string, transform: string}} Outline
 */

const LONGEST_LABEL = 28;
const LABEL_HEIGHT = 20;
const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const SMALL = 56; // a box of fewer pixels has handles at its corners alone

/** @type {WeakMap<object, {area: string, edge: string}>} */
const cellPaths = new WeakMap();

/** @param {SVGSVGElement} root */
export function createMarks(root) {
  const items = svg("g", {});
  const grips = svg("g", {});
  const draft = svg("g", {});
  root.append(items, grips, draft);
  /** @type {Map<number, SVGGElement>} */
  const marks = new Map();

  return {
    /**
     * @param {Scene} scene
     * @param {number | null} selected
     * @param {Size} size
     */
    show(scene, selected, size) {
      for (const [id, mark] of marks) {
        if (itemOf(scene, id)) continue;
        mark.remove();
        marks.delete(id);
      }
      for (const item of scene.items) {
        const mark = marks.get(item.id) ?? newMark(item.id);
        marks.set(item.id, mark);
        if (!mark.isConnected) items.append(mark);
        showMark(mark, item, item.id === selected, size);
      }
      const back = scene.items.map(({ id }) => /** @type {SVGGElement} */ (marks.get(id)));
      stack(items, back.reverse());
      const item = itemOf(scene, selected);
      grips.replaceChildren(...(item ? handlesOf(item, size) : []));
    },

    /**
     * What is being drawn.
     * @param {string | null} path
     * @param {import("./geometry.js").Corner[]} [corners]
     * @param {Size} [size]
     */
    showDraft(path, corners = [], size = { width: 1, height: 1 }) {
      const dots = corners.map(([x, y]) =>
        svg("circle", { class: "dot", cx: x * size.width, cy: y * size.height, r: 4 }),
      );
      draft.replaceChildren(...(path ? [svg("path", { class: "draft", d: path })] : []), ...dots);
    },

    /** @param {number} id */
    focus: (id) => marks.get(id)?.focus({ preventScroll: true }),
  };
}

/**
 * @param {import("./geometry.js").Box} box
 * @param {Size} size
 */
export function boxPath([x0, y0, x1, y1], { width, height }) {
  return `M${x0 * width} ${y0 * height}H${x1 * width}V${y1 * height}H${x0 * width}z`;
}

/**
 * @param {import("./geometry.js").Corner[]} corners
 * @param {Size} size
 */
export function linePath(corners, { width, height }) {
  return `M${corners.map(([x, y]) => `${x * width} ${y * height}`).join("L")}`;
}

/**
 * Where an item is, in words.
 * @param {Item} item
 * @returns {string}
 */
export function placeOf({ box: [x0, y0, x1, y1] }) {
  const [left, top, wide, high] = [x0, y0, x1 - x0, y1 - y0].map(percent);
  return `${left}% from the left, ${top}% from the top, ${wide}% wide, ${high}% high`;
}

/**
 * @param {{box: import("./geometry.js").Box, shape: import("./geometry.js").Shape}} region
 * @param {Size} size
 * @returns {Outline}
 */
function outlineOf({ box, shape }, size) {
  const whole = (/** @type {string} */ d) => ({ area: d, edge: d, transform: "" });
  if (shape === null) return whole(boxPath(box, size));
  if (shape === "ellipse") {
    const [x0, y0, x1, y1] = [0, 1, 2, 3].map((k) => box[k] * (k % 2 ? size.height : size.width));
    const [rx, ry, y] = [(x1 - x0) / 2, (y1 - y0) / 2, (y0 + y1) / 2];
    return whole(`M${x0} ${y}A${rx} ${ry} 0 0 1 ${x1} ${y}A${rx} ${ry} 0 0 1 ${x0} ${y}z`);
  }
  if (Array.isArray(shape)) return whole(`${linePath(shape, size)}z`);
  let paths = cellPaths.get(shape);
  if (!paths) {
    paths = pathsOf(cellsOf(shape));
    cellPaths.set(shape, paths);
  }
  const scale = `scale(${size.width / shape.width} ${size.height / shape.height})`;
  return { ...paths, transform: scale };
}

/**
 * @param {number} id
 * @returns {SVGGElement}
 */
function newMark(id) {
  return svg(
    "g",
    { class: "mark", "data-id": id, tabindex: 0, role: "button" },
    svg("path", { class: "area" }),
    svg("path", { class: "halo" }),
    svg("path", { class: "edge" }),
    svg("g", { class: "label" }, svg("rect", { rx: 4, height: LABEL_HEIGHT }), svg("text", {})),
  );
}

/**
 * @param {SVGGElement} mark
 * @param {Item} item
 * @param {boolean} isSelected
 * @param {Size} size
 */
function showMark(mark, item, isSelected, size) {
  const [area, halo, edge, label] = mark.children;
  const outline = outlineOf(item, size);
  const colour = colourOf(item.hue);
  set(mark, {
    "aria-label": `${item.phrase}: ${placeOf(item)}`,
    "aria-pressed": `${isSelected}`,
  });
  mark.classList.toggle("selected", isSelected);
  set(area, { d: outline.area, transform: outline.transform, fill: colour });
  set(halo, { d: outline.edge, transform: outline.transform });
  set(edge, { d: outline.edge, transform: outline.transform, stroke: colour });
  showLabel(/** @type {SVGGElement} */ (label), item, size);
}

/**
 * @param {SVGGElement} label
 * @param {Item} item
 * @param {Size} size
 */
function showLabel(label, item, size) {
  const [plate, text] = /** @type {[SVGRectElement, SVGTextElement]} */ ([...label.children]);
  const long = item.phrase.length > LONGEST_LABEL;
  const words = long ? `${item.phrase.slice(0, LONGEST_LABEL)}…` : item.phrase;
  if (text.textContent !== words || !plate.hasAttribute("width")) {
    text.textContent = words;
    set(plate, { width: text.getComputedTextLength() + 12 });
  }
  set(plate, { fill: colourOf(item.hue) });
  set(text, { x: 6, y: LABEL_HEIGHT - 6, fill: inkOf(item.hue) });
  const width = Number(plate.getAttribute("width"));
  const x = Math.max(0, Math.min(item.box[0] * size.width, size.width - width));
  const above = item.box[1] * size.height - LABEL_HEIGHT;
  set(label, { transform: `translate(${x} ${above < 0 ? item.box[1] * size.height : above})` });
}

/**
 * @param {Item} item
 * @param {Size} size
 */
function handlesOf({ box, shape }, size) {
  const [x0, y0, x1, y1] = [0, 1, 2, 3].map((k) => box[k] * (k % 2 ? size.height : size.width));
  if (Array.isArray(shape)) {
    return shape.map(([x, y], k) => handle(x * size.width, y * size.height, { "data-corner": k }));
  }
  const small = Math.min(x1 - x0, y1 - y0) < SMALL;
  return HANDLES.filter((name) => !small || name.length === 2).map((name) => {
    const x = name.includes("w") ? x0 : name.includes("e") ? x1 : (x0 + x1) / 2;
    const y = name.includes("n") ? y0 : name.includes("s") ? y1 : (y0 + y1) / 2;
    return handle(x, y, { "data-handle": name });
  });
}

/**
 * @param {number} x
 * @param {number} y
 * @param {Record<string, string | number>} data
 */
function handle(x, y, data) {
  return svg(
    "g",
    { class: "handle", ...data },
    svg("circle", { class: "reach", cx: x, cy: y }),
    svg("circle", { class: "dot", cx: x, cy: y, r: 5 }),
  );
}

/**
 * Puts children in an order. Those that are in it already are not touched, and keep the focus.
 * @param {Element} parent
 * @param {Element[]} order
 */
function stack(parent, order) {
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  let changed = false;
  order.forEach((child, index) => {
    if (parent.children[index] === child) return;
    parent.insertBefore(child, parent.children[index] ?? null);
    changed = true;
  });
  if (changed && focused && parent.contains(focused)) focused.focus();
}
