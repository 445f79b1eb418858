"use strict";
// What a model wrote only ever enters the page as text (textContent), never as HTML.
const { items, tags, saved } = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const verdicts = new Map(saved.map((verdict) => [verdict.item, verdict]));
let place = 0, isOver = false;

function show() {
  const item = items[place];
  const verdict = verdicts.get(item.id);
  find("image").src = "image/" + encodeURIComponent(item.id);
  find("image").alt = "image " + item.image;
  find("about").textContent = `${item.type} · ${item.image}`;
  find("question").textContent = item.question;
  find("answer").textContent = item.answer && "Answer: " + item.answer;
  find("options").replaceChildren(
    ...item.options.map((line) => {
      const node = document.createElement("li");
      const isRight = line[0] === item.letter;
      node.className = isRight ? "right" : "";
      node.textContent = line + (isRight ? " ← right" : "");
      return node;
    })
  );
  find("progress").textContent = `${place + 1} of ${items.length}, ${verdicts.size} marked`;
  find("pass").className = verdict && verdict.passed ? "chosen" : "";
  for (const button of document.querySelectorAll("[data-tag]"))
    button.className = verdict && verdict.tag === button.dataset.tag ? "chosen" : "";
}

const go = (to) => {
  place = Math.max(0, Math.min(to, items.length - 1));
  show();
};

async function send(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error((await response.json()).error || response.statusText);
}

// The page goes on once the verdict is on disk; what is typed meanwhile waits in line.
let line = Promise.resolve();
function mark(passed, tag) {
  line = line.then(async () => {
    if (isOver) return;
    const verdict = { item: items[place].id, passed, tag, note: find("note").value };
    try {
      await send("verdict", verdict);
    } catch (error) {
      find("fault").textContent = `Not saved: ${error.message}`;
      return;
    }
    find("fault").textContent = "";
    find("note").value = "";
    verdicts.set(verdict.item, verdict);
    go(place + 1);
  });
}

async function end() {
  await line;
  await send("finish", {});
  isOver = true;
  find("progress").textContent = `${verdicts.size} of ${items.length} marked. You can close this page.`;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isOver) return;
  if (event.target.matches("input")) {
    if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    return;
  }
  const number = Number(event.key);
  if (event.key === "p") mark(true, "");
  else if (number >= 1 && number <= tags.length) mark(false, tags[number - 1]);
  else if (event.key === "j" || event.key === "ArrowRight") go(place + 1);
  else if (event.key === "k" || event.key === "ArrowLeft") go(place - 1);
  else if (event.key === "n") find("note").focus();
  else return;
  event.preventDefault();
});
find("pass").onclick = () => mark(true, "");
find("end").onclick = end;
for (const button of document.querySelectorAll("[data-tag]")) button.onclick = () => mark(false, button.dataset.tag);
show();
