// Which rows are shown, and in which order.

const filters = {};
for (const name of ["status", "judged", "label", "find", "text", "shortest", "longest", "order", "changed"]) {
  filters[name] = byId(name);
  filters[name]?.addEventListener("input", () => { choose(); draw(); });
}

const ORDERS = {
  input: null,
  shortest: (a, b) => lengthOf(a) - lengthOf(b),
  longest: (a, b) => lengthOf(b) - lengthOf(a),
  unsure: (a, b) => (a.mean_logprob ?? 0) - (b.mean_logprob ?? 0),
};

const FINDS = {
  "": () => true,
  truncated: (row) => row.status === "truncated",
  repeated: (row) => isRepetitive(row),
  same: (row) => row.caption !== null && captionCounts().get(row.caption) > 1,
  empty: (row) => row.status !== "error" && !row.caption?.trim(),
};

function lengthOf(row) { return (row.caption ?? "").length; }

function matches(row, wanted) {
  const record = recordOf(row);
  const length = lengthOf(row);
  return (
    (!wanted.status || wanted.status === (row.error_code ? `error: ${row.error_code}` : row.status) || wanted.status === row.status)
    && (!wanted.judged || (wanted.judged === "none" ? !isJudged(row) : wanted.judged === "comment" ? Boolean(record.comment) : wanted.judged === record.verdict))
    && (!wanted.label || record.reasons.includes(wanted.label) || record.tags.includes(wanted.label))
    && FINDS[wanted.find](row)
    && length >= wanted.shortest && length <= wanted.longest
    && (!wanted.changed || row.changed)
    && (!wanted.text || searchText(row).includes(wanted.text))
  );
}

function searchText(row) {
  row.searched ??= [row.id, row.prompt, row.error, row.other?.caption, ...textsOf(row).values(), ...textsOf(row.other).values()]
    .filter(Boolean).join("\n").toLowerCase();
  return row.searched;
}

// Texts of a row by key: its caption, and each answer by its part.
function textsOf(row) {
  const texts = new Map();
  if (!row) return texts;
  if (row.caption !== null) texts.set("caption", row.caption);
  for (const section of row.sections) {
    for (const answer of section.answers) {
      if (answer[1] !== null) texts.set(`answer ${partOf(section, answer)}`, answer[1]);
    }
  }
  return texts;
}

// Prompts have names; windows and pages have labels alone. Python names parts by the same rule.
function partOf(section, [name]) { return name ?? section.label; }

function partsOf(row) { return row.sections.flatMap((section) => section.answers.map((answer) => partOf(section, answer))); }

// Choose the rows again; the selection stays at its place in the list, unless `place` says another.
function choose(place = 0) {
  const wanted = {
    status: filters.status.value,
    judged: filters.judged.value,
    label: filters.label.value,
    find: filters.find.value,
    text: filters.text.value.trim().toLowerCase(),
    shortest: Number(filters.shortest.value || 0),
    longest: filters.longest.value === "" ? Infinity : Number(filters.longest.value),
    changed: filters.changed?.checked ?? false,
  };
  view.shown = rows.filter((row) => matches(row, wanted));
  const order = ORDERS[filters.order.value];
  if (order) view.shown.sort(order);
  const target = Math.max(0, Math.min(place, view.shown.length - 1));
  view.page = Math.floor(target / PAGE_ROWS);
  view.selected = target % PAGE_ROWS;
  view.part = null;
  const active = Object.entries(wanted).filter(([name, value]) => value && value !== Infinity && name !== "order").length;
  byId("show-filters").firstChild.textContent = active ? `Filters (${active}) ` : "Filters ";
  byId("clear").hidden = active === 0;
}

function clearFilters() {
  for (const [name, node] of Object.entries(filters)) {
    if (node?.type === "checkbox") node.checked = false;
    else if (node && name !== "order") node.value = "";
  }
}
