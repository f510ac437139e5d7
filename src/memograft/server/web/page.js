// The page: reads the form, asks twice at once, and shows both answers while they come.

import { Problem, chunks, list } from "/web/api.js";
import * as show from "/web/show.js";

const find = (id) => document.getElementById(id);
const KEY = "memograft-key";
const LONGEST = 2_000_000; // bytes of a dropped file; the server takes 4 MiB for all, unless it is told otherwise
const EXAMPLE = {
  question: "What is the capital of Australia?",
  documents: [
    ["Atlas of 2090", "The capital of Australia is Lisbon."],
    ["Fruits", "Bergamot is a citrus fruit."],
  ],
};
const MEMORIES = { fastmem: { kind: "fastmem" }, kept: { kind: "kept" }, compacted: { kind: "compacted", ratio: 4 } };

const needsKey = document.documentElement.dataset.keys === "true";
let key = sessionStorage.getItem(KEY) ?? "";
let model = "";
let asking = null; // the AbortController of answers in progress

// --- the server ---

async function connect() {
  show.problem(find("problem"), null);
  find("access").hidden = !needsKey;
  if (needsKey && !key) return find("key").focus();
  try {
    const models = await list("/v1/models", key);
    const found = models.find((one) => "max_model_len" in one);
    model = found.id;
    find("model").textContent = `${model} · ${found.max_model_len.toLocaleString("en")} tokens`;
    find("model").hidden = false;
    const stores = await list("/v1/stores", key);
    find("store").replaceChildren(new Option("none", ""), ...stores.map((one) => new Option(one.name, one.name)));
    find("retrieval").hidden = !stores.length;
    find("access").hidden = true;
    if (key) sessionStorage.setItem(KEY, key);
  } catch (error) {
    failed(find("problem"), error);
  }
}

function failed(element, error) {
  show.problem(element, error.message);
  if (!(error instanceof Problem)) console.error(error); // a fault of this page
  if (error.status !== 401) return;
  key = model = "";
  sessionStorage.removeItem(KEY);
  find("access").hidden = false;
  find("key").focus();
}

// --- documents ---

function add(title = "", text = "") {
  const item = find("document").content.cloneNode(true).firstElementChild;
  item.querySelector(".title").value = title;
  item.querySelector(".text").value = text;
  item.querySelector(".remove").addEventListener("click", () => {
    item.remove();
    find("add").focus();
  });
  find("given").append(item);
  return item;
}

/** The documents of the form that have text, with ids that differ. */
function documents() {
  const used = new Set();
  const found = [];
  for (const item of find("given").children) {
    const text = item.querySelector(".text").value;
    if (!text.trim()) continue;
    const title = item.querySelector(".title").value.trim();
    let id = title || `document ${found.length + 1}`;
    for (let n = 2; used.has(id); n += 1) id = `${title || "document"} (${n})`;
    used.add(id);
    found.push({ id, text });
  }
  return found;
}

async function read(files) {
  const refused = [];
  for (const file of files) {
    const text = file.size > LONGEST ? null : await file.text();
    if (text === null || text.includes("\u0000") || text.includes("\ufffd")) refused.push(file.name);
    else add(file.name, text);
  }
  for (const item of [...find("given").children]) {
    const empty = [...item.querySelectorAll("input, textarea")].every((field) => !field.value.trim());
    if (empty && find("given").children.length > 1) item.remove();
  }
  const said = `Only text files in UTF-8 of up to 2 MB can be read here, not ${refused.join(", ")}. Add other files to a store.`;
  show.problem(find("problem"), refused.length ? said : null);
}

// --- asking ---

function request(given) {
  const value = (id) => find(id).value;
  const store = value("store") && { name: value("store"), k: Number(value("k")), ...(value("mode") && { mode: value("mode") }) };
  return {
    model,
    messages: [{ role: "user", content: value("question") }],
    temperature: Number(value("temperature")),
    max_tokens: Number(value("length")),
    ...(given.length && { documents: given }),
    ...(store && { store }),
    ...((given.length || store) && { overflow: "truncate" }),
  };
}

