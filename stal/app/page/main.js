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
import { announce, byId, el, show, typing } from "./dom.js";
import { createDrawer, finished, isRunning } from "./drawing.js";
import { createEditor } from "./editor.js";
import { createDrop, nameOf, save } from "./files.js";
import { createObjects } from "./objects.js";
import { createBackdrop, createPictures } from "./pictures.js";
import { aspectOf, disagreements, layoutOf, MODES, placed, reworded } from "./scene.js";
import { createSettings, sizeOf } from "./settings.js";
import { observable, undoable } from "./store.js";
import { createVisit } from "./visit.js";

const TYPING_MS = 400;
const LIVE_MS = 250;
const EXAMPLES = [
  "a red circle to the left of a blue square",
  "a yellow star above a purple ring",
  "a green triangle, a red cross and a blue circle on a black background",
];
const OPEN_EXAMPLES = [
  "a dog to the left of a bicycle",
  "three birds above a car, with a tree behind it",
  "a laptop on a desk, a cup of coffee to its right, a cat under the desk",
];

/** @param {import("./api.js").About} about */
function examplesOf({ words }) {
  if (!words) return OPEN_EXAMPLES;
  const known = new Set(words);
  return EXAMPLES.filter((text) => (text.match(/\w+/g) ?? []).every((word) => known.has(word)));
}

/**
 * @param {import("./api.js").About} about
 * @returns {Scene}
 */
