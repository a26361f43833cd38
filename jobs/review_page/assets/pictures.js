// What the model saw: frames and pages as a grid, larger in a dialog, and clips that play.

const larger = { pictures: [], place: 0, isSeen: false };

function block(prefix, row) { return byId(`${prefix}${row.number}`)?.textContent.split(" ") ?? []; }

function jpeg(text) { return `data:image/jpeg;base64,${text}`; }

// The pictures of a row, section by section: [[{ src, large, mark, width_px, height_px }]].
function picturesOf(row, prefix) {
  const small = block(prefix, row).values();
  const large = block(`${prefix}L`, row).values();
  return row.sections.map((section) => section.pictures.map((picture) => ({
    ...picture,
    src: jpeg(small.next().value),
    large: picture.is_larger ? jpeg(large.next().value) : null,
  })));
}

function grid(pictures, section, all) {
  const box = make("div", "grid", ...pictures.map((picture) => {
    const image = document.createElement("img");
    image.src = picture.src;
    image.width = picture.width_px;
    image.height = picture.height_px;
    image.alt = "";
    const node = button("", "", () => enlarge(all, all.indexOf(picture)), "picture");
    node.setAttribute("aria-label", `Enlarge ${picture.mark || "the image"}`);
    node.append(image, make("span", "mark", picture.mark));
    return node;
  }));
  const widest = Math.max(...pictures.map((each) => each.width_px / each.height_px), 0.1);
  box.classList.add(widest > 1.2 ? "wide" : "tall");
  const missing = section.num_frames - pictures.length;
  return make("div", "seen", box, missing > 0 ? make("div", "facts", `${pictures.length} of ${section.num_frames} are shown`) : null);
}

function enlarge(pictures, place) {
  if (!pictures.length) return say("this row has no pictures");
  Object.assign(larger, { pictures, place, isSeen: false });
  showLarger();
  if (!byId("larger").open) byId("larger").showModal();
  return undefined;
}

function showLarger() {
  const picture = larger.pictures[larger.place];
  const image = byId("picture");
  const isLarge = picture.large !== null && !larger.isSeen;
  image.src = isLarge ? picture.large : picture.src;
  image.alt = picture.mark || "image";
  image.className = isLarge ? "" : "seen-size";
  const size = `${picture.width_px} x ${picture.height_px}`;
  const what = isLarge ? `from the source; as the model saw it: ${size} pixels` : `${size} pixels, no finer than the model saw it`;
  byId("picture-text").textContent = `${picture.mark ? `${picture.mark}, ` : ""}${larger.place + 1} of ${larger.pictures.length}: ${what}`;
  byId("as-seen").hidden = picture.large === null;
  byId("as-seen").firstChild.textContent = larger.isSeen ? "from the source " : "as the model saw it ";
}

function turnPicture(by) {
  larger.place = Math.min(Math.max(larger.place + by, 0), larger.pictures.length - 1);
  showLarger();
}

function toggleSeen() {
  if (larger.pictures[larger.place].large === null) return;
  larger.isSeen = !larger.isSeen;
  showLarger();
}

function play(row) {
  const clip = byId(`v${row.number}`);
  if (!clip) return say("this row has no clip; write the page with --with-clips");
  const video = byId("clip");
  video.src = `data:video/mp4;base64,${clip.textContent}`;
  byId("player").showModal();
  return video.play().catch((error) => say(`this browser cannot play the clip (${error.name})`));
}

function enlargeRow(row) { enlarge([...picturesOf(row, "f"), ...(row.other ? picturesOf(row.other, "g") : [])].flat(), 0); }
