/** The canvas: pointer and keys place, shape and paint objects. It asks the server for nothing. */

import { blank, cellsOf, filledWhere, stroked } from "./cells.js";
import { announce, set, typing } from "./dom.js";
import {
  boxAround,
  boxBetween,
  covers,
  isLarge,
  isSimple,
  move,
  painted,
  resize,
  rounded,
} from "./geometry.js";
import { boxPath, createMarks, linePath, placeOf } from "./marks.js";
import { added, aspectOf, itemOf, patched, removed, reordered } from "./scene.js";

/**
 * @typedef {import("./geometry.js").Corner} Corner
 * @typedef {import("./scene.js").Scene} Scene
 * @typedef {import("./scene.js").Item} Item
 * @typedef {"select" | "box" | "ellipse" | "polygon" | "brush" | "eraser"} Tool
 * @typedef {{move: (to: Corner) => void, end: () => void}} Gesture
 * @typedef {import("./main.js").View} View
 */

export const NEW_PHRASE = "new object";

const NUDGE = 0.01;
const CLOSES = 12; // pixels around the first corner of a polygon
/** @type {Record<string, Corner>} */
const ARROWS = {
  ArrowLeft: [-NUDGE, 0],
  ArrowRight: [NUDGE, 0],
  ArrowUp: [0, -NUDGE],
  ArrowDown: [0, NUDGE],
};
/** @type {Record<string, Tool>} */
const TOOL_KEYS = {
  v: "select",
  b: "box",
  e: "ellipse",
  p: "polygon",
  m: "brush",
  x: "eraser",
};

/**
 * @param {object} parts
 * @param {HTMLElement} parts.stage
 * @param {SVGSVGElement} parts.root
 * @param {ReturnType<typeof import("./store.js").undoable<Scene>>} parts.scene
 * @param {import("./store.js").Observable<View>} parts.view
 * @param {(id: number) => void} parts.onNew a new object wants a name
 */
