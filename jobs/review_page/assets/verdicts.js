// Verdicts, their history, and the files that hold them.
//
// The browser keeps each verdict under a digest of its row, so that a reload loses none, no other output whose row has
// the same id shows it, and two tabs do not overwrite each other.

const STORAGE = "moonsweep-review-2";
const HISTORY = `${STORAGE} history ${location.pathname}`;
const MOST_ACTIONS = 500;
const OPEN = Object.freeze({ verdict: null, caption: null, reasons: [], tags: [], comment: "", parts: {} });
const verdicts = new Map(); // by digest
const rowOf = new Map(rows.map((row) => [row.digest, row]));
const history_ = { past: [], future: [] }; // actions: { digest, before, after, what }
const unsaved = new Set(); // digests of what no downloaded file holds

function recordOf(row) { return verdicts.get(row.digest) ?? OPEN; }

function isEmpty(record) {
  return record.verdict === null && !record.reasons.length && !record.tags.length && !record.comment
    && !Object.keys(record.parts).length;
}

// Whether a row needs no more work: it has a verdict, or each of its parts has one.
function isJudged(row) {
  const record = recordOf(row);
  if (record.verdict !== null) return true;
  const parts = partsOf(row);
  return parts.length > 0 && parts.every((part) => part in record.parts);
}

function load() {
  try {
    for (const row of rows) {
      const kept = localStorage.getItem(`${STORAGE} ${row.digest}`);
      if (kept !== null) verdicts.set(row.digest, { ...OPEN, ...JSON.parse(kept) });
    }
    Object.assign(history_, JSON.parse(sessionStorage.getItem(HISTORY) ?? "{}"));
    byId("reviewer").value = data.reviewer || localStorage.getItem(`${STORAGE} reviewer`) || "";
  } catch (error) {
    warn(`This browser keeps nothing for local files (${error.name}). Download the verdicts before you leave.`);
  }
}

function keep(digest) {
  const record = verdicts.get(digest);
  try {
    if (record === undefined) localStorage.removeItem(`${STORAGE} ${digest}`);
    else localStorage.setItem(`${STORAGE} ${digest}`, JSON.stringify(record));
    sessionStorage.setItem(HISTORY, JSON.stringify(history_));
  } catch (error) {
    warn(`The browser could not keep the verdicts (${error.name}). Download them before you leave.`);
  }
}

function put(digest, record) {
  if (record === null || isEmpty(record)) verdicts.delete(digest);
  else verdicts.set(digest, record);
  unsaved.add(digest);
  keep(digest);
  count();
}

// Change the record of a row; `what` names the action in the history.
function change(row, changes, what) {
  const before = verdicts.get(row.digest) ?? null;
  const after = { ...OPEN, ...before, ...changes, judged_at: new Date().toISOString() };
  history_.past.push({ digest: row.digest, before, after, what });
  if (history_.past.length > MOST_ACTIONS) history_.past.shift();
  history_.future = [];
  put(row.digest, after);
}

function undo() { revert(history_.past, history_.future, "before", "undone"); }

function redo() { revert(history_.future, history_.past, "after", "done again"); }

// Take back the last action, wherever it was, and go to its row.
function revert(from, to, state, word) {
  const action = from.pop();
  const row = action && rowOf.get(action.digest);
  if (!row) return say(`nothing to ${state === "before" ? "undo" : "redo"}`);
  to.push(action);
  view.editing = null;
  put(action.digest, action[state]);
  goTo(row);
  say(`${word}: ${action.what}, ${row.id}`);
}

function showHistory() {
  const lines = history_.past.slice(-100).reverse().map((action) => {
    const row = rowOf.get(action.digest);
    const time = new Date(action.after.judged_at).toLocaleTimeString();
    return make("li", "", `${time} ${action.what} `, row ? button(row.id, "", () => { byId("history").close(); goTo(row); }) : null);
  });
  byId("actions").replaceChildren(...(lines.length ? lines : [make("li", "", "nothing yet")]));
}

// Files.

function download() {
  const lines = rows.filter((row) => verdicts.has(row.digest)).map((row) => ({
    row_id: row.id, digest: row.digest, ...(row.left ? { left: row.left } : {}), ...verdicts.get(row.digest),
  }));
  const reviewer = byId("reviewer").value.trim();
  const value = {
    format: data.verdict_format, mode: data.mode, output: data.output, recipe_sha256: data.recipe_sha256,
    reviewer, verdicts: lines,
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  link.download = `${data.verdict_file}${reviewer ? `-${reviewer.replace(/[^\p{L}\p{N}-]+/gu, "_")}` : ""}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
  unsaved.clear();
  count();
  say(`${plural(lines.length, "verdict")} in ${link.download}`);
}

// Continue from a file that a page saved, maybe in another browser; the later verdict on a row counts.
async function upload(file) {
  let value = null;
  try {
    value = JSON.parse(await file.text());
  } catch {
    value = null;
  }
  if (value?.format !== data.verdict_format || !Array.isArray(value.verdicts)) return say(`${file.name} is not a file of verdicts that this page saved`);
  let taken = 0;
  for (const line of value.verdicts) {
    const row = rowOf.get(line.digest);
    if (!row || row.id !== line.row_id || (recordOf(row).judged_at ?? "") >= (line.judged_at ?? "")) continue;
    const { row_id, digest, left, ...record } = line;
    put(row.digest, { ...OPEN, ...record });
    taken += 1;
  }
  unsaved.clear();
  choose();
  draw();
  return say(`${taken} of ${plural(value.verdicts.length, "verdict")} taken; the others are of other rows, or not newer`);
}
