"use strict";
// Rows are untrusted: they reach the page as text nodes and numbers, never as markup.

const PAGE_ROWS = 25;
const MAX_DIFF_WORDS = 800;
const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows;
const STORAGE = "moonsweep-review-2";
const verdicts = new Map();
const past = []; // what each action changed, so that `u` reverts the last action and not the row at hand
const view = { shown: rows, page: 0, selected: 0, editing: null };

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null));
  return node;
}

function button(text, title, act) {
  const node = make("button", "", text);
  node.type = "button";
  node.title = title;
  node.addEventListener("click", act);
  return node;
}

// Verdicts. The browser keeps each under a digest of its row, so that a reload loses none, and no other output whose
// row has the same id shows it.

function load() {
  try {
    for (const row of rows) {
      const kept = localStorage.getItem(`${STORAGE} ${row.digest}`);
      if (kept !== null) verdicts.set(row.id, JSON.parse(kept));
    }
  } catch (error) {
    say(`this browser keeps nothing for local files (${error.name}): download the verdicts before you leave`);
  }
}

function keep(row) {
  const verdict = verdicts.get(row.id);
  try {
    if (verdict === undefined) localStorage.removeItem(`${STORAGE} ${row.digest}`);
    else localStorage.setItem(`${STORAGE} ${row.digest}`, JSON.stringify(verdict));
  } catch (error) {
    say(`the browser could not keep the verdicts (${error.name}): download them before you leave`);
  }
}

function put(row, verdict) {
  if (verdict === undefined) verdicts.delete(row.id);
  else verdicts.set(row.id, verdict);
  keep(row);
  view.editing = null;
  count();
}

function judge(row, verdict, caption) {
  past.push({ row, before: verdicts.get(row.id) });
  put(row, { verdict, caption, judged_at: new Date().toISOString() });
}

function undo() {
  const last = past.pop();
  if (!last) return say("nothing to undo");
  put(last.row, last.before);
  goTo(last.row);
  say(`undone: ${last.row.id} is ${last.before?.verdict ?? "open"} again`);
}

function goTo(row) {
  if (!view.shown.includes(row)) {
    for (const each of Object.values(filters)) {
      if (each?.type === "checkbox") each.checked = false;
      else if (each && each.id !== "order") each.value = "";
    }
    choose();
  }
  const place = view.shown.indexOf(row);
  view.page = Math.floor(place / PAGE_ROWS);
  view.selected = place % PAGE_ROWS;
  draw();
  document.querySelector("article.selected").scrollIntoView({ block: "nearest" });
}

function download() {
  const mine = new Set(rows.map((row) => row.id));
  const lines = [...verdicts].filter(([id]) => mine.has(id)).map(([row_id, verdict]) => ({ row_id, ...verdict }));
  const value = { format: data.verdict_format, output: data.output, recipe_sha256: data.recipe_sha256, verdicts: lines };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  link.download = data.verdict_file;
  link.click();
  URL.revokeObjectURL(link.href);
}

// Filters.

const filters = {};
for (const name of ["status", "judged", "text", "shortest", "longest", "order", "changed"]) {
  filters[name] = document.getElementById(name);
  filters[name]?.addEventListener("input", () => { choose(); draw(); });
}

function matches(row, wanted) {
  const verdict = verdicts.get(row.id)?.verdict ?? "none";
  const length = (row.caption ?? "").length;
  return (
    (!wanted.status || row.status === wanted.status || `error: ${row.error_code}` === wanted.status) &&
    (!wanted.judged || verdict === wanted.judged) &&
    length >= wanted.shortest && length <= wanted.longest &&
    (!wanted.changed || row.changed) &&
    (!wanted.text || searched(row).includes(wanted.text))
  );
}

function searched(row) {
  row.searched ??= [row.id, row.prompt ?? data.prompt, row.error, row.reasoning, ...textsOf(row).values(), ...textsOf(row.other).values()]
    .filter((text) => text).join("\n").toLowerCase();
  return row.searched;
}

// The texts of a row by what they are of, so that those of two outputs can be compared.
function textsOf(row) {
  if (!row) return new Map();
  const answers = row.sections.flatMap((section) => section.answers.map((answer) => [keyOf(section, answer), answer[1]]));
  return new Map([["caption", row.caption], ...answers]);
}

// Prompts have the same names in two outputs whose frame views differ; windows and pages have labels alone.
function keyOf(section, [name]) { return `answer ${name ?? section.label}`; }

const ORDERS = {
  input: null,
  shortest: (a, b) => (a.caption ?? "").length - (b.caption ?? "").length,
  longest: (a, b) => (b.caption ?? "").length - (a.caption ?? "").length,
  unsure: (a, b) => (a.mean_logprob ?? 0) - (b.mean_logprob ?? 0),
};

function choose() {
  const wanted = {
    status: filters.status.value,
    judged: filters.judged.value,
    text: filters.text.value.trim().toLowerCase(),
    shortest: Number(filters.shortest.value || 0),
    longest: filters.longest.value === "" ? Infinity : Number(filters.longest.value),
    changed: filters.changed?.checked ?? false,
  };
  view.shown = rows.filter((row) => matches(row, wanted));
  const order = ORDERS[filters.order.value];
  if (order) view.shown.sort(order);
  view.page = view.selected = 0;
  view.editing = null;
}

