/** Elements made without markup in strings: what comes from a user is text or an attribute. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {string | number | boolean | null | undefined | ((event: any) => void)} Value
 *   A function is a listener of the event that the name says; false, null and undefined are absent.
 */

/**
 * @param {string} tag
 * @param {Record<string, Value>} [attributes]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/**
 * @param {string} tag
 * @param {Record<string, Value>} [attributes]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * @param {Element} node
 * @param {Record<string, Value>} attributes
 */
export function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * The element of the page with an id.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page must have an element #${id}`);
  return node;
}

/**
 * Whether what has the focus takes text, and its own keys with it.
 * @returns {boolean}
 */
export function typing() {
  const node = document.activeElement;
  if (node instanceof HTMLTextAreaElement) return true;
  return node instanceof HTMLInputElement && ["text", "number", "search"].includes(node.type);
}

/**
 * Sets the value of a control unless the user is in it.
 * @param {HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement} control
 * @param {string | number} value
 */
export function show(control, value) {
  const text = String(value);
  if (control !== document.activeElement && control.value !== text) control.value = text;
}

/**
 * Says something to those who listen to the page.
 * @param {string} text
 */
export function announce(text) {
  byId("announcer").textContent = text;
}

/**
 * @template {Element} T
 * @param {T} node
 * @param {Record<string, Value>} attributes
 * @param {(Node | string)[]} children
 * @returns {T}
 */
function filled(node, attributes, children) {
  set(node, attributes);
  node.append(...children);
  return node;
}
