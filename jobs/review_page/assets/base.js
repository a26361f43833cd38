"use strict";
// What every other script uses: the rows, the elements of the page, and how nodes are made.
// Rows are untrusted: they reach the page as text nodes and numbers, never as markup.

const PAGE_ROWS = 25;
const data = JSON.parse(byId("data").textContent);
const rows = data.rows;
const view = { shown: rows, page: 0, selected: 0, part: null, editing: null, open: new Set() };

function byId(id) { return document.getElementById(id); }

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A button that also tells its key.
function button(text, key, act, className) {
  const node = make("button", className, text);
  node.type = "button";
  if (key) {
    node.append(make("kbd", "", key));
    node.setAttribute("aria-keyshortcuts", key);
  }
  node.addEventListener("click", act);
  return node;
}

// Tell a sighted reader for some seconds, and a screen reader at once.
function say(text) {
  const node = byId("say");
  node.textContent = text;
  node.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => node.classList.remove("shown"), 6000);
}

// What stays until the page is closed, such as a browser that keeps nothing.
function warn(text) {
  byId("warning").textContent = text;
  byId("warning").hidden = false;
}

function plural(number, noun) { return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`; }

function currentRow() { return view.shown[view.page * PAGE_ROWS + view.selected]; }
