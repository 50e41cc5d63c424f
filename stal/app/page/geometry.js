/**
 * Boxes and outlines in fractions of the canvas, y downwards: what the layout's JSON holds.
 *
 * @typedef {[number, number, number, number]} Box  x0, y0, x1, y1
 * @typedef {[number, number]} Corner
 * @typedef {{height: number, width: number, runs: number[]}} Painted
 * @typedef {"ellipse" | Corner[] | Painted | null} Shape  null is all of the box
 * @typedef {{box: Box, shape: Shape}} Region
 */

import { boxOfCells, cellsOf, moved, runsOf, stretched } from "./cells.js";

export const LEAST_SIDE = 0.02;

/**
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** @param {number} value */
export function rounded(value) {
  return Math.round(value * 1e4) / 1e4;
}

/**
 * In hundredths, of what `rounded` keeps: a step of a hundredth is always one.
 * @param {number} value
 */
export function percent(value) {
  return Math.round(Math.round(value * 1e4) / 100);
}

/**
 * The box with two opposite corners anywhere.
 * @param {Corner} a
 * @param {Corner} b
 * @returns {Box}
 */
export function boxBetween(a, b) {
  const [ax, ay] = a.map((v) => clamp(v, 0, 1));
  const [bx, by] = b.map((v) => clamp(v, 0, 1));
  return /** @type {Box} */ (
    [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)].map(rounded)
  );
}

/**
 * @param {Box} box
 * @returns {boolean} whether it is large enough to be meant
 */
export function isLarge(box) {
  return box[2] - box[0] >= LEAST_SIDE && box[3] - box[1] >= LEAST_SIDE;
}

/**
 * The smallest box around corners.
 * @param {Corner[]} corners
 * @returns {Box}
 */
export function boxAround(corners) {
  const xs = corners.map(([x]) => x);
  const ys = corners.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/**
 * Moves a region, which stays on the canvas.
 * @param {Region} region
 * @param {number} dx
 * @param {number} dy
 * @returns {Region}
 */
export function move({ box, shape }, dx, dy) {
  const x = clamp(dx, -box[0], 1 - box[2]);
  const y = clamp(dy, -box[1], 1 - box[3]);
  const to = /** @type {Box} */ ([box[0] + x, box[1] + y, box[2] + x, box[3] + y].map(rounded));
  return reshaped({ box, shape }, to);
}

/**
 * Moves the sides that a handle holds.
 * @param {Region} region
 * @param {string} handle any of the letters n, s, w, e
 * @param {number} dx
 * @param {number} dy
 * @returns {Region}
 */
export function resize({ box, shape }, handle, dx, dy) {
  let [x0, y0, x1, y1] = box;
  if (handle.includes("w")) x0 = clamp(x0 + dx, 0, x1 - LEAST_SIDE);
  if (handle.includes("e")) x1 = clamp(x1 + dx, x0 + LEAST_SIDE, 1);
  if (handle.includes("n")) y0 = clamp(y0 + dy, 0, y1 - LEAST_SIDE);
  if (handle.includes("s")) y1 = clamp(y1 + dy, y0 + LEAST_SIDE, 1);
  return reshaped({ box, shape }, /** @type {Box} */ ([x0, y0, x1, y1].map(rounded)));
}

/**
 * The region in another box: its outline is moved and stretched with it.
 * @param {Region} region
 * @param {Box} to
 * @returns {Region}
 */
export function reshaped({ box, shape }, to) {
  if (shape === null || shape === "ellipse") return { box: to, shape };
  if (Array.isArray(shape)) {
    const [sx, sy] = [0, 1].map((k) => (to[k + 2] - to[k]) / (box[k + 2] - box[k]));
    const corners = shape.map(
      ([x, y]) =>
        /** @type {Corner} */ ([
          clamp(rounded(to[0] + (x - box[0]) * sx), 0, 1),
          clamp(rounded(to[1] + (y - box[1]) * sy), 0, 1),
        ]),
    );
    return { box: boxAround(corners), shape: corners };
  }
  const cells = cellsOf(shape);
  const same = sameSize(box, to);
  const next = same ? moved(cells, to[0] - box[0], to[1] - box[1]) : stretched(cells, box, to);
  return painted(next) ?? { box, shape };
}

/**
 * The region of painted cells.
 * @param {import("./cells.js").Cells} cells
 * @returns {Region | null} null if no cell is covered
 */
export function painted(cells) {
  const box = boxOfCells(cells);
  return box && { box, shape: { height: cells.height, width: cells.width, runs: runsOf(cells) } };
}

/**
 * @param {Region} region
 * @param {number} x
 * @param {number} y
 * @returns {boolean}
 */
export function covers({ box, shape }, x, y) {
  if (x < box[0] || x > box[2] || y < box[1] || y > box[3]) return false;
  if (shape === null) return true;
  if (shape === "ellipse") {
    const u = (2 * (x - box[0])) / (box[2] - box[0]) - 1;
    const v = (2 * (y - box[1])) / (box[3] - box[1]) - 1;
    return u * u + v * v <= 1;
  }
  if (Array.isArray(shape)) return insidePolygon(shape, x, y);
  const cells = cellsOf(shape);
  const column = Math.min(Math.floor(x * cells.width), cells.width - 1);
  const row = Math.min(Math.floor(y * cells.height), cells.height - 1);
  return cells.covered[row * cells.width + column] === 1;
}

/**
 * Whether the edges of a polygon meet at its corners alone, as the drawing needs it.
 * @param {Corner[]} corners
 */
export function isSimple(corners) {
  const n = corners.length;
  for (let i = 0; i < n; i++) {
    for (let j = i + 1; j < n; j++) {
      const neighbours = j === i + 1 || (i === 0 && j === n - 1);
      const [a, b] = [corners[i], corners[(i + 1) % n]];
      const [c, d] = [corners[j], corners[(j + 1) % n]];
      if (!neighbours && cross(a, b, c, d)) return false;
    }
  }
  return true;
}

/**
 * @param {Corner[]} corners
 * @param {number} x
 * @param {number} y
 */
function insidePolygon(corners, x, y) {
  let inside = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [ax, ay] = corners[i];
    const [bx, by] = corners[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

/**
 * Whether two edges have a point in common.
 * @param {Corner} a
 * @param {Corner} b
 * @param {Corner} c
 * @param {Corner} d
 */
function cross(a, b, c, d) {
  const side = (/** @type {Corner} */ p, /** @type {Corner} */ q, /** @type {Corner} */ r) =>
    Math.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]));
  return side(a, b, c) * side(a, b, d) <= 0 && side(c, d, a) * side(c, d, b) <= 0;
}

/**
 * @param {Box} a
 * @param {Box} b
 */
function sameSize(a, b) {
  const off = [0, 1].map((k) => Math.abs(a[k + 2] - a[k] - (b[k + 2] - b[k])));
  return Math.max(...off) < 1e-3;
}
