// Requests to this server. Nothing here touches the page.

const SAID = {
  401: "The server does not accept this key.",
  413: "That is more text than the server takes at once.",
  421: "The server does not answer under this name.",
  429: "The server is busy.",
  503: "The server is ending.",
  504: "The answer took too long.",
};

/** A request that was not answered, in plain words and with what the server said. */
export class Problem extends Error {
  constructor(status, said) {
    super([SAID[status], said].filter(Boolean).join(" "));
    this.status = status;
  }
}

async function ask(path, key, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Problem(response.status, body?.error?.message ?? `The server answered with status ${response.status}.`);
}

/** The `data` of a list. */
export async function list(path, key) {
  return (await (await ask(path, key)).json()).data;
}

/** The chunks of a streamed chat completion. It ends when `signal` is aborted, which closes the connection. */
export async function* chunks(body, key, signal) {
  const response = await ask("/v1/chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, "The connection to the server broke.");
    }
    if (read.done) throw new Problem(0, "The connection ended before the answer did.");
    const events = (waiting + read.value).split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(0, chunk.error.message);
      yield chunk;
    }
  }
}
