// Moving among rows, parts and pages.

function select(index) {
  if (index === view.selected || index < 0) return;
  view.part = null;
  view.selected = index;
  for (const [position, node] of [...document.querySelectorAll("article")].entries()) mark(node, position === index);
}

function showSelected() {
  const node = document.querySelector("article.selected");
  node?.focus({ preventScroll: true });
  node?.scrollIntoView({ block: "start" });
}

function step(by) {
  moveTo(view.page * PAGE_ROWS + view.selected + by);
}

function moveTo(place) {
  const target = Math.max(0, Math.min(place, view.shown.length - 1));
  const page = Math.floor(target / PAGE_ROWS);
  view.part = null;
  if (page === view.page) {
    select(target - page * PAGE_ROWS);
    for (const node of document.querySelectorAll(".answer.current")) node.classList.remove("current");
  } else {
    view.page = page;
    view.selected = target - page * PAGE_ROWS;
    view.editing = null;
    draw();
  }
  showSelected();
}

function goTo(row) {
  if (!view.shown.includes(row) || !stillShown(row)) {
    choose();
    if (!view.shown.includes(row)) {
      clearFilters();
      choose();
    }
  }
  const place = view.shown.indexOf(row);
  view.page = Math.floor(place / PAGE_ROWS);
  view.selected = place % PAGE_ROWS;
  draw();
  showSelected();
}

function stillShown(row) { return !filters.judged.value || stays(row); }

function nextOpen() {
  const here = view.page * PAGE_ROWS + view.selected;
  const order = [...view.shown.slice(here + 1), ...view.shown.slice(0, here + 1)];
  const row = order.find((each) => !isJudged(each));
  if (!row) return say(rows.every(isJudged) ? "all rows are judged: download the verdicts" : "all rows shown are judged");
  return moveTo(view.shown.indexOf(row));
}

// Through the parts of a row, and back to the row itself.
function moveToPart(by) {
  const row = currentRow();
  const parts = [null, ...partsOf(row)];
  if (parts.length === 1 || data.mode === "blind") return say("this row has no parts: prompts, windows or pages");
  view.part = parts[(parts.indexOf(view.part) + by + parts.length) % parts.length];
  redraw(row);
  document.querySelector(".answer.current")?.scrollIntoView({ block: "nearest" });
  return undefined;
}

function turn(by) {
  const pages = Math.max(1, Math.ceil(view.shown.length / PAGE_ROWS));
  const page = Math.min(Math.max(view.page + by, 0), pages - 1);
  if (page === view.page) return;
  Object.assign(view, { page, selected: 0, editing: null, part: null });
  draw();
  scrollTo(0, 0);
}