async function ask() {
  if (asking) return;
  if (!model) await connect();
  if (!model) return;
  show.problem(find("problem"), null);
  const given = documents();
  const body = request(given);
  const told = Boolean(body.documents || body.store);
  const ways = { plain: { ...body, ...(told && { memory: null }) } };
  if (told) ways.memorized = { ...body, ...(find("memory").value && { memory: MEMORIES[find("memory").value] }), token_losses: true };
  if (told && !find("compare").checked) delete ways.plain;
  asking = new AbortController();
  busy(true, ways);
  const answers = {};
  await Promise.all(Object.keys(ways).map(async (way) => {
    answers[way] = await answered(find(way), ways[way], given, asking.signal);
  }));
  const stopped = asking.signal.aborted;
  asking = null;
  busy(false, ways);
  report(answers, given);
  find("status").textContent = stopped ? "Stopped." : outcome(answers);
}

function busy(now, ways) {
  find("send").disabled = now;
  find("stop").disabled = !now;
  if (!now) return;
  find("welcome").hidden = true;
  find("sides").hidden = false;
  find("sources").hidden = find("report").hidden = true;
  find("status").textContent = "Answering …";
  const { top } = find("answers").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) find("answers").scrollIntoView(); // on a phone they are below the form
  for (const way of ["plain", "memorized"]) {
    const side = find(way);
    side.hidden = !(way in ways);
    side.querySelector(".answer").textContent = "";
    side.querySelector(".facts").textContent = way === "plain" ? "reading …" : "reading and memorizing …";
    show.problem(side.querySelector(".problem"), null);
  }
}

/** Ask, and show the answer as it comes; its text and report, or null if there is none. */
async function answered(side, body, given, signal) {
  const element = side.querySelector(".answer");
  const said = side.querySelector(".facts");
  element.setAttribute("aria-busy", "true");
  let text = "", finish = null, report = null, usage = null;
  try {
    for await (const chunk of chunks(body, key, signal)) {
      const [choice] = chunk.choices;
      if (choice?.delta.content) {
        element.textContent = text += choice.delta.content;
        said.textContent = "answering …";
      }
      finish = choice?.finish_reason ?? finish;
      report = chunk.memograft ?? report;
      usage = chunk.usage ?? usage;
    }
    if (report) show.answer(element, text, report, show.documentsOf(report, given));
    show.facts(said, usage, report, finish);
    return { text, report };
  } catch (error) {
    said.textContent = "";
    if (error.name !== "AbortError") failed(side.querySelector(".problem"), error);
    return null;
  } finally {
    element.removeAttribute("aria-busy");
  }
}

function report(answers, given) {
  const said = answers.memorized?.report ?? answers.plain?.report;
  if (!said) return;
  const citations = Object.values(answers).flatMap((one) => one?.report?.citations ?? []);
  const order = [...citations].sort((a, b) => b.document_end - b.document_start - (a.document_end - a.document_start));
  show.sources(find("sources"), show.documentsOf(said, given), said, order);
  if (answers.memorized) show.memorized(find("report"), said);
}

function outcome({ plain, memorized }) {
  if (plain === null || memorized === null) return "Not answered; the reason is beside.";
  if (!plain || !memorized) return "Answered.";
  return plain.text === memorized.text ? "Answered. Both answers are the same." : "Answered. Memorizing changed the answer.";
}

// --- events ---

find("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = find("key").value.trim();
  find("key").value = "";
  connect();
});
find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
find("stop").addEventListener("click", () => asking?.abort());
find("add").addEventListener("click", () => add().querySelector(".text").focus());
find("files").addEventListener("change", async (event) => {
  await read(event.target.files);
  event.target.value = "";
});
find("example").addEventListener("click", () => {
  find("question").value = EXAMPLE.question;
  find("given").replaceChildren();
  for (const [title, text] of EXAMPLE.documents) add(title, text);
  find("send").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") asking?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a file that misses the field must not replace the page
    const over = find("documents").contains(event.target);
    find("documents").classList.toggle("over", over && (kind === "dragenter" || kind === "dragover"));
    if (kind === "drop" && over) read([...event.dataTransfer.files]);
  });
}

add();
connect();
