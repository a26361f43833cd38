// Drawing: one page of rows at a time, and after a verdict its own card alone.

function draw() {
  rememberFolds();
  const first = view.page * PAGE_ROWS;
  const here = view.shown.slice(first, first + PAGE_ROWS);
  byId("rows").replaceChildren(...(here.length ? here.map(card) : [nothing()]));
  const last = Math.min(first + PAGE_ROWS, view.shown.length);
  byId("place").textContent = here.length ? `rows ${first + 1} to ${last} of ${view.shown.length.toLocaleString("en")}` : "no rows";
  byId("previous").disabled = view.page === 0;
  byId("next").disabled = last >= view.shown.length;
  count();
}

function redraw(row) {
  const place = view.shown.indexOf(row) - view.page * PAGE_ROWS;
  const node = byId("rows").children[place];
  if (place < 0 || !node?.dataset.row) return;
  rememberFolds();
  const hadFocus = node.contains(document.activeElement);
  if (hadFocus && document.activeElement.matches(".comment")) document.activeElement.blur(); // which keeps the comment
  const fresh = card(row, place);
  node.replaceWith(fresh);
  if (hadFocus) fresh.focus({ preventScroll: true });
}

function nothing() {
  return make("div", "nothing",
    make("p", "", rows.length ? "No row matches these filters." : "This file has no rows."),
    rows.length ? button("Show all rows", "", () => { clearFilters(); choose(); draw(); }) : null,
  );
}

function count() {
  const kinds = data.mode === "blind" ? CHOICES : VERDICTS;
  const counts = Object.fromEntries(Object.keys(kinds).map((kind) => [kind, 0]));
  let judged = 0;
  for (const row of rows) {
    const { verdict } = recordOf(row);
    if (verdict !== null) counts[verdict] += 1;
    if (isJudged(row)) judged += 1;
  }
  byId("bar").replaceChildren(...Object.entries(counts).map(([kind, number]) => {
    const part = make("i", kind);
    part.style.width = `${(100 * number) / Math.max(rows.length, 1)}%`;
    return part;
  }));
  byId("progress").setAttribute("aria-valuenow", judged);
  byId("progress").setAttribute("aria-valuemax", rows.length);
  byId("progress").title = Object.entries(counts).map(([kind, number]) => `${number} ${kinds[kind].done}`).join(", ");
  byId("judgements").textContent = `${judged.toLocaleString("en")} of ${rows.length.toLocaleString("en")} judged${pace(rows.length - judged)}`;
  byId("done").hidden = rows.length === 0 || judged < rows.length;
  byId("download").title = `download the verdicts; ${plural(unsaved.size, "row")} changed since the last download`;
  byId("unsaved").textContent = unsaved.size ? ` (${unsaved.size})` : "";
}

// Verdicts an hour over the last ones, without pauses of more than five minutes, and what that means for the rest.
function pace(open) {
  const times = history_.past.slice(-60).map((action) => Date.parse(action.after.judged_at));
  let worked_ms = 0, steps = 0;
  for (let place = 1; place < times.length; place++) {
    const gap = times[place] - times[place - 1];
    if (gap < 300_000 && history_.past.at(place - times.length).digest !== history_.past.at(place - times.length - 1).digest) {
      worked_ms += gap;
      steps += 1;
    }
  }
  if (steps < 5 || worked_ms < 1000) return "";
  const an_hour = Math.round((steps * 3_600_000) / worked_ms);
  const left_min = Math.ceil((open * worked_ms) / steps / 60_000);
  const left = left_min < 90 ? `${left_min} min` : `${Math.round(left_min / 60)} h`;
  return `, ${an_hour.toLocaleString("en")} an hour${open ? `, ${left} left` : ""}`;
}

function card(row, index) {
  const record = recordOf(row);
  const node = make("article", record.verdict ?? "");
  node.dataset.row = row.id;
  node.tabIndex = -1;
  node.setAttribute("aria-label", `row ${row.id}, ${record.verdict ?? "open"}`);
  if (index === view.selected) mark(node, true);
  node.addEventListener("mousedown", () => select(index));
  const head = make("div", "head",
    make("span", "id", row.id),
    row.status === "ok" || data.mode === "blind" ? null : badge(row.status),
    record.verdict ? badge(record.verdict, (VERDICTS[record.verdict] ?? CHOICES[record.verdict]).done) : null,
    draftOf(row) !== null && view.editing !== row.digest ? badge("draft") : null,
    byId(`v${row.number}`) ? button("Play ", "v", () => play(row), "small") : null,
  );
  const prompt = row.prompt ? make("div", "text prompt", make("span", "label", "prompt "), row.prompt) : null;
  if (data.other) {
    node.classList.add("compared");
    node.append(head, prompt ?? "", sides(row), panel(row));
  } else {
    const content = body(row, "f", (text) => [text], make("div", "top", head, prompt));
    node.append(content, panel(row));
  }
  return node;
}

function mark(node, isSelected) {
  node.classList.toggle("selected", isSelected);
  if (isSelected) node.setAttribute("aria-current", "true");
  else node.removeAttribute("aria-current");
}

// Two outputs: the frames once if both saw the same, and their texts side by side with what changed.
function sides(row) {
  const right = row.other;
  const marked = (side) => (text, key) => (data.mode === "blind" ? [text] : compared(row, key)[side].map(changed));
  const left = side(row, "f", data.output_label, marked(0));
  const other = right ? side(right, "g", data.other, marked(1)) : make("div", "side", make("p", "note", "not in this output"));
  if (right && seenKey(row) === seenKey(right) && row.sections.length === 1) {
    const pictures = picturesOf(row, "f");
    for (const each of [left, other]) each.querySelector(".seen")?.remove();
    return make("div", "sides shared", make("div", "pictures", grid(pictures[0], row.sections[0], pictures.flat())), left, other);
  }
  return make("div", "sides", left, other);
}

