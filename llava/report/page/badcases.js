"use strict";
// What a model wrote only ever enters the page as text (textContent), never as HTML.
const { runs, cases } = JSON.parse(document.getElementById("data").textContent);
const images = JSON.parse(document.getElementById("images").textContent);
const ROW = 64, AROUND = 6;
const find = (id) => document.getElementById(id);
const list = find("list"), rows = find("rows"), detail = find("detail");
const filters = { change: find("change"), benchmark: find("benchmark"), type: find("type") };
const search = find("search");
let shown = [], picked = 0, drawn = new Map();

// Characters that would hide or turn around other text are spelled out.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
const visible = (text) =>
  text.replace(HIDDEN, (mark) => "\\u" + mark.charCodeAt(0).toString(16).padStart(4, "0"));

function make(tag, className, text, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = visible(text);
  node.append(...children);
  return node;
}

function picture(item) {
  if (item.thumbnail < 0) return make("span", "faint", "no image");
  const node = make("img");
  node.src = "data:image/jpeg;base64," + images[item.thumbnail];
  node.alt = "image " + item.image;
  return node;
}

const sayAnswer = (answer) => (answer.text === null ? "(no answer)" : answer.text === "" ? "(empty)" : answer.text);
const outcomes = (item) => item.change.split(" -> ");
const marks = (item) => outcomes(item).map((word) => (word === "right" ? "✓ right" : "✗ wrong"));

// ---- filters

function count(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return counts;
}

function fill(select, entries, selected) {
  select.replaceChildren(
    ...entries.map(([value, label, number]) => {
      const option = make("option", "", `${label} (${number.toLocaleString("en")})`);
      option.value = value;
      option.selected = value === selected;
      return option;
    })
  );
}

function fillFilters() {
  const changes = count(cases.map((item) => item.change));
  const bad = cases.filter((item) => item.change.includes("wrong")).length;
  const order = runs.length > 1 ? ["right -> wrong", "wrong -> right", "wrong -> wrong", "right -> right"] : ["wrong", "right"];
  const entries = order.map((change) => [change, change.replace("->", "→"), changes.get(change) || 0]);
  fill(filters.change, [["bad", runs.length > 1 ? "wrong in any run" : "bad cases", bad], ...entries, ["", "all", cases.length]], "bad");
  const sorted = (key) => [...count(cases.map((item) => item[key]))].sort().map(([name, number]) => [name, name, number]);
  fill(filters.benchmark, [["", "all", cases.length], ...sorted("benchmark")], "");
  fill(filters.type, [["", "all", cases.length], ...sorted("type")], "");
}

for (const item of cases) {
  const words = [item.id, item.image, item.question, item.truth, ...item.answers.map((answer) => answer.text || "")];
  item.haystack = words.join("\n").toLowerCase();
}

function apply() {
  const { change, benchmark, type } = filters;
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = cases.filter(
    (item) =>
      (!change.value || (change.value === "bad" ? item.change.includes("wrong") : item.change === change.value)) &&
      (!benchmark.value || item.benchmark === benchmark.value) &&
      (!type.value || item.type === type.value) &&
      words.every((word) => item.haystack.includes(word))
  );
  find("count").textContent = `${shown.length.toLocaleString("en")} of ${cases.length.toLocaleString("en")} questions`;
  rows.replaceChildren();
  drawn.clear();
  rows.style.height = shown.length * ROW + "px";
  list.scrollTop = 0;
  pick(0);
}

function clear() {
  search.value = "";
  for (const select of Object.values(filters)) select.value = "";
  filters.change.value = "bad";
  apply();
}

// ---- the list: only rows in view are in the document

function draw() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - AROUND);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + AROUND);
  const before = drawn;
  drawn = new Map();
  for (let place = first; place < last; place++) {
    const node = before.get(place) || row(shown[place], place);
    node.setAttribute("aria-selected", String(place === picked));
    drawn.set(place, node);
    if (!before.has(place)) rows.append(node);
  }
  for (const [place, node] of before) if (!drawn.has(place)) node.remove();
  list.setAttribute("aria-activedescendant", shown.length ? "row" + picked : "");
}

function row(item, place) {
  const texts = make("div", "text", "", make("div", "", item.question.split("\n")[0]), make("div", "faint", `${item.type} · ${item.id}`));
  const change = make("div", "change", "", ...marks(item).map((mark) => make("div", mark.startsWith("✓") ? "good" : "bad", mark)));
  const node = make("div", "row", "", make("div", "picture", "", picture(item)), texts, change);
  node.id = "row" + place;
  node.style.top = place * ROW + "px";
  node.setAttribute("role", "option");
  node.onclick = () => pick(place);
  return node;
}

function pick(place) {
  picked = Math.max(0, Math.min(place, shown.length - 1));
  const top = picked * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  draw();
  detail.replaceChildren(...(shown.length ? describe(shown[picked]) : [make("p", "faint", "No question fits the filters.")]));
  detail.scrollTop = 0;
}

// ---- one question

function describe(item) {
  const lines = item.question.split("\n");
  const isOption = (line) => /^[A-Z]\. /.test(line);
  const before = lines.filter((line) => !isOption(line)).join("\n");
  const options = lines.filter(isOption).map((line) => option(item, line));
  return [
    make("div", "faint", `${item.benchmark} · ${item.type} · question ${item.id} · ${item.image || "image in the question file"}`),
    picture(item),
    make("h2", "words", before),
    make("ul", "options", "", ...options),
    make("table", "", "", answerRow("right answer", item.truth, ""), ...item.answers.map((answer, index) => modelRow(item, answer, index))),
  ];
}

function option(item, line) {
  const chosen = runs.filter((_, index) => item.answers[index].text === line[0]);
  const node = make("li", line[0] === item.truth ? "right" : "", line);
  const said = [...(line[0] === item.truth ? ["right answer"] : []), ...chosen];
  node.append(make("span", "marks", said.length ? "← " + said.join(", ") : ""));
  return node;
}

function modelRow(item, answer, index) {
  const isRight = outcomes(item)[index] === "right";
  const points = answer.score > 0 && answer.score < 1 ? `, ${answer.score.toFixed(2)} points` : "";
  const note = answer.status === "unparsable" ? ", not understood by the rule" : "";
  return answerRow(runs[index], sayAnswer(answer), (isRight ? "✓ right" : "✗ wrong") + points + note, isRight ? "good" : "bad");
}

function answerRow(name, text, verdict, className) {
  return make("tr", "", "", make("th", "", name), make("td", "words", text), make("td", className, verdict));
}

// ---- keys

const MOVES = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
const ACTIONS = {
  "/": () => search.select(),
  f: () => filters.change.focus(),
  x: clear,
  "?": () => find("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
  if (event.key === "Escape") return list.focus();
  if (event.target.matches("input, select")) {
    if (event.key === "Enter") list.focus();
    return;
  }
  if (event.target.matches("button") && event.key === "Enter") return;
  if (event.key in MOVES) pick(picked + MOVES[event.key]);
  else if (event.key in ACTIONS) ACTIONS[event.key]();
  else return;
  event.preventDefault();
});

let isWaiting = false;
list.addEventListener("scroll", () => {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => {
    isWaiting = false;
    draw();
  });
});
addEventListener("resize", draw);
search.addEventListener("input", apply);
for (const select of Object.values(filters)) select.addEventListener("change", apply);
find("help-button").onclick = ACTIONS["?"];
fillFilters();
apply();
list.focus();
