/** Values that tell whoever listens when they change; one of them can be undone. */

const MOST_UNDO = 200;
const MERGE_MS = 1000;

/**
 * @template T
 * @typedef {{get: () => T, set: (patch: Partial<T>) => void,
 *   listen: (heard: (now: T, before: T) => void) => void}} Observable
 */

/**
 * @template {object} T
 * @param {T} initial
 * @returns {Observable<T>}
 */
export function observable(initial) {
  let value = initial;
  /** @type {((now: T, before: T) => void)[]} */
  const listeners = [];
  return {
    get: () => value,
    set: (patch) => {
      const before = value;
      value = { ...value, ...patch };
      for (const heard of listeners) heard(value, before);
    },
    listen: (heard) => listeners.push(heard),
  };
}

/**
 * A value with its past. `hold` shows one that a gesture has not settled yet: the gesture is one
 * step of undo however many values it passes through.
 *
 * @template T
 * @param {T} initial
 * @param {() => number} [now] milliseconds
 */
export function undoable(initial, now = () => performance.now()) {
  /** @type {T[]} */
  let past = [];
  /** @type {T[]} */
  let future = [];
  let settled = initial;
  let value = initial;
  let merge = "";
  let mergedAt = 0;
  /** @type {((now: T, before: T) => void)[]} */
  const listeners = [];

  /** @type {((now: T) => void)[]} */
  const settlers = [];

  /** @param {T} next */
  function show(next) {
    const before = value;
    value = next;
    if (next !== before) for (const heard of listeners) heard(next, before);
  }

  /** @param {T} next */
  function settle(next) {
    settled = next;
    show(next);
    for (const heard of settlers) heard(next);
  }

  /**
   * @param {T[]} from
   * @param {T[]} to
   */
  function travel(from, to) {
    const next = from.pop();
    if (next === undefined) return false;
    to.push(settled);
    merge = "";
    settle(next);
    return true;
  }

  return {
    get: () => value,
    /** @param {(now: T, before: T) => void} heard */
    listen: (heard) => listeners.push(heard),
    /** @param {(now: T) => void} heard of what is held nothing */
    whenSettled: (heard) => settlers.push(heard),
    /** @param {T} next */
    hold: (next) => show(next),
    /** Drops what was held. */
    release: () => show(settled),
    /**
     * @param {T} next
     * @param {string} [kind] changes of one kind that follow each other at once are one step
     */
    change: (next, kind = "") => {
      if (next === settled) return show(settled);
      const merged = kind !== "" && kind === merge && now() - mergedAt < MERGE_MS;
      if (!merged) past = [...past, settled].slice(-MOST_UNDO);
      future = [];
      merge = kind;
      mergedAt = now();
      settle(next);
    },
    undo: () => travel(past, future),
    redo: () => travel(future, past),
    canUndo: () => past.length > 0,
    canRedo: () => future.length > 0,
  };
}
