/**
 * What is to be drawn, and the changes that can be made to it; nothing here is changed in place.
 *
 * @typedef {import("./geometry.js").Box} Box
 * @typedef {import("./geometry.js").Shape} Shape
 * @typedef {[number, number]} Knot  share of the steps, share of the strength
 *
 * @typedef {object} Item  an object of the picture
 * @property {number} id
 * @property {number} hue
 * @property {string} phrase
 * @property {string | null} noun
 * @property {Box} box
 * @property {Shape} shape
 * @property {number} score
 * @property {number} strength  a multiple of what the mode gives an object by itself
 * @property {number} start  share of the steps
 * @property {number} stop
 * @property {boolean} placed  by hand: what is predicted does not replace it
 * @property {boolean} named  by hand
 *
 * @typedef {object} Scene
 * @property {string} prompt
 * @property {string} negative
 * @property {Item[]} items  front to back
 * @property {[number, string, number][]} relations  by the items' ids
 * @property {string[]} dropped  phrases of items that were deleted by hand
 * @property {Knot[] | null} curve  null: the mode's own
 * @property {boolean} covers  whether an item hides those behind it
 * @property {number} width  pixels
 * @property {number} height
 * @property {number} seed
 * @property {number} steps
 * @property {string} sampler  "" is the model's own
 * @property {number} guidance
 *
 * @typedef {"plain" | "spatial" | "spatial-temporal"} Mode
 * @typedef {{phrase: string, noun?: string, box: Box, score?: number, shape?: Shape}} Placed
 * @typedef {object} Layout  docs/layout.md
 * @property {string} prompt
 * @property {number} aspect
 * @property {Placed[]} objects
 * @property {[number, string, number][]} relations
 *
 * @typedef {{strength: number, start: number, stop: number}} RegionWeight
 * @typedef {{regions: RegionWeight[], curve: Knot[] | null}} Weights
 */

import { filledWhere, blank, without } from "./cells.js";
import { freshHue } from "./colours.js";
import { covers, painted } from "./geometry.js";

/** @type {readonly Mode[]} */
export const MODES = ["plain", "spatial", "spatial-temporal"];

/** @type {Knot[]} */
export const FALLING = [
  [0, 1],
  [1, 0],
];

const NEUTRAL = { strength: 1, start: 0, stop: 1 };

/**
 * @param {Scene} scene
 * @returns {number} width / height
 */
export function aspectOf(scene) {
  return scene.width / scene.height;
}

/**
 * @param {Scene} scene
 * @param {number | null} id
 * @returns {Item | undefined}
 */
export function itemOf(scene, id) {
  return scene.items.find((item) => item.id === id);
}

/**
 * @param {Scene} scene
 * @param {number} id
 * @param {Partial<Item>} patch
 * @returns {Scene}
 */
export function patched(scene, id, patch) {
  const items = scene.items.map((item) => (item.id === id ? { ...item, ...patch } : item));
  return { ...scene, items };
}

/**
 * A new item in front of the others.
 * @param {Scene} scene
 * @param {{box: Box, shape: Shape}} region
 * @param {string} phrase
 * @returns {Scene}
 */
export function added(scene, { box, shape }, phrase) {
  const item = {
    ...NEUTRAL,
    id: freshId(scene.items),
    hue: freshHue(scene.items.map(({ hue }) => hue)),
    phrase,
    noun: null,
    box,
    shape,
    score: 1,
    placed: true,
    named: true,
  };
  return { ...scene, items: [item, ...scene.items] };
}

/**
 * @param {Scene} scene
 * @param {number} id
 * @returns {Scene}
 */
export function removed(scene, id) {
  const item = itemOf(scene, id);
  if (!item) return scene;
  return {
    ...scene,
    items: scene.items.filter((other) => other !== item),
    relations: scene.relations.filter(([i, , j]) => i !== id && j !== id),
    dropped: [...scene.dropped, item.phrase],
  };
}

/**
 * Names an item, and says so in the prompt: in the place of the old phrase, or at the end.
 * @param {Scene} scene
 * @param {number} id
 * @param {string} phrase
 * @returns {Scene}
 */
export function renamed(scene, id, phrase) {
  const item = itemOf(scene, id);
  const name = phrase.trim().replace(/\s+/g, " ");
  if (!item || !name || name === item.phrase) return scene;
  const next = patched(scene, id, { phrase: name, noun: null, named: true });
  return { ...next, prompt: promptWith(scene.prompt, item.phrase, name) };
}