export function createEditor({ stage, root, scene, view, onNew }) {
  const marks = createMarks(root);
  let size = { width: 1, height: 1 };
  /** @type {Gesture | null} */
  let gesture = null;
  /** @type {Corner[]} */
  let corners = [];

  function show() {
    marks.show(scene.get(), view.get().selected, size);
  }

  function showPolygon(/** @type {Corner} */ to = corners[corners.length - 1]) {
    marks.showDraft(corners.length ? linePath([...corners, to], size) : null, corners, size);
  }

  function stop() {
    gesture = null;
    corners = [];
    marks.showDraft(null);
    scene.release();
  }

  /**
   * @param {PointerEvent} event
   * @returns {Corner}
   */
  function pointOf(event) {
    const frame = root.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
  }

  /**
   * The smallest item at a point; the selected one if it is there.
   * @param {Corner} point
   * @returns {Item | undefined}
   */
  function itemAt([x, y]) {
    const there = scene.get().items.filter((item) => covers(item, x, y));
    const area = (/** @type {Item} */ { box }) => (box[2] - box[0]) * (box[3] - box[1]);
    const selected = there.find(({ id }) => id === view.get().selected);
    return selected ?? there.sort((a, b) => area(a) - area(b))[0];
  }

  /**
   * Changes an item for as long as the pointer is down.
   * @param {Item} item
   * @param {Corner} from
   * @param {(dx: number, dy: number) => {box: import("./geometry.js").Box, shape: import("./geometry.js").Shape} | null} change
   * @returns {Gesture}
   */
  function dragging(item, from, change) {
    const base = scene.get();
    return {
      move: ([x, y]) => {
        const region = change(x - from[0], y - from[1]);
        if (region) scene.hold(patched(base, item.id, { ...region, placed: true }));
      },
      end: () => {
        const now = itemOf(scene.get(), item.id);
        scene.change(scene.get());
        if (now && now.box !== item.box) announce(`${now.phrase}: ${placeOf(now)}`);
      },
    };
  }

  /**
   * @param {PointerEvent} event
   * @param {Corner} from
   * @returns {Gesture | null}
   */
  function grab(event, from) {
    const target = /** @type {Element} */ (event.target);
    const handle = target.closest("[data-handle]")?.getAttribute("data-handle");
    const corner = target.closest("[data-corner]")?.getAttribute("data-corner");
    const selected = itemOf(scene.get(), view.get().selected);
    if (selected && handle) {
      return dragging(selected, from, (dx, dy) => resize(selected, handle, dx, dy));
    }
    if (selected && corner && Array.isArray(selected.shape)) {
      return dragging(selected, from, (dx, dy) =>
        withCorner(/** @type {Corner[]} */ (selected.shape), Number(corner), dx, dy),
      );
    }
    const labelled = target.closest("[data-id]")?.getAttribute("data-id");
    const item = itemAt(from) ?? itemOf(scene.get(), Number(labelled));
    view.set({ selected: item?.id ?? null });
    if (!item) return null;
    marks.focus(item.id);
    return dragging(item, from, (dx, dy) => move(item, dx, dy));
  }

  /**
   * @param {Corner} from
   * @param {"ellipse" | null} shape
   * @returns {Gesture}
   */
  function drawBox(from, shape) {
    let box = boxBetween(from, from);
    return {
      move: (to) => {
        box = boxBetween(from, to);
        marks.showDraft(boxPath(box, size));
      },
      end: () => {
        marks.showDraft(null);
        if (isLarge(box)) create({ box, shape });
      },
    };
  }

  /**
   * @param {Corner} from
   * @param {0 | 1} value
   * @returns {Gesture | null}
   */
  function paint(from, value) {
    const selected = itemOf(scene.get(), view.get().selected);
    if (!selected && !value) {
      announce("Select an object to erase from.");
      return null;
    }
    const base = scene.get();
    const grid = blank(aspectOf(base));
    let cells = grid;
    if (selected) {
      const { shape } = selected;
      const isPainted = shape !== null && typeof shape === "object" && !Array.isArray(shape);
      cells = isPainted ? cellsOf(shape) : filledWhere(grid, (x, y) => covers(selected, x, y));
    }
    let last = from;
    const drawn = selected ? base : added(base, { box: [0, 0, 1, 1], shape: null }, NEW_PHRASE);
    const id = selected?.id ?? drawn.items[0].id;
    const stroke = (/** @type {Corner} */ to) => {
      cells = stroked(cells, last, to, view.get().radius, value);
      last = to;
      const region = painted(cells);
      if (region) scene.hold(patched(drawn, id, { ...region, placed: true }));
    };
    stroke(from);
    return {
      move: stroke,
      end: () => {
        scene.change(scene.get());
        view.set({ selected: id });
        if (!selected) onNew(id);
      },
    };
  }

  /** @param {Corner} point */
  function addCorner(point) {
    const [x, y] = /** @type {Corner} */ (boxBetween(point, point).slice(0, 2));
    const isNear = (/** @type {Corner | undefined} */ corner) =>
      corner && Math.hypot((x - corner[0]) * size.width, (y - corner[1]) * size.height) < CLOSES;
    if (corners.length > 2 && isNear(corners[0])) return closePolygon();
    if (isNear(corners[corners.length - 1])) return;
    corners = [...corners, [x, y]];
    showPolygon();
  }

  function closePolygon() {
    const box = boxAround(corners);
    if (corners.length < 3 || !isLarge(box)) return;
    if (!isSimple(corners)) {
      view.set({ notice: "The lines of a polygon must not cross." });
      return stop();
    }
    const region = { box, shape: corners };
    corners = [];
    marks.showDraft(null);
    create(region);
  }

  /** @param {{box: import("./geometry.js").Box, shape: import("./geometry.js").Shape}} region */
  function create(region) {
    const next = added(scene.get(), region, NEW_PHRASE);
    scene.change(next);
    view.set({ selected: next.items[0].id, tool: "select" });
    onNew(next.items[0].id);
  }

  /**
   * @param {PointerEvent} event
   * @returns {Gesture | null}
   */
  function begin(event) {
    // Takes the focus from a name that is being edited, which is thereby given.
    stage.focus({ preventScroll: true });
    const from = pointOf(event);
    const { tool } = view.get();
    if (tool === "select") return grab(event, from);
    if (tool === "polygon") addCorner(from);
    if (tool === "box" || tool === "ellipse") return drawBox(from, tool === "box" ? null : tool);
    if (tool === "brush" || tool === "eraser") return paint(from, tool === "brush" ? 1 : 0);
    return null;
  }

  /** @param {KeyboardEvent} event */
  function key(event) {
    const { selected, tool } = view.get();
    const now = scene.get();
    const item = itemOf(now, selected);
    const arrow = ARROWS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    if (event.key === "Enter" && tool === "polygon") closePolygon();
    else if (item && arrow) {
      const changed = event.shiftKey ? resize(item, "se", ...arrow) : move(item, ...arrow);
      scene.change(patched(now, item.id, { ...changed, placed: true }), `nudge ${item.id}`);
    } else if (item && (event.key === "Delete" || event.key === "Backspace")) {
      scene.change(removed(now, item.id));
      announce(`${item.phrase} is deleted.`);
      stage.focus();
    } else if (item && event.key === "]") scene.change(reordered(now, item.id, -1));
    else if (item && event.key === "[") scene.change(reordered(now, item.id, 1));
    else if (TOOL_KEYS[event.key]) view.set({ tool: TOOL_KEYS[event.key] });
    else return false;
    return true;
  }

  // The focus goes where `grab` puts it, not to the mark that lies on top.
  root.addEventListener("mousedown", (event) => event.preventDefault());
  root.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || gesture) return;
    gesture = begin(event);
    if (gesture) root.setPointerCapture(event.pointerId);
  });
  root.addEventListener("pointermove", (event) => {
    if (gesture) gesture.move(pointOf(event));
    else if (corners.length) showPolygon(pointOf(event));
  });
  root.addEventListener("pointerup", () => {
    gesture?.end();
    gesture = null;
  });
  root.addEventListener("pointercancel", stop);
  root.addEventListener("dblclick", closePolygon);
  root.addEventListener("focusin", (event) => {
    const id = /** @type {Element} */ (event.target).getAttribute("data-id");
    if (id) view.set({ selected: Number(id) });
  });
  stage.addEventListener("keydown", (event) => {
    if (key(event)) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || typing()) return;
    stop();
    view.set({ selected: null, tool: "select" });
  });

  scene.listen(show);
  view.listen((now, before) => {
    if (now.tool !== before.tool) {
      stage.dataset.tool = now.tool;
      if (now.tool !== "polygon" && corners.length) stop();
    }
    if (now.selected !== before.selected) show();
  });
  new ResizeObserver(() => {
    size = { width: root.clientWidth || 1, height: root.clientHeight || 1 };
    set(root, { viewBox: `0 0 ${size.width} ${size.height}` });
    show();
  }).observe(root);
}

/**
 * A polygon with one corner elsewhere, unless its edges would cross.
 * @param {Corner[]} shape
 * @param {number} index
 * @param {number} dx
 * @param {number} dy
 */
function withCorner(shape, index, dx, dy) {
  const [x, y] = shape[index];
  const to = boxBetween([x + dx, y + dy], [x + dx, y + dy]);
  const corners = shape.map((c, k) => (k === index ? /** @type {Corner} */ ([to[0], to[1]]) : c));
  const box = boxAround(corners);
  if (!isSimple(corners) || !isLarge(box)) return null;
  return { box: /** @type {import("./geometry.js").Box} */ (box.map(rounded)), shape: corners };
}
