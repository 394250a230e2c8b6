// How is the gateway asked?   Paths are relative, so that the page works behind any prefix.

const KEY = "admin-key";

/** The gateway refused, or did not answer (status 0). */
export class Failed extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

export const news = new EventTarget(); // "up", "down": whether the gateway answers; "locked": it wants another key

/** A response whose status is good; what is given as `body` goes as JSON, `yaml` as it is. Raises Failed. */
export async function send(path, { bearer, body, yaml, headers = {}, signal } = {}) {
  if (bearer && !/^[!-~]+$/.test(bearer)) throw new Failed(400, "This cannot be a key.");
  const given = { ...headers };
  if (bearer) given.authorization = `Bearer ${bearer}`;
  if (body !== undefined) given["content-type"] = "application/json";
  if (yaml !== undefined) given["content-type"] = "application/yaml";
  const method = (body ?? yaml) === undefined ? "GET" : "POST";
  let answer;
  try {
    answer = await fetch(new URL(`../${path}`, document.baseURI), {
      method,
      headers: given,
      body: body === undefined ? yaml : JSON.stringify(body),
      cache: method === "GET" ? "no-store" : "default", // with a POST it would ask the gateway for an answer afresh
      credentials: "omit",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    news.dispatchEvent(new Event("down"));
    throw new Failed(0, "The gateway does not answer.");
  }
  news.dispatchEvent(new Event("up"));
  if (answer.ok || (path === "ready" && answer.status === 503)) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Failed(answer.status, said.error?.message ?? `The gateway answered ${answer.status}.`, said.error?.code);
}

/** The same with the admin key; a key that is refused is forgotten. */
export async function admin(path, options = {}) {
  try {
    return await send(path, { ...options, bearer: key.get() });
  } catch (error) {
    if (error.status === 401 || error.code === "admin_disabled") {
      key.forget();
      news.dispatchEvent(new CustomEvent("locked", { detail: error.message }));
    }
    throw error;
  }
}

export const json = async (answer) => whole(await answer, "json");
export const text = async (answer) => whole(await answer, "text");

async function whole(answer, kind) {
  try {
    return await answer[kind]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "The gateway’s answer broke off, or is not the gateway’s.");
  }
}

/** Calls `work` at once and then every so many seconds while the page is seen, until `signal`. It may fail. */
export async function poll(work, seconds, signal) {
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        await work();
      } catch (error) {
        if (!(error instanceof Failed) && error.name !== "AbortError") throw error;
      }
    }
    await new Promise((resolve) => {
      const wake = () => (clearTimeout(timer), signal.removeEventListener("abort", wake), resolve());
      const timer = setTimeout(wake, 1000 * seconds);
      signal.addEventListener("abort", wake);
    });
  }
}