/**
 * Moves an item by one place to the front (-1) or to the back (1).
 * @param {Scene} scene
 * @param {number} id
 * @param {-1 | 1} by
 * @returns {Scene}
 */
export function reordered(scene, id, by) {
  const from = scene.items.findIndex((item) => item.id === id);
  const to = from + by;
  if (from < 0 || to < 0 || to >= scene.items.length) return scene;
  const items = [...scene.items];
  [items[from], items[to]] = [items[to], items[from]];
  return { ...scene, items };
}

/**
 * The scene with the objects of a layout. An object that has an item of its phrase keeps that
 * item's colour and weights, and with `keep` also the place that it was given by hand.
 * @param {Scene} scene
 * @param {Layout} layout
 * @param {{keep: boolean}} how
 * @returns {Scene}
 */
export function placed(scene, layout, { keep }) {
  const left = [...scene.items];
  /** @type {Item[]} */
  const items = [];
  const matches = layout.objects.map((object) => {
    const index = left.findIndex((item) => item.phrase === object.phrase);
    return index < 0 ? null : left.splice(index, 1)[0];
  });
  layout.objects.forEach((object, index) => {
    const old = matches[index];
    const taken = [...matches.filter((item) => item !== null), ...items];
    const place = {
      box: object.box,
      shape: object.shape ?? null,
      score: object.score ?? 1,
      placed: false,
    };
    items.push({
      ...NEUTRAL,
      id: freshId([...scene.items, ...items]),
      hue: freshHue(taken.map(({ hue }) => hue)),
      named: false,
      ...place,
      ...(old ?? {}),
      phrase: object.phrase,
      noun: object.noun ?? null,
      ...(keep && old?.placed ? {} : place),
    });
  });
  const ids = items.map(({ id }) => id);
  const relations = layout.relations.map(
    ([i, predicate, j]) =>
      /** @type {[number, string, number]} */ ([ids[i], predicate, ids[j]]),
  );
  return { ...scene, items, relations, dropped: [] };
}

/**
 * The scene of a file that was opened; what the file does not say stays as it is.
 * @param {Scene} scene
 * @param {import("./api.js").Opened} opened
 * @param {{width: number, height: number}} size  for a layout's aspect
 * @returns {Scene}
 */
export function openedIn(scene, { layout, settings, seed, regions, curve }, size) {
  const next = placed({ ...scene, items: [] }, layout, { keep: false });
  return {
    ...next,
    prompt: layout.prompt || layout.objects.map(({ phrase }) => phrase).join(" and "),
    negative: settings?.negative_prompt ?? "",
    items: next.items.map((item, k) => ({ ...item, ...regions?.[k], placed: true })),
    curve,
    covers: false,
    width: settings?.width ?? size.width,
    height: settings?.height ?? size.height,
    seed: seed ?? scene.seed,
    steps: settings?.steps ?? scene.steps,
    sampler: settings?.sampler ?? "",
    guidance: settings?.guidance_scale ?? scene.guidance,
  };
}

/**
 * @param {Scene} scene
 * @returns {Layout}
 */
export function layoutOf(scene) {
  const index = new Map(scene.items.map((item, k) => [item.id, k]));
  return {
    prompt: scene.prompt,
    aspect: aspectOf(scene),
    objects: (scene.covers ? uncovered(scene) : scene.items).map((item) => ({
      phrase: item.phrase,
      ...(item.noun === null ? {} : { noun: item.noun }),
      box: item.box,
      score: item.score,
      ...(item.shape === null ? {} : { shape: item.shape }),
    })),
    relations: scene.relations.map(([i, predicate, j]) => [
      index.get(i) ?? 0,
      predicate,
      index.get(j) ?? 0,
    ]),
  };
}

/**
 * The weights of a drawing, or null where all are the mode's own.
 * @param {Scene} scene
 * @param {Mode} mode
 * @returns {Weights | null}
 */
export function weightsOf(scene, mode) {
  const curve = mode === "spatial-temporal" ? scene.curve : null;
  const regions = scene.items.map(({ strength, start, stop }) => ({ strength, start, stop }));
  const neutral = regions.every(
    ({ strength, start, stop }) => strength === 1 && start === 0 && stop === 1,
  );
  return mode === "plain" || (neutral && curve === null) ? null : { regions, curve };
}

/**
 * A curve's value, on straight lines between its knots.
 * @param {Knot[]} curve
 * @param {number} t
 * @returns {number}
 */
