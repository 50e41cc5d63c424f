/** Distinct on light and dark pictures and for colour-blind eyes (Okabe and Ito's set). */
const PALETTE = ["#e69f00", "#0072b2", "#cc79a7", "#009e73", "#d55e00", "#56b4e9", "#f0e442"];

/**
 * @param {number} hue an object's number
 * @returns {string}
 */
export function colourOf(hue) {
  return PALETTE[hue % PALETTE.length];
}

/**
 * Black or white, whichever is read better on the colour (luma of ITU-R BT.601).
 * @param {number} hue
 * @returns {string}
 */
export function inkOf(hue) {
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(colourOf(hue).slice(i, i + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128 ? "#000" : "#fff";
}

/**
 * The colour that the fewest of some objects have.
 * @param {number[]} hues
 * @returns {number}
 */
export function freshHue(hues) {
  const counts = PALETTE.map((_, k) => hues.filter((hue) => hue % PALETTE.length === k).length);
  return counts.indexOf(Math.min(...counts));
}
