/**
 * Puts the parts of the page together.
 *
 * @typedef {import("./scene.js").Scene} Scene
 * @typedef {import("./scene.js").Mode} Mode
 *
 * @typedef {object} View  what is shown of the scene, which cannot be undone
 * @property {number | null} selected  id of an item
 * @property {import("./editor.js").Tool} tool
 * @property {number} radius  of the brush, share of the longer side
 * @property {Mode} shown  whose picture lies on the canvas
 * @property {Mode[]} modes  that are drawn
 * @property {number | null} word  whose attention is shown
 * @property {boolean} boxes
 * @property {boolean} live  to draw after each change
 * @property {string} notice
 */

import { createApi, sentence, takeKey } from "./api.js";
import { createAttention } from "./attention.js";
import { createCurve } from "./curve.js";
import { announce, byId, typing } from "./dom.js";
import { createDrawer, finished, isRunning } from "./drawing.js";
import { createEditor } from "./editor.js";
import { createDrop } from "./files.js";
import { createObjects } from "./objects.js";
import { createOutput } from "./output.js";
import { createBackdrop, createPictures } from "./pictures.js";
import { createPrompt, examplesOf } from "./prompt.js";
import { aspectOf, MODES, openedIn, placed } from "./scene.js";
import { createSettings, sizeOf } from "./settings.js";
import { observable, undoable } from "./store.js";
import { createVisit } from "./visit.js";

const LIVE_MS = 250;
const NONE = Object.fromEntries(MODES.map((mode) => [mode, undefined]));

/**
 * An example, with its objects in their places.
 * @param {import("./api.js").Api} api
 * @param {import("./api.js").About} about
 * @returns {Promise<Scene>}
 */
async function firstScene(api, about) {
  /** @type {Scene} */
  const scene = {
    prompt: examplesOf(about)[0] ?? "",
    negative: "",
    items: [],
    relations: [],
    dropped: [],
    curve: null,
    covers: false,
    width: about.width,
    height: about.height,
    seed: 0,
    steps: about.steps,
    sampler: "",
    guidance: about.guidance_scale,
  };
  if (!scene.prompt) return scene;
  const { prompt, width, height } = scene;
  const { layout } = await api.layout({ prompt, width, height, seed: null });
  return placed(scene, layout, { keep: false });
}

/** @returns {View} */
function firstView() {
  return {
    selected: null,
    tool: "select",
    radius: 0.05,
    shown: "spatial-temporal",
    modes: [...MODES],
    word: null,
    boxes: true,
    live: false,
    notice: "",
  };
}

/**
 * @param {import("./api.js").Api} api
 * @param {import("./api.js").About} about
 * @param {Scene} first
 */