// Drawing: one page of rows at a time.

function draw() {
  const first = view.page * PAGE_ROWS;
  const here = view.shown.slice(first, first + PAGE_ROWS);
  document.getElementById("rows").replaceChildren(...here.map(card));
  const pages = Math.max(1, Math.ceil(view.shown.length / PAGE_ROWS));
  document.getElementById("place").textContent = `${view.shown.length} rows, page ${view.page + 1} of ${pages}`;
  count();
}

function count() {
  const counts = { accept: 0, reject: 0, edit: 0 };
  for (const row of rows) {
    const verdict = verdicts.get(row.id)?.verdict;
    if (verdict) counts[verdict] += 1;
  }
  const judged = counts.accept + counts.reject + counts.edit;
  document.getElementById("judgements").textContent =
    `${counts.accept} accepted, ${counts.reject} rejected, ${counts.edit} edited, ${rows.length - judged} open`;
}

function card(row, index) {
  const verdict = verdicts.get(row.id);
  const node = make("article", verdict?.verdict ?? "");
  node.dataset.row = row.id;
  if (index === view.selected) node.classList.add("selected");
  node.addEventListener("mousedown", () => select(index));
  node.append(
    make("div", "row", make("span", "id", row.id), badge(row.status), verdict ? badge(verdict.verdict) : null),
    labelled("prompt", row.prompt ?? data.prompt, "text prompt"),
  );
  if (data.other) {
    const right = row.other;
    node.append(make("div", "sides",
      side(row, data.output, "f", (_, key) => compared(row, key)[0].map(changed)),
      right
        ? side(right, data.other.output, "g", (_, key) => compared(row, key)[1].map(changed))
        : make("div", "side", make("p", "note", "not in this output")),
    ));
  } else {
    node.append(side(row, null, "f", (text) => [text]));
  }
  if (verdict?.verdict === "edit") node.append(labelled("edited", verdict.caption, "text caption"));
  node.append(view.editing === row.id ? editor(row) : actions(row));
  return node;
}

// `marked` gives the nodes of a text, by its key in `textsOf`: with what changed, if there are two outputs.
function side(row, name, prefix, marked) {
  const node = make("div", "side");
  if (name) node.append(make("div", "label", name, row.status === "ok" ? "" : ` (${row.status})`));
  node.append(sections(row, prefix, marked));
  if (row.note) node.append(make("div", "note", row.note));
  if (row.caption !== null) {
    const text = make("div", "text caption", ...marked(row.caption, "caption"));
    if (row.are_caption && !name) node.append(folded("caption, all of it", text));
    else node.append(row.sections.some((section) => section.answers.length) ? make("div", "label", "caption") : "", text);
  }
  if (row.error) node.append(make("div", "text note", `${row.error_code}: ${row.error}`));
  node.append(make("div", "facts", facts(row)));
  if (row.reasoning) node.append(folded("reasoning", make("div", "text", row.reasoning)));
  if (row.more.length) {
    const lines = row.more.map(([key, value]) => make("tr", "", make("td", "", key), make("td", "text", value)));
    node.append(folded("columns", make("table", "", ...lines)));
  }
  return node;
}

function facts(row) {
  const facts = [];
  if (row.caption !== null) facts.push(`${row.caption.length} characters`);
  if (row.num_prompt_tokens !== null) facts.push(`${row.num_prompt_tokens} + ${row.num_generated_tokens} tokens`);
  if (row.finish_reason) facts.push(row.finish_reason);
  if (row.mean_logprob !== null) facts.push(`mean logprob ${row.mean_logprob}, least ${row.min_logprob ?? "unknown"}`);
  return facts.join(" | ");
}

// What the model saw, prompt by prompt, with what it said of it.

function sections(row, prefix, marked) {
  const images = document.getElementById(`${prefix}${row.number}`)?.textContent.split(" ").values();
  const nodes = row.sections.map((section) => make("section", "section",
    section.label && section.label !== section.sprites[0]?.marks.join() ? make("div", "label", section.label) : null,
    sprites(section, images),
    section.answers.length ? make("div", "answers", ...section.answers.map((each) => answer(each, section, marked))) : null,
  ));
  if (nodes.length < row.num_sections) nodes.push(make("div", "facts", `${nodes.length} of ${row.num_sections} prompts of this row`));
  return make("div", row.are_pages ? "pages" : "", ...nodes);
}

function sprites(section, images) {
  const box = make("div", "sprites");
  let shown = 0;
  for (const sprite of section.sprites) {
    const image = document.createElement("img");
    image.src = `data:image/jpeg;base64,${images.next().value}`;
    image.alt = sprite.marks.join(", ");
    const marks = make("div", "marks", ...sprite.marks.map((mark) => make("span", "", mark)));
    for (const mark of marks.children) mark.style.width = `${sprite.width_px}px`;
    box.append(make("div", "sprite", image, marks));
    shown += sprite.marks.length;
  }
  if (shown < section.num_frames) box.append(make("div", "facts", `${shown} of ${section.num_frames}`));
  return box;
}

