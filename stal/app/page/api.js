/**
 * The server's interface. Every request bears the key, if there is one, which headers alone carry.
 *
 * @typedef {object} About
 * @property {string} model
 * @property {number} width
 * @property {number} height
 * @property {number} unit
 * @property {number} steps
 * @property {number} guidance_scale
 * @property {string[]} samplers
 * @property {string} default_sampler
 * @property {string[] | null} words
 * @property {{pixels: number, steps: number, objects: number, upload_bytes: number}} limits
 * @property {string} version
 *
 * @typedef {{id: string, event: string, data: any}} ServerEvent
 * @typedef {import("./scene.js").Layout} Layout
 * @typedef {object} Opened
 * @property {Layout} layout
 * @property {Record<string, any> | null} settings  as those of a drawing; null if it is no picture
 * @property {number | null} seed
 * @property {import("./scene.js").RegionWeight[] | null} regions
 * @property {import("./scene.js").Knot[] | null} curve
 */

const RETRIES = 4;
const RETRY_MS = 700;

/** What the server refused, in its own words. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @typedef {ReturnType<typeof createApi>} Api */

/** @param {string | null} key */
export function createApi(key) {
  /** @type {Record<string, string>} */
  const headers = key ? { Authorization: `Bearer ${key}` } : {};

  /**
   * @param {string} path
   * @param {RequestInit} [options]
   * @returns {Promise<Response>}
   */
  async function call(path, options = {}) {
    const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
    if (!response.ok) throw new ApiError(await reason(response), response.status);
    return response;
  }

  const json = async (/** @type {string} */ path, /** @type {RequestInit} */ options = {}) =>
    (await call(path, options)).json();

  /**
   * @param {string} path
   * @param {object} body
   * @param {AbortSignal} [signal]
   */
  const post = (path, body, signal) =>
    json(path, {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
      signal,
    });

  return {
    /** @returns {Promise<About>} */
    about: () => json("/api/about"),

    /**
     * @param {{prompt: string, width: number, height: number, seed: number | null}} wanted
     * @param {AbortSignal} [signal]
     * @returns {Promise<{layout: Layout, warnings: string[]}>}
     */
    layout: async (wanted, signal) => {
      const { layout } = await post("/api/layout", wanted, signal);
      const { warnings = [], ...rest } = layout;
      return { layout: rest, warnings };
    },

    /**
     * @param {File} file
     * @param {{width: number, height: number}} size
     * @returns {Promise<Opened>}
     */
    open: (file, { width, height }) => {
      const query = new URLSearchParams({ name: file.name, width: `${width}`, height: `${height}` });
      return json(`/api/open?${query}`, {
        method: "POST",
        body: file,
        headers: { "Content-Type": "application/octet-stream" },
      });
    },

    /**
     * @param {object} drawing
     * @returns {Promise<{id: string, position: number}>}
     */
    draw: (drawing) => post("/api/drawings", drawing),

    /** @param {string} id also when the page is about to go */
    cancel: (id) => call(`/api/drawings/${id}`, { method: "DELETE", keepalive: true }),

    /** @param {string} id */
    picture: async (id) => (await call(`/api/drawings/${id}/picture.png`)).blob(),

    /**
     * @param {string} id
     * @returns {Promise<{words: {index: number, text: string}[]}>}
     */
    words: (id) => json(`/api/drawings/${id}/words`),

    /**
     * @param {string} id
     * @param {number} word
     */
    attention: async (id, word) =>
      (await call(`/api/drawings/${id}/attention?word=${word}`)).blob(),

    /** @param {string} id */
    code: async (id) => (await call(`/api/drawings/${id}/code`)).text(),

    /**
     * What happens to a drawing, to its end; a connection that breaks is taken up again where it
     * was.
     * @param {string} id
     * @param {AbortSignal} signal
     * @returns {AsyncGenerator<ServerEvent>}
     */
    events: async function* (id, signal) {
      let last = "";
      for (let tries = 0; ; tries++) {
        try {
          /** @type {Record<string, string>} */
          const resumed = last ? { "Last-Event-ID": last } : {};
          const response = await call(`/api/drawings/${id}/events`, { headers: resumed, signal });
          for await (const event of parsed(response.body)) {
            last = event.id || last;
            tries = 0;
            yield event;
            if (["done", "error", "cancelled"].includes(event.event)) return;
          }
          throw new TypeError("the connection to the server ended");
        } catch (error) {
          if (signal.aborted || error instanceof ApiError || tries >= RETRIES) throw error;
          await new Promise((wake) => setTimeout(wake, RETRY_MS * 2 ** tries));
        }
      }
    },
  };
}

/**
 * The key that the address brings in its fragment, which no log sees; it is taken out of the
 * address and kept for this tab.
 * @returns {string | null}
 */
export function takeKey() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    sessionStorage.setItem("stal-key", found);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem("stal-key");
}

/**
 * The sentence of an error for whoever looks at the page.
 * @param {unknown} error
 * @returns {string}
 */
export function sentence(error) {
  if (error instanceof ApiError) return error.message;
  if (error instanceof TypeError) return "The server does not answer. Is it still running?";
  return error instanceof Error ? error.message : String(error);
}

/**
 * @param {Response} response
 * @returns {Promise<string>}
 */
async function reason(response) {
  const wait = response.headers.get("Retry-After");
  const later = response.status === 429 && wait ? ` Try again in ${wait} s.` : "";
  try {
    return (await response.json()).error.message + later;
  } catch {
    return `The server answers ${response.status} ${response.statusText}.${later}`;
  }
}

/**
 * Server-sent events of a stream.
 * @param {ReadableStream<Uint8Array> | null} stream
 * @returns {AsyncGenerator<ServerEvent>}
 */
async function* parsed(stream) {
  if (!stream) return;
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + decoder.decode(value, { stream: true })).split(/\r\n\r\n|\n\n|\r\r/);
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const event = eventOf(block);
      if (event) yield event;
    }
  }
}

/**
 * @param {string} block lines of one event
 * @returns {ServerEvent | null} null if it holds comments alone
 */
function eventOf(block) {
  /** @type {Record<string, string>} */
  const fields = {};
  for (const line of block.split(/\r\n|\n|\r/)) {
    const [, name, value] = line.match(/^(\w+): ?(.*)$/) ?? [];
    if (name) fields[name] = name === "data" && fields.data ? `${fields.data}\n${value}` : value;
  }
  if (fields.data === undefined) return null;
  return { id: fields.id ?? "", event: fields.event ?? "message", data: JSON.parse(fields.data) };
}
