// The page's behaviour: asks /read at every change of prompt or switches, /draw for pictures.
// An address may fill it in: ?prompt=a+dog&seeds=0,1&steps=10&off=hen&off=junco&draw=1
"use strict";

const $ = (name) => document.getElementById(name);
const items = []; // In the bank's order; the list shows them by name.
for (const row of document.querySelectorAll("#concepts li")) {
  items[row.dataset.place] = {
    row,
    name: row.dataset.name,
    on: row.querySelector("input[type=checkbox]"),
    strength: row.querySelector("input[type=range]"),
    output: row.querySelector("output"),
  };
}
let reading = new AbortController();
let drawing = new AbortController();
let waiting = 0; // A timer of what is to begin soon.
let running = 0;
let drawn = false;

function showBusy() {
  document.body.classList.toggle("busy", waiting !== 0 || running > 0);
}

async function now(work) {
  running += 1;
  showBusy();
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    fail(error.told ? error.message : "no answer: is `emcid_jax explore` still running?");
  } finally {
    running -= 1;
    showBusy();
  }
}

function later(milliseconds, work) {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    waiting = 0;
    now(work);
  }, milliseconds);
  showBusy();
}

function question() {
  const seeds = $("seeds").value.split(",").map((seed) => seed.trim()).filter(Boolean);
  return {
    prompt: $("prompt").value,
    strengths: items.map((item) => (item.on.checked ? Number(item.strength.value) : 0)),
    // What is no number is sent as it is: the answer says what is wrong with it.
    seeds: seeds.map((seed) => (/^\d+$/.test(seed) ? Number(seed) : seed)),
    steps: Number($("steps").value),
    guidance: Number($("guidance").value),
  };
}

function ask(path, asked, signal) {
  return fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(asked),
    signal,
  });
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

function told(message) {
  return Object.assign(new Error(message), { told: true });
}

function element(name, text = "", more = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, more);
}

async function read() {
  reading.abort();
  reading = new AbortController();
  const answer = await (await ask("read", question(), reading.signal)).json();
  if (answer.error) throw told(answer.error);
  fail("");
  showTokens(answer);
}

function showTokens(answer) {
  const cell = (value, colour, text) => {
    const found = element("td", value >= 0.005 ? text : "");
    found.style.background = `color-mix(in srgb, ${colour} ${Math.min(100, 100 * value)}%, white)`;
    found.style.color = value > 0.6 ? "white" : "";
    return found;
  };
  const line = (title, values, colour, text) => {
    const row = element("tr");
    row.append(element("th", title, { scope: "row" }));
    row.append(...values.map((value) => cell(value, colour, text(value))));
    return row;
  };
  const added = answer.tokens.length - (answer.tokens.at(-1) === "padding" ? 2 : 1);
  const head = element("thead");
  head.append(element("th"));
  head.append(...answer.tokens.map((text, place) =>
    element("th", text, { scope: "col", className: place < added ? "" : "added" })));
  const body = element("tbody");
  const percent = (value) => `${Math.round(100 * value)} %`;
  const change = line("text state changes", answer.changes, "var(--orange)", percent);
  change.className = "change";
  body.append(change);
  for (const item of items) item.row.classList.remove("touched");
  for (const { concept, shares } of answer.touched) {
    const item = items[concept];
    item.row.classList.add("touched");
    body.append(line(item.name, shares.map((share) => Math.max(0, share)), "var(--blue)", percent));
  }
  $("tokens").replaceChildren(head, body);
  const names = answer.touched.length;
  const said = names ? "Below: how much of each edit is written at each token."
    : "No edit answers to this prompt by its name.";
  $("told").textContent = `${said} ${answer.active} concepts solved and read in ` +
    `${answer.seconds.toFixed(1)} s.`;
}

async function draw() {
  drawing.abort();
  const own = drawing = new AbortController();
  drawn = true;
  progress(0, 1, null);
  try {
    const asked = question();
    const answer = await ask("draw", asked, own.signal);
    if (!answer.ok) throw told((await answer.json()).error);
    fail("");
    const places = makePlaces(asked);
    for await (const event of lines(answer.body)) {
      if (event.error) throw told(event.error);
      showPicture(places, event);
      progress(event.done, event.total, event.left);
    }
  } finally {
    if (!own.signal.aborted) $("progress").hidden = true;
  }
}

async function readAndDraw() {
  await read();
  if (drawn && $("follow").checked) await draw();
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

function progress(done, total, left) {
  $("progress").hidden = false;
  $("progress").querySelector("i").style.width = `${(100 * done) / total}%`;
  $("progress").querySelector("span").textContent = left === null
    ? "the first picture may wait for a compiler"
    : `${done} of ${total} pictures, ${Math.ceil(left)} s left`;
}

function makePlaces(asked) {
  const places = {};
  $("pictures").replaceChildren(...asked.seeds.map((seed) => {
    const pair = element("div", "", { className: "pair" });
    pair.append(element("p", `seed ${seed}`));
    for (const model of ["base", "edited"]) {
      const figure = element("figure");
      figure.append(element("div"), element("figcaption", model));
      places[`${model} ${seed}`] = figure;
      pair.append(figure);
    }
    return pair;
  }));
  return places;
}

function showPicture(places, { model, seed, picture }) {
  const image = element("img", "", { src: picture, alt: `${model} model, seed ${seed}` });
  image.onload = () => { // Smooth what is large; sprites keep their pixels.
    if (image.naturalWidth > 128) image.style.imageRendering = "auto";
  };
  places[`${model} ${seed}`].firstChild.replaceWith(image);
}

function showSwitches() {
  let on = 0;
  for (const item of items) {
    item.row.classList.toggle("off", !item.on.checked);
    item.output.value = Number(item.strength.value).toFixed(2);
    on += item.on.checked;
  }
  $("count").textContent = `${on} of ${items.length} on`;
}

function changed(milliseconds) {
  showSwitches();
  later(milliseconds, readAndDraw);
}

for (const item of items) {
  item.on.addEventListener("change", () => changed(0));
  item.strength.addEventListener("input", () => changed(250));
}
for (const [name, on] of [["all", true], ["none", false]]) {
  $(name).addEventListener("click", () => {
    for (const item of items) item.on.checked = on;
    changed(0);
  });
}
$("prompt").addEventListener("input", () => later(400, read));
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  now(draw);
});
$("filter").addEventListener("input", () => {
  const wanted = $("filter").value.trim().toLowerCase();
  for (const item of items) {
    item.row.hidden = !item.row.textContent.toLowerCase().includes(wanted);
  }
});

const given = new URLSearchParams(location.search);
for (const name of ["prompt", "seeds", "steps", "guidance"]) {
  if (given.has(name)) $(name).value = given.get(name);
}
const off = new Set(given.getAll("off"));
for (const item of items) if (off.has(item.name)) item.on.checked = false;
showSwitches();
drawn = given.has("draw");
now(readAndDraw);