export function curveAt(curve, t) {
  const next = curve.findIndex(([at]) => at >= t);
  if (next === 0) return curve[0][1];
  if (next < 0) return curve[curve.length - 1][1];
  const [[a, from], [b, to]] = [curve[next - 1], curve[next]];
  return a === b ? to : from + ((to - from) * (t - a)) / (b - a);
}

/**
 * What the prompt and the items say differently, in sentences.
 * @param {Scene} scene
 * @returns {string[]}
 */
export function disagreements(scene) {
  const said = simple(scene.prompt);
  const unsaid = scene.items.filter(
    ({ named, phrase }) => named && !said.includes(simple(phrase)),
  );
  const phrases = new Set(scene.items.map(({ phrase }) => simple(phrase)));
  const boxless = scene.dropped.filter((p) => said.includes(simple(p)) && !phrases.has(simple(p)));
  const broken = scene.relations.filter((relation) => !holds(scene, relation));
  return [
    ...unsaid.map(({ phrase }) => `The prompt does not say “${phrase}”.`),
    ...boxless.map((phrase) => `The prompt still says “${phrase}”, which has no place.`),
    ...broken.map(([i, predicate, j]) => {
      const [a, b] = [itemOf(scene, i)?.phrase, itemOf(scene, j)?.phrase];
      return `The prompt says “${predicate}”, but that is not where ${a} and ${b} are.`;
    }),
  ];
}

/**
 * A prompt that says what the items are, and the background that the prompt has now.
 * @param {Scene} scene
 * @returns {Scene}
 */
export function reworded(scene) {
  const said = simple(scene.prompt);
  const where = (/** @type {Item} */ item) => (said.indexOf(simple(item.phrase)) + 1 || Infinity);
  const phrases = [...scene.items]
    .sort((a, b) => (where(a) === where(b) ? 0 : where(a) - where(b)))
    .map(({ phrase }) => phrase);
  const list = [phrases.slice(0, -1).join(", "), ...phrases.slice(-1)].filter(Boolean);
  const prompt = [list.join(" and "), backgroundOf(scene.prompt)].filter(Boolean).join(" ");
  return { ...scene, prompt, relations: [], dropped: [] };
}

/**
 * @param {Scene} scene
 * @param {[number, string, number]} relation
 * @returns {boolean} true also of relations that are not about sides
 */
function holds(scene, [i, predicate, j]) {
  const [a, b] = [itemOf(scene, i)?.box, itemOf(scene, j)?.box];
  if (!a || !b) return true;
  const right = a[0] + a[2] - b[0] - b[2];
  const down = a[1] + a[3] - b[1] - b[3];
  const sides = { "left of": -right, "right of": right, above: -down, below: down };
  return (sides[/** @type {keyof typeof sides} */ (predicate)] ?? 1) > 0;
}

/**
 * The items without what those in front cover, where something is left.
 * @param {Scene} scene
 * @returns {Item[]}
 */
function uncovered(scene) {
  const size = blank(aspectOf(scene));
  /** @type {import("./cells.js").Cells[]} */
  const front = [];
  return scene.items.map((item, index) => {
    const meets = scene.items.slice(0, index).some((other) => overlap(item.box, other.box));
    const own = filledWhere(size, (x, y) => covers(item, x, y));
    const seen = front.reduce(without, own);
    front.push(own);
    const region = meets ? painted(seen) : null;
    return region ? { ...item, ...region } : item;
  });
}

/**
 * @param {Box} a
 * @param {Box} b
 */
function overlap(a, b) {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

/**
 * @param {string} prompt
 * @param {string} before
 * @param {string} after
 * @returns {string}
 */
function promptWith(prompt, before, after) {
  const at = prompt.toLowerCase().indexOf(before.toLowerCase());
  if (before && at >= 0) return prompt.slice(0, at) + after + prompt.slice(at + before.length);
  if (simple(prompt).includes(simple(after))) return prompt;
  const background = backgroundOf(prompt);
  const things = prompt.replace(background, "").trim().replace(/[.,;]$/, "");
  const list = [things, after].filter(Boolean).join(" and ");
  return background ? `${list} ${background}` : list;
}

/**
 * What a prompt says of the background at its end.
 * @param {string} prompt
 * @returns {string}
 */
function backgroundOf(prompt) {
  return prompt.match(/\bon an? (?:\w+ ){1,3}background\W*$/i)?.[0] ?? "";
}

/** @param {string} text */
function simple(text) {
  return text.toLowerCase().replace(/\s+/g, " ").trim();
}

/** @param {Item[]} items */
function freshId(items) {
  return 1 + Math.max(0, ...items.map(({ id }) => id));
}
