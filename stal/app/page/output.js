/** What can be taken along: the picture, the layout, and the Python lines that draw it again. */

import { announce, byId } from "./dom.js";
import { nameOf, save } from "./files.js";
import { layoutOf } from "./scene.js";

/**
 * @param {object} parts
 * @param {import("./api.js").Api} parts.api
 * @param {ReturnType<typeof import("./store.js").undoable<import("./scene.js").Scene>>} parts.scene
 * @param {import("./store.js").Observable<import("./drawing.js").Pictures>} parts.pictures
 * @param {import("./store.js").Observable<import("./main.js").View>} parts.view
 * @param {(error: unknown) => void} parts.fail
 */
export function createOutput({ api, scene, pictures, view, fail }) {
  const dialog = byId("code");
  const lines = byId("lines");
  const picture = () => pictures.get()[view.get().shown];
  const saveAs = (/** @type {BlobPart} */ part, /** @type {string} */ type, /** @type {string} */ ending) =>
    save(new Blob([part], { type }), nameOf(scene.get().prompt, ending));

  byId("save-png").addEventListener("click", () => {
    const blob = picture()?.blob;
    if (blob) saveAs(blob, "image/png", "png");
  });
  byId("save-layout").addEventListener("click", () => {
    saveAs(JSON.stringify(layoutOf(scene.get()), null, 2), "application/json", "json");
  });
  byId("show-code").addEventListener("click", async () => {
    try {
      lines.textContent = await api.code(picture()?.id ?? "");
      dialog.showModal();
    } catch (error) {
      fail(error);
    }
  });
  byId("copy-code").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(lines.textContent);
      byId("copy-code").textContent = "Copied";
      announce("The lines are copied.");
    } catch {
      getSelection()?.selectAllChildren(lines);
    }
  });
  byId("save-code").addEventListener("click", () => {
    saveAs(lines.textContent, "text/x-python", "py");
  });
  byId("close-code").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    byId("copy-code").textContent = "Copy";
  });

  function enable() {
    byId("save-png").disabled = !picture()?.blob;
    byId("show-code").disabled = !picture()?.id;
  }
  pictures.listen(enable);
  view.listen(enable);
  enable();
}
