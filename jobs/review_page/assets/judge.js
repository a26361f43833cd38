// Judging: a row, one of its parts, or two captions whose origin is hidden.

const VERDICTS = {
  accept: { label: "Accept ", key: "a", done: "accepted" },
  edit: { label: "Edit ", key: "e", done: "edited" },
  reject: { label: "Reject ", key: "r", done: "rejected" },
  unsure: { label: "Unsure ", key: "s", done: "unsure" },
};
const CHOICES = {
  left: { label: "Left is better ", key: "l", done: "left better" },
  right: { label: "Right is better ", key: "r", done: "right better" },
  tie: { label: "Equally good ", key: "b", done: "equally good" },
  neither: { label: "Neither is good ", key: "n", done: "neither good" },
};
const PART_VERDICTS = ["accept", "reject", "unsure"];

function panel(row) {
  const record = recordOf(row);
  const kinds = data.mode === "blind" ? CHOICES : VERDICTS;
  const buttons = make("div", "buttons", ...Object.entries(kinds).map(([kind, { label, key }]) => {
    const node = button(label, key, () => (kind === "edit" ? edit(row) : act(row, kind)), kind);
    node.setAttribute("aria-pressed", String(record.verdict === kind));
    node.disabled = kind === "accept" && row.status === "error";
    if (node.disabled) node.title = "a row with an error cannot be accepted";
    return node;
  }));
  buttons.setAttribute("role", "group");
  buttons.setAttribute("aria-label", "verdict");
  if (data.mode !== "blind" && row.other?.caption) buttons.append(button("Take the right one ", "t", () => take(row), "wide"));
  return make("div", "panel", buttons,
    chips(row, "reasons", data.reasons, ""),
    chips(row, "tags", data.tags, "Shift+"),
    commentOf(row),
  );
}

function chips(row, kind, labels, modifier) {
  if (!labels.length) return null;
  const chosen = recordOf(row)[kind];
  const all = [...labels, ...chosen.filter((each) => !labels.includes(each))];
  const node = make("div", "chips", ...all.map((label, place) => {
    const chip = button(label, "", () => toggle(row, kind, label), "chip");
    chip.setAttribute("aria-pressed", String(chosen.includes(label)));
    if (place < 9) {
      chip.setAttribute("aria-keyshortcuts", `${modifier}${place + 1}`);
      chip.title = `${modifier}${place + 1}`;
    }
    return chip;
  }));
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", kind);
  return node;
}

function commentOf(row) {
  const field = document.createElement("input");
  field.type = "text";
  field.className = "comment";
  field.placeholder = "comment (c)";
  field.setAttribute("aria-label", "comment");
  field.value = recordOf(row).comment;
  field.addEventListener("change", () => {
    if (field.value.trim() !== recordOf(row).comment) change(row, { comment: field.value.trim() }, "comment");
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") field.closest("article").focus(); // leaving the field keeps the comment
  });
  return field;
}

function partButtons(row, part, hasFailed) {
  if (data.mode === "blind") return null;
  const verdict = recordOf(row).parts[part];
  const node = make("span", "part-buttons", ...PART_VERDICTS.map((kind) => {
    const each = button(kind, "", () => actOnPart(row, part, kind), `small ${kind}`);
    each.setAttribute("aria-pressed", String(verdict === kind));
    each.disabled = kind === "accept" && hasFailed;
    return each;
  }));
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", `verdict on ${part}`);
  return node;
}

// Give a verdict and go on to the next row; the same verdict again takes it back.
function act(row, verdict) {
  if (view.part !== null) return actOnPart(row, view.part, verdict);
  if (verdict === "accept" && row.status === "error") return say("a row with an error cannot be accepted: edit or reject it");
  if (recordOf(row).verdict === verdict) {
    change(row, { verdict: null, caption: null }, `no longer ${verdict}`);
    return redraw(row);
  }
  change(row, { verdict, caption: null }, verdict);
  return goOn(row);
}