function firstScene(about) {
  return {
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
}

/**
 * @param {import("./api.js").Api} api
 * @param {import("./api.js").About} about
 */
function start(api, about) {
  const scene = undoable(firstScene(about));
  /** @type {import("./store.js").Observable<View>} */
  const view = observable({
    selected: null,
    tool: "select",
    radius: 0.05,
    shown: "spatial-temporal",
    modes: [...MODES],
    word: null,
    boxes: true,
    live: false,
    notice: "",
  });
  /** @type {import("./store.js").Observable<import("./drawing.js").Pictures>} */
  const pictures = observable({});
  let placing = new AbortController();
  let typed = 0;
  let wait = 0;
  const fail = (/** @type {unknown} */ error) => view.set({ notice: sentence(error) });

  const objects = createObjects({ list: byId("objects"), scene, view });
  createEditor({ stage: byId("stage"), root: byId("editor"), scene, view, onNew: objects.rename });
  createCurve({ root: byId("curve"), scene });
  createSettings({ scene, about });
  createPictures({ root: byId("pictures"), pictures, view });
  createBackdrop({ image: byId("backdrop"), pictures, view });
  createAttention({ api, words: byId("words"), canvas: byId("heat"), pictures, view });
  const visit = createVisit({
    list: byId("visit"),
    onChoose: (visited) => {
      scene.change(visited.scene);
      pictures.set({ ...Object.fromEntries(MODES.map((mode) => [mode, undefined])), ...visited.pictures });
    },
  });
  const drawer = createDrawer({
    api,
    pictures,
    onDone: (drawn, done) => {
      visit.add({ scene: drawn, pictures: done });
      announce("The pictures are drawn.");
    },
  });

  createPrompt();
  createButtons();
  createTools();
  createOutput();
  createDrop({ chooser: byId("file"), onFile: open });
  document.addEventListener("keydown", key);
  addEventListener("pagehide", drawer.cancel);
  scene.listen(showScene);
  view.listen(showView);
  showScene(scene.get());
  showView(view.get());

  /**
   * Places the objects of the prompt.
   * @param {{keep: boolean, seed: number | null}} how
   */
  async function place({ keep, seed }) {
    clearTimeout(typed);
    typed = 0;
    placing.abort();
    placing = new AbortController();
    const { signal } = placing;
    const { prompt, width, height } = scene.get();
    if (!prompt.trim()) return;
    try {
      const found = await api.layout({ prompt, width, height, seed }, signal);
      if (signal.aborted) return;
      scene.change(placed(scene.get(), found.layout, { keep }), "prompt");
      view.set({ notice: found.warnings.join(" ") });
    } catch (error) {
      if (!signal.aborted) fail(error);
    }
  }

  async function draw() {
    view.set({ notice: "", word: null });
    if (typed) await place({ keep: true, seed: null });
    if (!scene.get().prompt.trim()) return fail(new Error("Say first what to draw."));
    if (!view.get().modes.includes(view.get().shown)) view.set({ shown: view.get().modes[0] });
    await drawer.draw(scene.get(), view.get().modes);
  }

  /** @param {File} file */
  async function open(file) {
    try {
      if (file.size > about.limits.upload_bytes) throw new Error("The file is too large.");
      const opened = await api.open(file, scene.get());
      drawer.cancel();
      scene.change(sceneOf(opened));
      view.set({ selected: null, notice: `${file.name} is open.` });
      const mode = /** @type {Mode} */ (opened.settings?.attention);
      if (opened.settings && MODES.includes(mode)) {
        pictures.set({ [mode]: finished(file, null, file.name) });
        view.set({ shown: mode });
      }
    } catch (error) {
      fail(error);
    }
  }

  /**
   * @param {import("./api.js").Opened} opened
   * @returns {Scene}
   */
  function sceneOf({ layout, settings, seed, regions, curve }) {
    const now = scene.get();
    const { width, height } = settings?.width ? settings : sizeOf(layout.aspect, about);
    const next = placed({ ...now, items: [] }, layout, { keep: false });
    return {
      ...next,
      prompt: layout.prompt || layout.objects.map(({ phrase }) => phrase).join(" and "),
      items: next.items.map((item, k) => ({ ...item, ...regions?.[k], placed: true })),
      curve,
      covers: false,
      width,
      height,
      seed: seed ?? now.seed,
      negative: settings?.negative_prompt ?? "",
      steps: settings?.steps ?? now.steps,
      sampler: settings?.sampler ?? "",
      guidance: settings?.guidance_scale ?? now.guidance,
    };
  }

  function createPrompt() {
    const prompt = byId("prompt");
    prompt.addEventListener("input", () => {
      scene.change({ ...scene.get(), prompt: prompt.value }, "prompt");
      clearTimeout(typed);
      typed = setTimeout(() => place({ keep: true, seed: null }), TYPING_MS);
    });
    byId("ask").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      if (isRunning(pictures.get())) drawer.cancel();
      else draw().catch(fail);
    });
    byId("examples").append(
      ...examplesOf(about).map((text) => {
        const click = () => {
          scene.change({ ...scene.get(), prompt: text });
          place({ keep: false, seed: null });
        };
        return el("button", { type: "button", class: "chip", click }, text);
      }),
    );
    if (about.words) byId("words-known").textContent = about.words.join(" ");
    byId("vocabulary").hidden = !about.words;
    byId("model").textContent = about.model;
    byId("reword").addEventListener("click", () => scene.change(reworded(scene.get())));
  }

  function createButtons() {
    const click = (/** @type {string} */ id, /** @type {() => void} */ act) =>
      byId(id).addEventListener("click", act);
    click("undo", scene.undo);
    click("redo", scene.redo);
    click("replace", () => place({ keep: false, seed: Math.floor(Math.random() * 2 ** 31) }));
    click("reset-curve", () => scene.change({ ...scene.get(), curve: null }));
    byId("covers").addEventListener("change", (/** @type {any} */ event) => {
      scene.change({ ...scene.get(), covers: event.target.checked });
    });
    byId("live").addEventListener("change", (/** @type {any} */ event) => {
      view.set({ live: event.target.checked });
    });
    byId("boxes").addEventListener("change", (/** @type {any} */ event) => {
      view.set({ boxes: event.target.checked });
    });
    byId("radius").addEventListener("input", (/** @type {any} */ event) => {
      view.set({ radius: Number(event.target.value) / 200 });
    });
    scene.whenSettled((now) => {
      clearTimeout(wait);
      if (view.get().live && now.items.length && !typed) {
        wait = setTimeout(() => draw().catch(fail), LIVE_MS);
      }
    });
    scene.whenSettled(showPast);
    pictures.listen((now) => {
      const running = isRunning(now);
      byId("draw").textContent = running ? "Cancel" : "Draw";
      byId("draw").classList.toggle("running", running);
    });
    showPast();
  }

  function showPast() {
    byId("undo").disabled = !scene.canUndo();
    byId("redo").disabled = !scene.canRedo();
  }

  function createTools() {
    for (const radio of byId("tools").querySelectorAll("input[name=tool]")) {
      radio.addEventListener("change", () => view.set({ tool: radio.value }));
    }
  }

  function createOutput() {
    const dialog = byId("code");
    const picture = () => pictures.get()[view.get().shown];
    byId("save-png").addEventListener("click", () => {
      const blob = picture()?.blob;
      if (blob) save(blob, nameOf(scene.get().prompt, "png"));
    });
    byId("save-layout").addEventListener("click", () => {
      const text = JSON.stringify(layoutOf(scene.get()), null, 2);
      save(new Blob([text], { type: "application/json" }), nameOf(scene.get().prompt, "json"));
    });
    byId("show-code").addEventListener("click", async () => {
      const id = picture()?.id;
      if (!id) return;
      try {
        byId("lines").textContent = await api.code(id);
        dialog.showModal();
      } catch (error) {
        fail(error);
      }
    });
    byId("copy-code").addEventListener("click", async () => {
      await navigator.clipboard.writeText(byId("lines").textContent);
      announce("The lines are copied.");
    });
    byId("save-code").addEventListener("click", () => {
      const type = "text/x-python";
      save(new Blob([byId("lines").textContent], { type }), nameOf(scene.get().prompt, "py"));
    });
    byId("close-code").addEventListener("click", () => dialog.close());
    const enable = () => {
      byId("save-png").disabled = !picture()?.blob;
      byId("show-code").disabled = !picture()?.id;
    };
    pictures.listen(enable);
    view.listen(enable);
    enable();
  }

  /** @param {KeyboardEvent} event */
  function key(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const letter = event.key.toLowerCase();
    if (letter === "enter") draw().catch(fail);
    else if (typing()) return;
    else if (letter === "y" || (letter === "z" && event.shiftKey)) scene.redo();
    else if (letter === "z") scene.undo();
    else return;
    event.preventDefault();
  }

  /** @param {Scene} now */
  function showScene(now) {
    show(byId("prompt"), now.prompt);
    byId("covers").checked = now.covers;
    byId("reset-curve").disabled = now.curve === null;
    byId("stage").style.setProperty("--aspect", `${aspectOf(now)}`);
    byId("pictures").style.setProperty("--aspect", `${aspectOf(now)}`);
    byId("empty").hidden = now.items.length > 0;
    const said = disagreements(now);
    byId("disagreement").hidden = said.length === 0;
    byId("disagreements").textContent = said.join(" ");
  }

  /** @param {View} now */
  function showView(now) {
    byId("notice").textContent = now.notice;
    byId("notice").hidden = !now.notice;
    byId("brush").hidden = !["brush", "eraser"].includes(now.tool);
    const radio = byId("tools").querySelector(`input[value=${now.tool}]`);
    if (radio) radio.checked = true;
  }

  place({ keep: false, seed: null });
}

const api = createApi(takeKey());
try {
  start(api, await api.about());
} catch (error) {
  byId("notice").textContent = sentence(error);
  byId("notice").hidden = false;
}