function answer(recorded, section, marked) {
  const [name, text, error] = recorded;
  return make("div", "",
    name ? make("span", "label", name) : null,
    text === null ? null : make("div", "text", ...marked(text, keyOf(section, recorded))),
    error ? make("div", "text note", error) : null,
  );
}

function badge(text) { return make("span", `badge ${text}`, text); }

function labelled(label, text, className) {
  return make("div", "", make("span", "label", label), make("div", className, text));
}

function folded(title, content) { return make("details", "", make("summary", "", title), content); }

function actions(row) {
  const node = make("div", "actions",
    row.status === "error" ? null : button("Accept", "a", () => act(row, "accept")),
    button("Reject", "r", () => act(row, "reject")),
    button("Edit", "e", () => edit(row)),
    button("Undo", "u", undo),
  );
  if (row.other?.caption) node.append(button("Take the right one", "t", () => take(row)));
  return node;
}

function editor(row) {
  const area = document.createElement("textarea");
  area.value = verdicts.get(row.id)?.caption ?? row.caption ?? "";
  const save = () => { judge(row, "edit", area.value); step(1); };
  const cancel = () => { view.editing = null; draw(); };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    else if (event.key === "Escape") cancel();
    else return;
    event.preventDefault();
  });
  return make("div", "", area, make("div", "actions", button("Save", "Ctrl+Enter", save), button("Cancel", "Esc", cancel)));
}

function act(row, verdict) {
  if (verdict === "accept" && row.status === "error") return say("a row with an error cannot be accepted");
  judge(row, verdict, null);
  step(1);
}

function edit(row) {
  view.editing = row.id;
  draw();
  const area = document.querySelector("textarea");
  area.focus();
}

function take(row) { judge(row, "edit", row.other.caption); step(1); }

// Moving.

function select(index) {
  if (index === view.selected) return;
  view.selected = index;
  for (const [position, node] of [...document.querySelectorAll("article")].entries()) {
    node.classList.toggle("selected", position === index);
  }
}

function step(by) {
  const first = view.page * PAGE_ROWS;
  const target = Math.min(Math.max(first + view.selected + by, 0), view.shown.length - 1);
  view.page = Math.max(0, Math.floor(target / PAGE_ROWS));
  view.selected = Math.max(0, target - view.page * PAGE_ROWS);
  draw();
  document.querySelector("article.selected")?.scrollIntoView({ block: "nearest" });
}

function turn(by) {
  const pages = Math.max(1, Math.ceil(view.shown.length / PAGE_ROWS));
  view.page = Math.min(Math.max(view.page + by, 0), pages - 1);
  view.selected = 0;
  view.editing = null;
  draw();
  scrollTo(0, 0);
}

const KEYS = {
  j: () => step(1), ArrowDown: () => step(1),
  k: () => step(-1), ArrowUp: () => step(-1),
  n: () => turn(1), ArrowRight: () => turn(1),
  p: () => turn(-1), ArrowLeft: () => turn(-1),
  a: (row) => act(row, "accept"),
  r: (row) => act(row, "reject"),
  u: () => undo(),
  e: (row) => edit(row),
  t: (row) => { if (row.other?.caption) take(row); },
  "/": () => filters.text.focus(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const row = view.shown[view.page * PAGE_ROWS + view.selected];
  const does = KEYS[event.key];
  if (!does || !row) return;
  event.preventDefault();
  does(row);
});

// What changed between two texts, word by word: the longest common subsequence stays unmarked.

function compared(row, key) {
  row.compared ??= new Map();
  if (!row.compared.has(key)) {
    row.compared.set(key, changes(textsOf(row).get(key) ?? "", textsOf(row.other).get(key) ?? ""));
  }
  return row.compared.get(key);
}

function changed(piece) { return typeof piece === "string" ? piece : make(piece[0], "", piece[1]); }

function changes(left, right) {
  const a = left.match(/\s*\S+/g) ?? [];
  const b = right.match(/\s*\S+/g) ?? [];
  if (left === right || a.length > MAX_DIFF_WORDS || b.length > MAX_DIFF_WORDS) return [[left], [right]];
  const wide = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i * wide + j] = a[i].trim() === b[j].trim()
        ? lengths[(i + 1) * wide + j + 1] + 1
        : Math.max(lengths[(i + 1) * wide + j], lengths[i * wide + j + 1]);
    }
  }
  const before = [], after = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i].trim() === b[j].trim()) {
      before.push(a[i++]);
      after.push(b[j++]);
    } else if (j >= b.length || (i < a.length && lengths[(i + 1) * wide + j] >= lengths[i * wide + j + 1])) {
      before.push(["del", a[i++]]);
    } else {
      after.push(["ins", b[j++]]);
    }
  }
  return [before, after];
}

function say(text) { document.getElementById("say").textContent = text; }

document.getElementById("download").addEventListener("click", download);
document.getElementById("previous").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
document.documentElement.style.scrollPaddingTop = `${document.querySelector("header").offsetHeight + 8}px`;
load();
choose();
draw();