function actOnPart(row, part, verdict) {
  if (!PART_VERDICTS.includes(verdict)) return say("a part is accepted, rejected or unsure; w goes back to the row");
  if (verdict === "accept" && !textsOf(row).has(`answer ${part}`)) return say("a part with an error cannot be accepted");
  const parts = { ...recordOf(row).parts };
  if (parts[part] === verdict) delete parts[part];
  else parts[part] = verdict;
  change(row, { parts }, `${verdict} ${part}`);
  if (view.part !== null) moveToPart(1);
  return redraw(row);
}

function clearVerdict(row) {
  if (!verdicts.has(row.digest)) return say("this row has no verdict");
  change(row, OPEN, "cleared");
  return redraw(row);
}

function toggle(row, kind, label) {
  if (label === undefined) return;
  const chosen = recordOf(row)[kind];
  const has = chosen.includes(label);
  change(row, { [kind]: has ? chosen.filter((each) => each !== label) : [...chosen, label] }, `${has ? "without" : "with"} ${label}`);
  redraw(row);
}

function take(row) {
  if (data.mode === "blind" || !row.other?.caption) return;
  change(row, { verdict: "edit", caption: row.other.caption }, "took the right one");
  goOn(row);
}

// After a verdict: draw its card, and go to the next row. Where a filter no longer shows the row, the next one is in its place.
function goOn(row) {
  const place = view.page * PAGE_ROWS + view.selected;
  if (filters.judged.value && view.shown.includes(row) && !stays(row)) {
    choose(place);
    draw();
    showSelected();
    return;
  }
  redraw(row);
  if (currentRow() === row) step(1);
}

function stays(row) {
  const wanted = filters.judged.value;
  return wanted === "none" ? !isJudged(row) : wanted === "comment" || wanted === recordOf(row).verdict;
}

// Editing: the text is kept as a draft at each key, until it is saved or discarded.

function draftKey(row) { return `${STORAGE} draft ${row.digest}`; }

const drafts = new Map();

function draftOf(row) {
  if (drafts.has(row.digest)) return drafts.get(row.digest);
  try {
    return localStorage.getItem(draftKey(row));
  } catch {
    return null; // the reader was warned when the page was loaded
  }
}

function keepDraft(row, text) {
  if (text === null) drafts.delete(row.digest);
  else drafts.set(row.digest, text);
  try {
    if (text === null) localStorage.removeItem(draftKey(row));
    else localStorage.setItem(draftKey(row), text);
  } catch (error) {
    warn(`The browser could not keep the text (${error.name}). Save it before you leave.`);
  }
}

function edit(row) {
  if (data.mode === "blind") return;
  view.editing = row.digest;
  view.part = null;
  select(view.shown.indexOf(row) - view.page * PAGE_ROWS);
  redraw(row);
  const area = document.querySelector("textarea");
  area?.focus();
  area?.scrollIntoView({ block: "nearest" });
}

function editor(row) {
  const area = document.createElement("textarea");
  area.setAttribute("aria-label", "caption");
  area.value = draftOf(row) ?? recordOf(row).caption ?? row.caption ?? "";
  const close = () => { view.editing = null; redraw(row); };
  const save = () => {
    const caption = area.value.trim();
    if (!caption) return say("an edited caption needs a text; reject the row in place of that");
    keepDraft(row, null);
    view.editing = null;
    change(row, { verdict: "edit", caption }, "edit");
    return goOn(row);
  };
  const discard = () => { keepDraft(row, null); close(); };
  area.addEventListener("input", () => keepDraft(row, area.value));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    else if (event.key === "Escape") {
      close();
      document.querySelector("article.selected")?.focus({ preventScroll: true });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return make("div", "editor", area, make("div", "head",
    button("Save ", "Ctrl+Enter", save), button("Later ", "Esc", close), button("Discard", "", discard),
  ));
}