function start(api, about, first) {
  const scene = undoable(first);
  const view = observable(firstView());
  /** @type {import("./store.js").Observable<import("./drawing.js").Pictures>} */
  const pictures = observable({});
  let wait = 0;
  const fail = (/** @type {unknown} */ error) => view.set({ notice: sentence(error) });

  const objects = createObjects({ list: byId("objects"), scene, view });
  const prompt = createPrompt({ api, about, scene, view, fail });
  createEditor({ stage: byId("stage"), root: byId("editor"), scene, view, onNew: objects.rename });
  createCurve({ root: byId("curve"), scene });
  createSettings({ scene, about });
  createPictures({ root: byId("pictures"), pictures, view });
  createBackdrop({ image: byId("backdrop"), pictures, view });
  createAttention({ api, words: byId("words"), canvas: byId("heat"), pictures, view });
  createOutput({ api, scene, pictures, view, fail });
  createDrop({ chooser: byId("file"), onFile: open });
  const visit = createVisit({
    list: byId("visit"),
    onChoose: (visited) => {
      drawer.cancel();
      scene.change(visited.scene);
      pictures.set({ ...NONE, ...visited.pictures });
    },
  });
  const drawer = createDrawer({
    api,
    pictures,
    fail,
    onDone: (drawn, done) => {
      visit.add({ scene: drawn, pictures: done });
      announce("The pictures are drawn.");
    },
  });

  async function draw() {
    try {
      view.set({ notice: "", word: null });
      await prompt.ready();
      if (!scene.get().prompt.trim()) throw new Error("Say first what to draw.");
      const { modes, shown } = view.get();
      if (!modes.includes(shown)) view.set({ shown: modes[0] });
      await drawer.draw(scene.get(), modes);
    } catch (error) {
      fail(error);
    }
  }

  /** @param {File} file */
  async function open(file) {
    try {
      if (file.size > about.limits.upload_bytes) throw new Error("The file is too large.");
      const opened = await api.open(file, scene.get());
      drawer.cancel();
      scene.change(openedIn(scene.get(), opened, sizeOf(opened.layout.aspect, about)));
      view.set({ selected: null, notice: `${file.name} is open.` });
      const shown = MODES.find((mode) => mode === opened.settings?.attention);
      if (!shown) return;
      pictures.set({ ...NONE, [shown]: finished(file, null, file.name) });
      view.set({ shown });
    } catch (error) {
      fail(error);
    }
  }

  /** @param {KeyboardEvent} event */
  function key(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const letter = event.key.toLowerCase();
    if (letter === "enter") draw();
    else if (typing()) return;
    else if (letter === "y" || (letter === "z" && event.shiftKey)) scene.redo();
    else if (letter === "z") scene.undo();
    else return;
    event.preventDefault();
  }

  function showScene() {
    const now = scene.get();
    byId("covers").checked = now.covers;
    byId("reset-curve").disabled = now.curve === null;
    byId("stage").style.setProperty("--aspect", `${aspectOf(now)}`);
    byId("pictures").style.setProperty("--aspect", `${aspectOf(now)}`);
    byId("empty").hidden = now.items.length > 0;
  }

  function showView() {
    const now = view.get();
    showNotice(now.notice);
    byId("brush").hidden = !["brush", "eraser"].includes(now.tool);
    for (const radio of byId("tools").elements) radio.checked = radio.value === now.tool;
  }

  function showPast() {
    byId("undo").disabled = !scene.canUndo();
    byId("redo").disabled = !scene.canRedo();
  }

  function drawLive() {
    clearTimeout(wait);
    if (!view.get().live || !scene.get().items.length || prompt.isPending()) return;
    wait = setTimeout(draw, LIVE_MS);
  }

  byId("prompt").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.isComposing) return;
    event.preventDefault();
    draw();
  });
  byId("draw").addEventListener("click", () => {
    if (isRunning(pictures.get())) drawer.cancel();
    else draw();
  });
  byId("undo").addEventListener("click", scene.undo);
  byId("redo").addEventListener("click", scene.redo);
  byId("reset-curve").addEventListener("click", () => {
    scene.change({ ...scene.get(), curve: null });
  });
  byId("covers").addEventListener("change", () => {
    scene.change({ ...scene.get(), covers: byId("covers").checked });
  });
  byId("live").addEventListener("change", () => {
    view.set({ live: byId("live").checked });
    drawLive();
  });
  byId("boxes").addEventListener("change", () => view.set({ boxes: byId("boxes").checked }));
  byId("radius").addEventListener("input", () => {
    view.set({ radius: Number(byId("radius").value) / 200 });
  });
  for (const radio of byId("tools").elements) {
    radio.addEventListener("change", () => view.set({ tool: radio.value }));
  }
  byId("close-notice").addEventListener("click", () => view.set({ notice: "" }));
  byId("model").textContent = about.model;
  document.addEventListener("keydown", key);
  addEventListener("pagehide", drawer.cancel);

  scene.listen(showScene);
  scene.whenSettled(showPast);
  scene.whenSettled(drawLive);
  view.listen(showView);
  pictures.listen((now) => {
    const running = isRunning(now);
    byId("draw").textContent = running ? "Cancel" : "Draw";
    byId("draw").classList.toggle("running", running);
  });
  showScene();
  showView();
}

/** @param {string} text */
function showNotice(text) {
  byId("notice-text").textContent = text;
  byId("notice").hidden = !text;
}

const api = createApi(takeKey());
try {
  const about = await api.about();
  start(api, about, await firstScene(api, about));
} catch (error) {
  showNotice(sentence(error));
}
