// Keys, and the start. Each key is listed with what it does: the help is made of this table.

const MOVES = {
  j: ["next row (also the arrow down)", () => step(1)],
  k: ["previous row (also the arrow up)", () => step(-1)],
  ArrowDown: [null, () => step(1)],
  ArrowUp: [null, () => step(-1)],
  ArrowRight: ["next page", () => turn(1)],
  ArrowLeft: ["previous page", () => turn(-1)],
};
const VIEWS = {
  Enter: ["enlarge the frames or pages of the row", (row) => enlargeRow(row)],
  v: ["play the clip", (row) => play(row)],
  "/": ["search", () => filters.text.focus()],
  f: ["show or hide the filters", () => toggleFilters()],
  h: ["caption health", () => open_("health", showHealth)],
  y: ["history", () => open_("history", showHistory)],
  "?": ["this list", () => open_("help", showHelp)],
};
const HISTORY_KEYS = {
  u: ["undo the last action (also Ctrl+Z)", () => undo()],
  U: ["redo (also Ctrl+Shift+Z)", () => redo()],
};
const JUDGE = {
  a: ["accept", (row) => act(row, "accept")],
  r: ["reject", (row) => act(row, "reject")],
  s: ["unsure", (row) => act(row, "unsure")],
  e: ["edit the caption", (row) => edit(row)],
  t: ["take the caption at the right, of two outputs", (row) => take(row)],
  w: ["next prompt, window or page of the row, to judge it alone", () => moveToPart(1)],
  W: ["previous prompt, window or page", () => moveToPart(-1)],
  n: ["next row that is not judged", () => nextOpen()],
};
const COMPARE = {
  l: ["the left one is better", (row) => act(row, "left")],
  r: ["the right one is better", (row) => act(row, "right")],
  b: ["both are equally good", (row) => act(row, "tie")],
  n: ["neither is good", (row) => act(row, "neither")],
  o: ["next open row", () => nextOpen()],
};
const NOTE = {
  c: ["comment", () => focusComment()],
  x: ["clear all that is said of the row", (row) => clearVerdict(row)],
};
const KEYS = { ...MOVES, ...VIEWS, ...(data.mode === "blind" ? COMPARE : JUDGE), ...NOTE, ...HISTORY_KEYS };

const NAMES = { ArrowLeft: "left arrow", ArrowRight: "right arrow" };

function showHelp() {
  const lines = Object.entries(KEYS).filter(([, [text]]) => text).map(([key, [text]]) => [key, text]);
  if (data.reasons.length) lines.push(["1 to 9", `reasons: ${data.reasons.join(", ")}`]);
  if (data.tags.length) lines.push(["Shift+1 to 9", `tags: ${data.tags.join(", ")}`]);
  byId("keys").replaceChildren(...lines.map(([key, text]) => make("tr", "", make("td", "", make("kbd", "", NAMES[key] ?? key)), make("td", "", text))));
}

function open_(id, fill) {
  fill();
  byId(id).showModal();
}

function toggleFilters() {
  const isHidden = byId("filters").toggleAttribute("hidden");
  byId("show-filters").setAttribute("aria-expanded", String(!isHidden));
  measureHeader();
}

function focusComment() { document.querySelector("article.selected .comment")?.focus(); }

function measureHeader() {
  document.documentElement.style.scrollPaddingTop = `${document.querySelector("header").offsetHeight + 10}px`;
}

// A key with Caps Lock on is that key; with Shift it may be another.
function keyOf(event) { return event.key.length === 1 && !event.shiftKey ? event.key.toLowerCase() : event.key; }

function onDialogKey(event, dialog) {
  const does = dialog.id !== "larger" ? {} : {
    ArrowLeft: () => turnPicture(-1), ArrowRight: () => turnPicture(1), s: toggleSeen, Enter: () => dialog.close(),
  };
  if (!(event.key in does) || event.target.closest("input")) return;
  event.preventDefault();
  does[event.key]();
}

function onControlKey(event) {
  if (!(event.ctrlKey || event.metaKey) || event.altKey || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  if (event.shiftKey) redo();
  else undo();
}

document.addEventListener("keydown", (event) => {
  const dialog = document.querySelector("dialog[open]");
  if (dialog) return onDialogKey(event, dialog);
  if (event.target.closest("input:not([type=checkbox]), select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return undefined;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return onControlKey(event);
  if (event.key === "Enter" && event.target.closest("button, a, summary")) return undefined;
  const row = currentRow();
  const digit = /^Digit([1-9])$/.exec(event.code)?.[1];
  if (digit && row) return toggle(row, event.shiftKey ? "tags" : "reasons", (event.shiftKey ? data.tags : data.reasons)[digit - 1]);
  const key = keyOf(event);
  const isAlways = Object.hasOwn(VIEWS, key) && !["Enter", "v"].includes(key) || Object.hasOwn(HISTORY_KEYS, key);
  if (!Object.hasOwn(KEYS, key) || !(row || isAlways)) return undefined;
  event.preventDefault();
  return KEYS[key][1](row);
});

// Selects give the keyboard back, so that the next key judges and does not change the filter.
for (const node of document.querySelectorAll("#filters select")) node.addEventListener("change", () => node.blur());

for (const [id, act_] of Object.entries({
  "show-filters": toggleFilters,
  clear: () => { clearFilters(); choose(); draw(); },
  "show-health": () => open_("health", showHealth),
  "show-history": () => open_("history", showHistory),
  "show-help": () => open_("help", showHelp),
  "show-about": () => open_("about", () => {}),
  download, "download-done": download,
  previous: () => turn(-1), next: () => turn(1),
  "next-open": nextOpen,
  "picture-back": () => turnPicture(-1), "picture-on": () => turnPicture(1), "as-seen": toggleSeen,
})) byId(id).addEventListener("click", act_);

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => document.querySelector("article.selected")?.focus({ preventScroll: true }));
}
byId("player").addEventListener("close", () => byId("clip").pause());
byId("larger-frame").addEventListener("click", () => byId("larger").close());
byId("reviewer").addEventListener("change", () => {
  try {
    localStorage.setItem(`${STORAGE} reviewer`, byId("reviewer").value.trim());
  } catch {
    // the reader was warned when the page was loaded
  }
});
byId("upload").addEventListener("change", (event) => { if (event.target.files.length) upload(event.target.files[0]); });
addEventListener("resize", measureHeader);
addEventListener("beforeunload", (event) => {
  document.activeElement?.blur(); // a field that loses the focus keeps its text
  if (!byId("warning").hidden && unsaved.size) event.preventDefault(); // the browser asks whether to leave
});
addEventListener("storage", (event) => { // another tab with the same rows
  const row = rowOf.get(event.key?.slice(STORAGE.length + 1));
  if (!row) return;
  if (event.newValue === null) verdicts.delete(row.digest);
  else verdicts.set(row.digest, { ...OPEN, ...JSON.parse(event.newValue) });
  redraw(row);
  count();
});
if (data.labels.length === 0) byId("label-filter").hidden = true;
measureHeader();
load();
choose();
draw();
