/** Files out of the page and into it. */

/**
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The download has begun when the page is idle again.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * A name for a file about a prompt.
 * @param {string} prompt
 * @param {string} ending
 */
export function nameOf(prompt, ending) {
  const words = prompt.toLowerCase().match(/[a-z0-9]+/g) ?? ["stal"];
  return `${words.join("-").slice(0, 60)}.${ending}`;
}

/**
 * Takes files that are dropped anywhere or chosen.
 * @param {object} parts
 * @param {HTMLInputElement} parts.chooser
 * @param {(file: File) => void} parts.onFile
 */
export function createDrop({ chooser, onFile }) {
  const root = document.documentElement;
  const brings = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    root.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) root.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    root.classList.remove("dropping");
    const [file] = event.dataTransfer?.files ?? [];
    if (!file) return;
    event.preventDefault();
    onFile(file);
  });
  chooser.addEventListener("change", () => {
    const [file] = chooser.files ?? [];
    if (file) onFile(file);
    chooser.value = "";
  });
}
