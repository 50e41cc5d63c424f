/**
 * Painted masks: a grid over the whole canvas, of which each cell is covered or not.
 *
 * @typedef {{height: number, width: number, covered: Uint8Array}} Cells
 * @typedef {import("./geometry.js").Box} Box
 * @typedef {import("./geometry.js").Painted} Painted
 */

/** Cells along the longer side of the canvas. */
export const FINEST = 128;

/**
 * @param {number} aspect width / height of the canvas
 * @returns {Cells}
 */
export function blank(aspect) {
  const width = Math.max(1, Math.round(FINEST * Math.min(1, aspect)));
  const height = Math.max(1, Math.round(FINEST * Math.min(1, 1 / aspect)));
  return { height, width, covered: new Uint8Array(height * width) };
}

/**
 * @param {Painted} painted
 * @returns {Cells}
 */
export function cellsOf({ height, width, runs }) {
  const covered = new Uint8Array(height * width);
  let start = 0;
  runs.forEach((run, index) => {
    if (index % 2) covered.fill(1, start, start + run);
    start += run;
  });
  return { height, width, covered };
}

/**
 * Lengths of runs in reading order, in turn not covered and covered.
 * @param {Cells} cells
 * @returns {number[]}
 */
export function runsOf({ covered }) {
  const runs = [];
  let value = 0;
  let length = 0;
  for (const cell of covered) {
    if (cell === value) length += 1;
    else {
      runs.push(length);
      value = cell;
      length = 1;
    }
  }
  runs.push(length);
  return runs;
}

/**
 * The smallest box around what is covered.
 * @param {Cells} cells
 * @returns {Box | null}
 */
export function boxOfCells({ height, width, covered }) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  covered.forEach((cell, index) => {
    if (!cell) return;
    const column = index % width;
    const row = (index - column) / width;
    left = Math.min(left, column);
    right = Math.max(right, column);
    top = Math.min(top, row);
    bottom = Math.max(bottom, row);
  });
  if (right < 0) return null;
  return [left / width, top / height, (right + 1) / width, (bottom + 1) / height];
}

/**
 * The cells whose middles a test takes.
 * @param {{height: number, width: number}} size
 * @param {(x: number, y: number) => boolean} isCovered of fractions of the canvas
 * @returns {Cells}
 */
export function filledWhere({ height, width }, isCovered) {
  const covered = new Uint8Array(height * width);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (isCovered((column + 0.5) / width, (row + 0.5) / height)) covered[row * width + column] = 1;
    }
  }
  return { height, width, covered };
}

/**
 * A stroke of a round brush from one point to another.
 * @param {Cells} cells
 * @param {import("./geometry.js").Corner} from fractions of the canvas
 * @param {import("./geometry.js").Corner} to
 * @param {number} radius as a fraction of the longer side
 * @param {0 | 1} value 0 erases
 * @returns {Cells}
 */
export function stroked(cells, from, to, radius, value) {
  const { height, width } = cells;
  const covered = cells.covered.slice();
  const reach = radius * Math.max(height, width);
  const [ax, ay, bx, by] = [from[0] * width, from[1] * height, to[0] * width, to[1] * height];
  const [dx, dy] = [bx - ax, by - ay];
  const length = dx * dx + dy * dy;
  const first = (/** @type {number} */ v) => Math.max(0, Math.floor(v - reach));
  const last = (/** @type {number} */ v, /** @type {number} */ most) =>
    Math.min(most - 1, Math.ceil(v + reach));
  for (let row = first(Math.min(ay, by)); row <= last(Math.max(ay, by), height); row++) {
    for (let column = first(Math.min(ax, bx)); column <= last(Math.max(ax, bx), width); column++) {
      const [x, y] = [column + 0.5 - ax, row + 0.5 - ay];
      const along = length ? Math.min(Math.max((x * dx + y * dy) / length, 0), 1) : 0;
      if (Math.hypot(x - along * dx, y - along * dy) <= reach) {
        covered[row * width + column] = value;
      }
    }
  }
  return { height, width, covered };
}

/**
 * @param {Cells} cells
 * @param {number} dx in fractions of the canvas, to the nearest cell
 * @param {number} dy
 * @returns {Cells}
 */
export function moved(cells, dx, dy) {
  const { height, width } = cells;
  const [right, down] = [Math.round(dx * width), Math.round(dy * height)];
  return sampled(cells, (column, row) => [column - right, row - down]);
}

/**
 * The cells of one box in another, nearest neighbours.
 * @param {Cells} cells
 * @param {Box} from
 * @param {Box} to
 * @returns {Cells}
 */
export function stretched(cells, from, to) {
  const { height, width } = cells;
  const [sx, sy] = [0, 1].map((k) => (from[k + 2] - from[k]) / (to[k + 2] - to[k]));
  return sampled(cells, (column, row) => [
    Math.floor((from[0] + ((column + 0.5) / width - to[0]) * sx) * width),
    Math.floor((from[1] + ((row + 0.5) / height - to[1]) * sy) * height),
  ]);
}

/**
 * What is covered of some cells and not of others of the same size.
 * @param {Cells} cells
 * @param {Cells} front
 * @returns {Cells}
 */
export function without(cells, front) {
  return { ...cells, covered: cells.covered.map((cell, index) => cell & ~front.covered[index] & 1) };
}

/**
 * Paths in units of cells: the area, row by row, and its edge.
 * @param {Cells} cells
 * @returns {{area: string, edge: string}}
 */
export function pathsOf({ height, width, covered }) {
  const at = (/** @type {number} */ column, /** @type {number} */ row) =>
    column >= 0 && column < width && row >= 0 && row < height ? covered[row * width + column] : 0;
  const area = [];
  const edge = [];
  for (let row = 0; row <= height; row++) {
    let start = -1;
    for (let column = 0; column <= width; column++) {
      const here = at(column, row);
      if (here !== at(column, row - 1)) edge.push(`M${column} ${row}h1`);
      if (here === at(column - 1, row)) continue;
      edge.push(`M${column} ${row}v1`);
      if (here) start = column;
      else area.push(`M${start} ${row}H${column}v1H${start}z`);
    }
  }
  return { area: area.join(""), edge: edge.join("") };
}

/**
 * @param {Cells} cells
 * @param {(column: number, row: number) => [number, number]} source where a cell comes from
 * @returns {Cells}
 */
function sampled(cells, source) {
  const { height, width, covered } = cells;
  const out = new Uint8Array(covered.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const [x, y] = source(column, row);
      if (x >= 0 && x < width && y >= 0 && y < height && covered[y * width + x]) {
        out[row * width + column] = 1;
      }
    }
  }
  return { height, width, covered: out };
}
