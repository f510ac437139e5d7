// Puts answers and reports on the page. Every text becomes a text node, never HTML.

const LEVELS = document.documentElement.dataset.levels.split(" ").map(Number);
const KINDS = { fastmem: "FastMem", kept: "Kept", compacted: "Compacted" };

/** An element with a class and children: elements and texts. */
function made(tag, kind, ...children) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.append(...children);
  return element;
}

/** Show what went wrong; null hides it. */
export function problem(element, said) {
  element.hidden = said === null;
  element.textContent = said ?? "";
}

const nats = (value) => (value === null ? "?" : value.toFixed(2));
const seconds = (value) => (value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
const id = (number) => `document-${number}`;

/** Nodes of a text in which some places are marked. Places count characters, not JavaScript's UTF-16 units. */
function marked(text, places, after = () => []) {
  const letters = Array.from(text);
  const cut = (start, end) => letters.slice(start, end).join("");
  const nodes = [];
  let at = 0;
  for (const place of [...places].sort((a, b) => a.start - b.start)) {
    if (place.start < at) continue;
    nodes.push(cut(at, place.start), made("mark", "", cut(place.start, place.end)), ...after(place));
    at = place.end;
  }
  return [...nodes, cut(at)];
}

/** The documents of an answer, in the order of the prompt: those that the page sent, and those from a store. */
export function documentsOf(report, given) {
  const known = new Map((report.retrieved ?? []).map((hit) => [hit.id, hit]));
  for (const one of given) known.set(one.id, one);
  const ids = [...new Set([...report.documents, ...report.dropped])];
  return ids.map((name, n) => ({
    number: n + 1,
    id: name,
    title: known.get(name)?.metadata?.title || name,
    text: known.get(name)?.text ?? "",
    relevance: report.relevance[report.documents.indexOf(name)] ?? null,
  }));
}

/** Show an answer with its citations, each with a link to its document. */
export function answer(element, text, report, documents) {
  const numbers = new Map(documents.map((one) => [one.id, one.number]));
  const link = ({ document: name }) => {
    const to = made("a", "", String(numbers.get(name)));
    to.href = `#${id(numbers.get(name))}`;
    to.setAttribute("aria-label", `document ${numbers.get(name)}`);
    return [made("sup", "", to)];
  };
  element.replaceChildren(...marked(text, report?.citations ?? [], link));
}

/** Counts and times below an answer. */
export function facts(element, usage, report, finish) {
  const parts = [`${usage.completion_tokens} tokens`];
  if (usage.prompt_tokens_details.cached_tokens) parts.push(`${usage.prompt_tokens_details.cached_tokens} read before`);
  if (report) {
    const { prefill, memorize, decode } = report.milliseconds;
    parts.push(`read ${seconds(prefill)}`);
    if (report.kind) parts.push(`memorized ${seconds(memorize)}`);
    parts.push(`answered ${seconds(decode)}`);
  }
  if (finish === "length") parts.push("cut off by the longest answer that was asked for");
  element.textContent = parts.join(" · ");
}

/** What became of a document. */
function became(one, report, numbers) {
  if (report.dropped.includes(one.id)) return "left out: it does not fit the model's window";
  if (report.memorized.includes(one.id)) return "memorized";
  const shortened = report.truncated.includes(one.id) ? ", shortened" : "";
  if (report.rolled_back) return `in the prompt${shortened}; the memory was discarded`;
  const rival = report.disagree.find(([higher, lower]) => lower === one.id && report.memorized.includes(higher));
  if (rival) return `in the prompt${shortened}; disagrees with ${numbers.get(rival[0])}`;
  return `in the prompt${shortened}${report.left_out.includes(one.id) ? "; about something else" : ""}`;
}

/** List the documents: relevance, what became of them, and which of their words an answer has. */
export function sources(section, documents, report, citations) {
  const numbers = new Map(documents.map((one) => [one.id, one.number]));
  const items = documents.map((one) => {
    const said = became(one, report, numbers);
    const about = made("div", "about", made("span", "number", String(one.number)), made("b", "", one.title));
    about.append(made("span", said === "memorized" ? "tag memorized" : "tag", said));
    if (one.relevance !== null) {
      const bar = made("meter", "");
      Object.assign(bar, { min: 0, max: 1, value: Math.max(0, one.relevance) });
      bar.setAttribute("aria-label", "relevance");
      about.append(made("span", "relevance", "relevance ", bar, one.relevance.toFixed(2)));
    }
    const places = citations
      .filter((each) => each.document === one.id)
      .map((each) => ({ start: each.document_start, end: each.document_end }));
    const item = made("li", "", about, made("p", "text", ...marked(one.text, places)));
    item.id = id(one.number);
    return item;
  });
  section.querySelector("ol").replaceChildren(...items);
  section.hidden = !items.length;
}

/** Say what was memorized, with the losses of its tokens before and after. */
export function memorized(section, report) {
  const numbers = [["kind", [KINDS[report.kind] ?? report.kind ?? "none"]]];
  numbers.push(["documents", [String(report.memorized.length), small(`of ${report.documents.length}`)]]);
  if (report.loss_before !== null) {
    numbers.push(["loss, in nats", [`${nats(report.loss_before)} → ${nats(report.loss_after)}`]]);
    numbers.push(["KL, in nats", [nats(report.kl)]]);
  }
  if (report.kind) numbers.push(report.reused ? ["training", ["none", small("kept from before")]] : ["steps", [String(report.steps)]]);
  const pairs = numbers.map(([name, value]) => made("div", "", made("dt", "", name), made("dd", "", ...value)));
  section.querySelector(".numbers").replaceChildren(...pairs);
  const notes = [report.reason, ...report.warnings];
  if (!report.kind) notes.push("This server does not memorize unless it is asked to: choose a kind under Options.");
  section.querySelector(".note").textContent = notes.filter(Boolean).map(sentence).join(" ");
  losses(section.querySelector("#losses"), report);
  section.hidden = false;
}

const small = (text) => made("small", "", ` ${text}`);
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

function shade(loss) {
  return loss === null ? LEVELS.length : LEVELS.filter((limit) => loss >= limit).length;
}

function losses(box, report) {
  const tokens = report.token_losses ?? [];
  box.hidden = !tokens.length;
  const scale = [...LEVELS.keys(), LEVELS.length].map((n) => made("span", "", made("i", `s${n}`), made("b", "", String(LEVELS[n] ?? ""))));
  box.querySelector(".scale").replaceChildren(...scale);
  for (const which of ["before", "after"]) {
    box.querySelector(`#loss-${which}`).textContent = `${nats(report[`loss_${which}`])} nats`;
    strip(box.querySelector(`#${which}`), tokens, (token) => `s${shade(token[which])}`);
  }
  strip(box.querySelector("#gain"), tokens, (token) => `g${shade(token.before - token.after)}`);
}

/** Tokens with a shade each; a line is left out between documents. */
function strip(element, tokens, kind) {
  const nodes = tokens.flatMap((token, n) => {
    const piece = made("span", kind(token), token.text);
    piece.title = `${nats(token.before)} → ${nats(token.after)} nats`;
    return n && token.document !== tokens[n - 1].document ? ["\n\n", piece] : [piece];
  });
  element.replaceChildren(...nodes);
}