function seenKey(row) { return row.sections.map((each) => each.pictures.map((picture) => `${picture.mark} ${picture.width_px}`).join()).join("|"); }

function side(row, prefix, name, marked) {
  const status = row.status === "ok" || data.mode === "blind" ? "" : ` (${row.status})`;
  return make("div", "side", body(row, prefix, marked, make("div", "label", `${name}${status}`)));
}

// Frames at the left and words at the right, section by section.
function body(row, prefix, marked, top) {
  const pictures = picturesOf(row, prefix);
  const all = pictures.flat();
  const isSimple = row.sections.length <= 1 && !row.sections[0]?.answers.length;
  const node = make("div", `content${row.are_pages ? " pages" : ""}${all.length ? "" : " bare"}`);
  const words = make("div", "words", top);
  if (!isSimple) {
    words.append(...captionOf(row, marked), ...foot(row));
    node.append(words);
    for (const [place, section] of row.sections.entries()) node.append(...sectionOf(row, section, pictures[place], all, marked));
    if (row.sections.length < row.num_sections) {
      node.append(make("div", "facts whole", `${row.sections.length} of ${row.num_sections} prompts of this row are shown`));
    }
    node.classList.add("parts");
    return node;
  }
  if (all.length) node.append(grid(pictures[0], row.sections[0], all));
  words.append(...captionOf(row, marked), ...foot(row));
  node.append(words);
  return node;
}

function sectionOf(row, section, pictures, all, marked) {
  const answers = section.answers.map((each) => answerOf(row, section, each, marked));
  const label = section.label && !section.answers.some(([name]) => name === null) ? make("div", "label", section.label) : null;
  const words = make("div", pictures.length ? "words" : "words whole", label, ...answers);
  return pictures.length ? [grid(pictures, section, all), words] : [words];
}

function answerOf(row, section, answer, marked) {
  const [name, text, error] = answer;
  const part = partOf(section, answer);
  const node = make("div", "answer",
    make("div", "head", make("span", "label", name ?? section.label ?? ""), row.digest ? partButtons(row, part, error !== null && text === null) : null),
    text === null ? null : make("div", "text", ...marked(text, `answer ${part}`)),
    error && error !== errorOf(row) ? make("div", "text note", error) : null,
  );
  const isCurrent = row === currentRow() && view.part === part;
  node.classList.toggle("current", isCurrent);
  node.dataset.part = part;
  const verdict = row.digest ? recordOf(row).parts[part] : null;
  if (verdict) node.classList.add(verdict);
  return node;
}

// The caption, or the editor in its place. Where an answer says the same, the caption is not said twice.
function captionOf(row, marked) {
  const nodes = [];
  const record = row.digest ? recordOf(row) : OPEN;
  if (row.note) nodes.push(make("div", "note", row.note));
  if (row.digest && view.editing === row.digest) return [...nodes, editor(row)];
  const isSaid = row.are_caption || row.sections.some((each) => each.answers.some(([, text]) => text === row.caption));
  if (record.verdict === "edit") {
    nodes.push(make("div", "text caption edited", record.caption));
    if (row.caption !== null) nodes.push(folded(row, "the model's caption", make("div", "text", row.caption)));
  } else if (row.caption !== null) {
    const text = make("div", "text caption", ...marked(row.caption, "caption"));
    if (row.caption === "") text.append(make("span", "facts", "(empty)"));
    nodes.push(isSaid ? folded(row, "caption, all of it", text) : text);
  }
  if (row.error) nodes.push(make("div", "text note", errorOf(row)));
  return nodes;
}

function errorOf(row) { return row.error ? `${row.error_code}: ${row.error}` : null; }

function foot(row) {
  if (data.mode === "blind") return [];
  const lines = [...facts(row), ...row.more].map(([key, value]) => make("tr", "", make("td", "", key), make("td", "text", value)));
  return [
    row.reasoning ? folded(row, "reasoning", make("div", "text", row.reasoning)) : null,
    lines.length ? folded(row, "columns", make("table", "", ...lines)) : null,
  ].filter(Boolean);
}

function facts(row) {
  const found = [];
  if (row.caption !== null) found.push(["characters", row.caption.length]);
  if (row.num_prompt_tokens !== null) found.push(["tokens", `${row.num_prompt_tokens} of the prompt, ${row.num_generated_tokens} generated`]);
  if (row.finish_reason) found.push(["finish_reason", row.finish_reason]);
  if (row.mean_logprob !== null) found.push(["mean logprob", `${row.mean_logprob}, least ${row.min_logprob ?? "unknown"}`]);
  return found.map(([key, value]) => [key, String(value)]);
}

function badge(kind, text = kind) { return make("span", `badge ${kind}`, text); }

// The folds that are open stay so when their cards are drawn again.
function rememberFolds() {
  for (const node of document.querySelectorAll("details[data-fold]")) {
    if (node.open) view.open.add(node.dataset.fold);
    else view.open.delete(node.dataset.fold);
  }
}

function folded(row, title, content) {
  const node = make("details", "", make("summary", "", title), content);
  const key = `${row.number} ${title} ${row.digest ?? "other"}`;
  node.dataset.fold = key;
  node.open = view.open.has(key);
  return node;
}
