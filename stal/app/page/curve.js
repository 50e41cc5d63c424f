/** The schedule: how strongly objects count over the steps, as a line whose knots can be dragged. */

import { colourOf } from "./colours.js";
import { set, svg } from "./dom.js";
import { clamp, rounded } from "./geometry.js";
import { curveAt, FALLING } from "./scene.js";

/**
 * @typedef {import("./scene.js").Knot} Knot
 * @typedef {import("./scene.js").Scene} Scene
 */

const [WIDTH, HEIGHT] = [300, 150];
const PAD = { left: 10, right: 10, top: 10, bottom: 24 };
const NUDGE = 0.05;

/** @param {Knot} knot */
function placed([t, w]) {
  const wide = WIDTH - PAD.left - PAD.right;
  const high = HEIGHT - PAD.top - PAD.bottom;
  return [PAD.left + t * wide, PAD.top + (1 - w) * high];
}

/**
 * @param {object} parts
 * @param {SVGSVGElement} parts.root
 * @param {ReturnType<typeof import("./store.js").undoable<Scene>>} parts.scene
 */
export function createCurve({ root, scene }) {
  const [left, bottom] = placed([0, 0]);
  const [right, top] = placed([1, 1]);
  const frame = svg("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` });
  const labels = [
    svg("text", { x: left, y: HEIGHT - 6 }, "first step"),
    svg("text", { x: right, y: HEIGHT - 6, "text-anchor": "end" }, "last step"),
  ];
  const objects = svg("g", {});
  const line = svg("polyline", { class: "curve" });
  const grip = svg("polyline", { class: "grip" });
  const knots = svg("g", {});
  set(root, { viewBox: `0 0 ${WIDTH} ${HEIGHT}` });
  root.append(frame, ...labels, line, objects, grip, knots);

  const curve = () => scene.get().curve ?? FALLING;
  /** @param {Knot[]} next */
  const changed = (next) => ({ ...scene.get(), curve: next });

  function show() {
    const now = curve();
    const points = now.map((knot) => placed(knot).join(",")).join(" ");
    set(line, { points });
    set(grip, { points });
    objects.replaceChildren(
      ...scene.get().items.filter(hasOwn).map((item) =>
        svg("polyline", { class: "own", stroke: colourOf(item.hue), points: ownPoints(now, item) }),
      ),
    );
    while (knots.children.length > now.length) knots.lastChild?.remove();
    while (knots.children.length < now.length) knots.append(newKnot());
    now.forEach((knot, index) => showKnot(/** @type {SVGElement} */ (knots.children[index]), knot));
  }

  function newKnot() {
    return svg(
      "g",
      { class: "knot", tabindex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": 100 },
      svg("circle", { class: "reach", r: 14 }),
      svg("circle", { class: "dot", r: 6 }),
    );
  }

  /** @param {PointerEvent} event */
  function pointOf(event) {
    const matrix = root.getScreenCTM();
    if (!matrix) return /** @type {Knot} */ ([0, 0]);
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    return /** @type {Knot} */ (
      [(x - left) / (right - left), (bottom - y) / (bottom - top)].map((v) => clamp(v, 0, 1))
    );
  }

  /** @param {EventTarget | null} target */
  const indexOf = (target) => {
    const knot = /** @type {Element} */ (target).closest(".knot");
    return knot ? [...knots.children].indexOf(knot) : -1;
  };

  let held = -1;
  root.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    held = indexOf(event.target);
    if (held < 0) {
      const [t] = pointOf(event);
      const next = withKnot(curve(), [rounded(t), rounded(curveAt(curve(), t))]);
      held = next.findIndex(([at]) => at === rounded(t));
      scene.hold(changed(next));
    }
    root.setPointerCapture(event.pointerId);
  });
  root.addEventListener("pointermove", (event) => {
    if (held >= 0) scene.hold(changed(moved(curve(), held, pointOf(event))));
  });
  root.addEventListener("pointerup", () => {
    if (held >= 0) scene.change(scene.get());
    /** @type {HTMLElement | undefined} */ (knots.children[held])?.focus();
    held = -1;
  });
  root.addEventListener("pointercancel", () => {
    held = -1;
    scene.release();
  });
  root.addEventListener("dblclick", (event) => {
    const index = indexOf(event.target);
    if (index >= 0) scene.change(changed(withoutKnot(curve(), index)));
  });
  root.addEventListener("keydown", (event) => {
    const index = indexOf(event.target);
    if (index < 0) return;
    const [t, w] = curve()[index];
    /** @type {Record<string, Knot>} */
    const to = {
      ArrowLeft: [t - NUDGE, w],
      ArrowRight: [t + NUDGE, w],
      ArrowUp: [t, w + NUDGE],
      ArrowDown: [t, w - NUDGE],
    };
    if (to[event.key]) scene.change(changed(moved(curve(), index, to[event.key])), `knot ${index}`);
    else if (event.key === "Delete") scene.change(changed(withoutKnot(curve(), index)));
    else return;
    event.preventDefault();
  });

  scene.listen((now, before) => {
    if (now.curve !== before.curve || now.items !== before.items) show();
  });
  show();
}

/**
 * Whether an item's weights are not those of the curve alone.
 * @param {import("./scene.js").Item} item
 */
function hasOwn({ strength, start, stop }) {
  return strength !== 1 || start > 0 || stop < 1;
}

/**
 * @param {Knot[]} curve
 * @param {import("./scene.js").Item} item
 * @returns {string} the item's weights, cut off at the top of the frame
 */
function ownPoints(curve, { strength, start, stop }) {
  const inner = curve.map(([t]) => t).filter((t) => t > start && t < stop);
  const points = [start, ...inner, stop].map((t) => [t, curveAt(curve, t) * strength]);
  const before = start > 0 ? [[0, 0], [start, 0]] : [];
  const after = stop < 1 ? [[stop, 0], [1, 0]] : [];
  const line = [...before, ...points, ...after];
  return line.map(([t, w]) => placed([t, Math.min(w, 1.04)]).join(",")).join(" ");
}

/**
 * @param {SVGElement} node
 * @param {Knot} knot
 */
function showKnot(node, [t, w]) {
  const [x, y] = placed([t, w]);
  set(node, {
    transform: `translate(${x} ${y})`,
    "aria-label": `Knot at ${Math.round(t * 100)}% of the steps`,
    "aria-valuenow": Math.round(w * 100),
    "aria-valuetext": `${Math.round(w * 100)}% of the strength at ${Math.round(t * 100)}% of the steps`,
  });
}

/**
 * @param {Knot[]} curve
 * @param {Knot} knot
 */
function withKnot(curve, knot) {
  return [...curve.filter(([t]) => t !== knot[0]), knot].sort((a, b) => a[0] - b[0]);
}

/**
 * Moves a knot: the outer ones up and down alone, the others between their neighbours.
 * @param {Knot[]} curve
 * @param {number} index
 * @param {Knot} to
 */
function moved(curve, index, [t, w]) {
  const last = curve.length - 1;
  const inner = index > 0 && index < last;
  const at = inner ? clamp(t, curve[index - 1][0] + 0.01, curve[index + 1][0] - 0.01) : curve[index][0];
  const knot = /** @type {Knot} */ ([rounded(at), rounded(clamp(w, 0, 1))]);
  return curve.map((old, k) => (k === index ? knot : old));
}

/**
 * @param {Knot[]} curve
 * @param {number} index
 */
function withoutKnot(curve, index) {
  const outer = index === 0 || index === curve.length - 1;
  return outer ? curve : curve.filter((_, k) => k !== index);
}
