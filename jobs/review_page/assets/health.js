// Caption health: what the shown captions have in common, and what is wrong with them, by filter.

const NUM_BINS = 16;
let countsOfCaptions = null;

// How many rows of the file have a caption, by caption.
function captionCounts() {
  countsOfCaptions ??= tally(rows.map((row) => row.caption).filter((caption) => caption !== null));
  return countsOfCaptions;
}

function tally(items) {
  const counts = new Map();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return counts;
}

function most(counts, number) {
  return [...counts].filter(([, count]) => count > 1).sort((a, b) => b[1] - a[1]).slice(0, number);
}

// Whether the loop guard ended a caption, or four words follow each other in it three times.
function isRepetitive(row) {
  if (row.finish_reason === "repetition") return true;
  row.isRepetitive ??= repeats(row.caption ?? "");
  return row.isRepetitive;
}

function repeats(text) {
  const words = text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const grams = words.slice(3).map((_, place) => words.slice(place, place + 4).join(" "));
  return [...tally(grams).values()].some((count) => count >= 3);
}

function showHealth() {
  const shown = view.shown;
  const captions = shown.map((row) => row.caption).filter((caption) => caption !== null);
  const lengths = captions.map((caption) => caption.length).sort((a, b) => a - b);
  const share = (number) => `${number.toLocaleString("en")} (${shown.length ? ((100 * number) / shown.length).toFixed(1) : "0.0"} %)`;
  const finds = [
    ["truncated", "truncated"], ["repeated", "repeat themselves"], ["same", "same as another row's"], ["empty", "empty"],
  ].map(([find, label]) => {
    const number = shown.filter(FINDS[find]).length;
    return make("li", "", `${label}: ${share(number)} `, number ? button("show", "", () => leave(() => { filters.find.value = find; }), "small") : null);
  });
  const errors = shown.filter((row) => row.status === "error").length;
  finds.push(make("li", "", `errors: ${share(errors)} `, errors ? button("show", "", () => leave(() => { filters.status.value = "error"; }), "small") : null));
  const openings = captions.map((caption) => caption.trim().split(/\s+/).slice(0, 4).join(" ")).filter(Boolean);
  byId("health-text").replaceChildren(
    make("p", "facts", `${plural(shown.length, "row")} of ${rows.length.toLocaleString("en")}, as the filters choose them`),
    make("h3", "", "What to look at"), make("ul", "", ...finds),
    make("h3", "", "Lengths in characters"), histogram(lengths),
    make("h3", "", "Most frequent captions"), frequent(tally(captions)),
    make("h3", "", "Most frequent openings"), frequent(tally(openings)),
  );
}

function leave(setFilter) {
  setFilter();
  byId("health").close();
  choose();
  draw();
}

function frequent(counts) {
  const lines = most(counts, 8).map(([text, count]) => make("li", "",
    make("b", "", `${count} `), text.length > 160 ? `${text.slice(0, 160)} ...` : text, " ",
    button("show", "", () => leave(() => { filters.text.value = text; }), "small"),
  ));
  return lines.length ? make("ol", "", ...lines) : make("p", "facts", "none occurs twice");
}

function histogram(lengths) {
  if (!lengths.length) return make("p", "facts", "no captions");
  const least = lengths[0], longest = lengths.at(-1);
  const step = Math.max(1, (longest - least + 1) / NUM_BINS);
  const bins = new Array(Math.min(NUM_BINS, longest - least + 1)).fill(0);
  for (const length of lengths) bins[Math.min(bins.length - 1, Math.floor((length - least) / step))] += 1;
  const highest = Math.max(...bins);
  const bars = make("div", "bars", ...bins.map((number, place) => {
    const from = Math.ceil(least + place * step), to = Math.ceil(least + (place + 1) * step) - 1;
    const bar = button("", "", () => leave(() => { filters.shortest.value = from; filters.longest.value = to; }), "bin");
    bar.title = `${from} to ${to} characters: ${plural(number, "caption")}`;
    bar.setAttribute("aria-label", bar.title);
    const fill = make("i", "");
    fill.style.height = `${(100 * number) / highest}%`;
    bar.append(fill);
    return bar;
  }));
  const at = (share) => lengths[Math.floor(share * (lengths.length - 1))];
  return make("div", "", bars, make("p", "facts", `shortest ${least}, half are below ${at(0.5)}, nine of ten below ${at(0.9)}, longest ${longest}`));
}
