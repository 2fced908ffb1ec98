"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const ALL = "all";
const WAIT_MS = 120000;
let images = []; // {url, name} of what is scored, in the order of the prompt's places
let adding = false; // whether the files that are being chosen come beside those that are there
let chosen = 0; // number of the latest choice of images: an earlier one that is read later must not win
let busy = false;
let scored = null;
let view = ALL;

/** An element with a class and children; text only ever becomes text nodes. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// What is asked

function showImages(found, isExample) {
  images = found;
  byId("pictures").replaceChildren(...images.map(pictureOf));
  byId("pictures").classList.toggle("several", images.length > 1);
  byId("hint").hidden = true;
  byId("name").hidden = false;
  byId("name").textContent = images.map((one) => one.name).join(", ");
  byId("drop").classList.add("filled");
  byId("add").hidden = images.length >= data.most_images;
  if (!isExample) pressExample(null);
  showMissing();
}

function pictureOf({ url, name }) {
  const picture = element("img");
  picture.hidden = true;
  picture.onload = () => {
    picture.hidden = false;
    picture.classList.toggle("enlarged", Math.max(picture.naturalWidth, picture.naturalHeight) < data.smallest_photo);
  };
  picture.src = url;
  picture.alt = name;
  return picture;
}

/** Take files in place of the images, or beside those that are there. */
async function chooseFiles(files, beside) {
  const number = ++chosen;
  const kept = beside ? images : [];
  const large = files.find((file) => file.size > data.largest_image);
  if (large) {
    showProblem(`The image has ${(large.size / 2 ** 20).toFixed(1)} MiB; the service takes up to ${data.largest_image / 2 ** 20} MiB.`);
    return;
  }
  if (kept.length + files.length > data.most_images) {
    showProblem(`The service takes up to ${data.most_images} images.`);
    return;
  }
  try {
    const read = await Promise.all(files.map(readFile));
    if (number !== chosen) return;
    showProblem(null);
    showImages([...kept, ...read], false);
  } catch {
    showProblem("The file cannot be read.");
  }
}

/** A file that the system knows no type of comes as application/octet-stream; the service looks into the bytes. */
function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ url: reader.result, name: file.name || "pasted image" });
    reader.onerror = reject;
    reader.readAsDataURL(file);
  });
}

function pressExample(index) {
  [...byId("examples").children].forEach((button, place) => button.setAttribute("aria-pressed", String(place === index)));
}

function chooseExample(index) {
  const example = data.examples[index];
  chosen += 1;
  byId("prompt").value = example.prompt;
  byId("response").value = example.response;
  showImages([{ url: example.picture, name: `${example.name} of the embedded world` }], true);
  pressExample(index);
}

function showMissing() {
  const wanted = [!images.length && "an image", !byId("response").value.trim() && "a response"].filter(Boolean);
  byId("missing").textContent = wanted.length ? `Needs ${wanted.join(" and ")}` : "";
  const button = byId("score");
  button.disabled = busy || wanted.length > 0;
  button.textContent = busy ? "Scoring …" : "Score";
}

function showProblem(text, detail) {
  byId("problem").hidden = text === null;
  byId("problem-text").textContent = text ?? "";
  byId("problem-code").textContent = detail ?? "";
}

// The service

async function ask(path, options) {
  const token = byId("token")?.value.trim();
  const headers = { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, { ...options, headers, credentials: "omit", signal: AbortSignal.timeout(WAIT_MS) });
  const body = await answer.json();
  if (!answer.ok) throw body.error ?? { message: `The service answered with status ${answer.status}.` };
  return body;
}

async function score() {
  if (byId("score").disabled) return;
  busy = true;
  showMissing();
  showProblem(null);
  markToken(false);
  const began = performance.now();
  const urls = images.map((one) => one.url);
  const shown = urls.length === 1 ? { image: urls[0] } : { images: urls };
  const item = { ...shown, prompt: byId("prompt").value, response: byId("response").value };
  try {
    const [answer, models] = await Promise.all([
      ask("v1/rewards", { method: "POST", body: JSON.stringify({ items: [item] }) }),
      ask("v1/models", { method: "GET" }),
    ]);
    scored = { ...answer.results[0], requestId: answer.request_id, milliseconds: performance.now() - began, models };
    showResult();
  } catch (error) {
    byId("result").hidden = true;
    byId("empty").hidden = true;
    const wait = error.name === "TimeoutError" ? "The service took too long." : "The service cannot be reached.";
    showProblem(error.code ? sentence(error) : error.message && !(error instanceof Error) ? error.message : wait,
      error.code && `${error.code} · request ${error.request_id}`);
    if (error.code === "unauthorized" && byId("token")) {
      markToken(true);
      byId("token").focus();
    }
  } finally {
    busy = false;
    showMissing();
  }
}

function markToken(wrong) {
  byId("token")?.classList.toggle("wrong", wrong);
  byId("token")?.setAttribute("aria-invalid", String(wrong));
}

function sentence(error) {
  if (error.code === "unauthorized") return "The service wants its token: type it in above.";
  return error.message.replace(/^items\[0\]: /, "").replace(/^./, (letter) => letter.toUpperCase());
}

// What was found

const likeliest = (odds) => odds.indexOf(Math.max(...odds));
const classOf = (segment, type) => data.classes[likeliest(segment[type])];

function signed(value) {
  const rounded = value.toFixed(2);
  return /^-?0\.00$/.test(rounded) ? "0.00" : value < 0 ? rounded.replace("-", "\u2212") : `+${rounded}`;
}

function signClass(value) {
  return Math.abs(value) < 0.005 ? "" : value < 0 ? "minus" : "plus";
}

/** Class of a segment in the chosen view; over all types one hallucination counts more than what is right. */
function shownClass(segment) {
  const types = view === ALL ? data.types : [view];
  const classes = types.map((type) => classOf(segment, type));
  return ["hallucinated", "consistent"].find((name) => classes.includes(name)) ?? "absent";
}

function showResult() {
  byId("empty").hidden = true;
  byId("result").hidden = false;
  const { models } = scored;
  byId("served").textContent = `${models.backbone} · ${models.kind} reward models · version ${models.model_version}`;
  showOutside();
  showTiles();
  showViews();
  showMarked();
  showRows();
  byId("announcement").textContent = `Scored: reward ${signed(scored.reward)}, ${countWords(scored.segments)}.`;
  const place = byId("result").getBoundingClientRect();
  if (place.top > window.innerHeight * 0.8) byId("result").scrollIntoView();
  byId("origin").textContent =
    `Model version ${scored.model_version} · request ${scored.requestId} · ${Math.round(scored.milliseconds)} ms` +
    (trainedOn() && ` · trained on ${trainedOn()}`) +
    (models.kind === "coarse" ? " · one verdict per response, at its last segment" : "");
}

const countWords = (segments) => `${segments.length} segment${segments.length === 1 ? "" : "s"}`;

/** Each text on what the reward models were trained on, once. */
function trainedOn() {
  const known = scored.models.models.map((model) => model.trained_on).filter(Boolean);
  return [...new Set(known.map(({ images, source }) => `${images} images${source ? ` (${source})` : ""}`))].join(" and ");
}

function showOutside() {
  byId("outside").hidden = !scored.out_of_domain;
  const apart = `It is ${(scored.domain_distance ?? 0).toFixed(1)} times as far from them as images may be`;
  byId("outside-text").textContent = `${apart}${trainedOn() && `; they were trained on ${trainedOn()}`}. The probabilities below mean little.`;
}

function showTiles() {
  const { segments, models } = scored;
  const total = element("div", "tile total", element("h3", "", "Reward of the response"),
    element("div", `value ${signClass(scored.reward)}`, signed(scored.reward)), element("p", "", `sum over ${countWords(segments)}`));
  byId("tiles").replaceChildren(total, ...data.types.map((type) => {
    const earned = segments.reduce((sum, segment) => sum + segment.rewards[type], 0);
    const wrong = segments.filter((segment) => classOf(segment, type) === "hallucinated").length;
    const stated = segments.filter((segment) => classOf(segment, type) !== "absent").length;
    const weight = element("span", "", `\u00d7 ${models.weights[type]}`);
    weight.title = "weight of the type, which the rewards hold";
    return element("div", "tile", element("h3", "", element("i", `dot ${data.colours[type]}`), type, weight),
      element("div", `value ${signClass(earned)}`, signed(earned)),
      element("p", "", stated ? `${wrong} of ${stated} hallucinated` : "no facts"));
  }));
}

function showViews() {
  byId("views").replaceChildren(...[ALL, ...data.types].map((name) => {
    const button = element("button", "", ...(name === ALL ? [] : [element("i", `dot ${data.colours[name]}`)]), name === ALL ? "all" : name);
    button.type = "button";
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", String(name === view));
    button.tabIndex = name === view ? 0 : -1; // arrows lead to the others
    button.dataset.view = name;
    button.onclick = () => chooseView(name);
    return button;
  }));
}

function chooseView(name) {
  view = name;
  showViews();
  showMarked();
  byId("views").querySelector(`[data-view="${name}"]`).focus();
}

function showMarked() {
  const characters = Array.from(scored.response); // offsets count characters, not UTF-16 units
  const text = (start, end) => characters.slice(start, end).join("");
  const parts = [];
  let reached = 0;
  scored.segments.forEach((segment, index) => {
    const [, before, said, after] = /^(\s*)([\s\S]*?)(\s*)$/.exec(text(segment.start, segment.end));
    parts.push(text(reached, segment.start), before);
    const mark = element("span", `segment ${shownClass(segment)}`, said);
    if (view === ALL) {
      const badges = data.types.filter((type) => classOf(segment, type) !== "absent").map((type) => {
        const badge = element("span", `badge ${classOf(segment, type)}`, type[0].toUpperCase());
        badge.title = `${type}: ${classOf(segment, type)}`;
        badge.setAttribute("role", "img");
        badge.setAttribute("aria-label", badge.title);
        return badge;
      });
      if (badges.length) mark.append(element("span", "badges", ...badges));
    }
    link(mark, index);
    parts.push(mark, after);
    reached = segment.end;
  });
  byId("marked").replaceChildren(...parts, text(reached, characters.length));
}

function showRows() {
  const characters = Array.from(scored.response);
  const classes = () => element("div", "figures names", ...data.classes.map((name) => element("span", "", name)));
  const heads = data.types.map((type) => element("th", "", element("i", `dot ${data.colours[type]}`), type, classes()));
  const columns = [element("th", "", "segment"), ...heads, element("th", "", "reward")];
  columns.forEach((head) => head.setAttribute("scope", "col"));
  byId("columns").replaceChildren(...columns);
  byId("rows").replaceChildren(...scored.segments.map((segment, index) => {
    const said = element("th", "said", characters.slice(segment.start, segment.end).join("").trim());
    said.setAttribute("scope", "row");
    const row = element("tr", "", said, ...data.types.map((type) => oddsCell(segment, type)),
      element("td", `reward ${signClass(segment.reward)}`, signed(segment.reward)));
    link(row, index);
    return row;
  }));
}

function oddsCell(segment, type) {
  const best = likeliest(segment[type]);
  const bar = element("div", "odds", ...segment[type].map((share, place) => {
    const piece = element("i", data.classes[place]);
    piece.style.width = `${share * 100}%`;
    return piece;
  }));
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", segment[type].map((share, place) => `${data.classes[place]} ${share.toFixed(2)}`).join(", "));
  const figures = element("div", "figures", ...segment[type].map((share, place) => {
    const figure = element("span", place === best ? `likeliest ${data.classes[place]}` : "", share.toFixed(2));
    figure.title = data.classes[place];
    return figure;
  }));
  return element("td", "odds-cell", bar, figures, element("div", "earned", `reward ${signed(segment.rewards[type])}`));
}

/** What belongs to a segment lights up together. */
function link(part, index) {
  part.dataset.index = index;
  const light = (on) => () =>
    document.querySelectorAll(`[data-index="${index}"]`).forEach((one) => one.classList.toggle("current", on));
  part.onmouseenter = light(true);
  part.onmouseleave = light(false);
}

// Events

byId("examples").append(...data.examples.map((example, index) => {
  const picture = element("img");
  picture.src = example.picture;
  picture.alt = example.name;
  const button = element("button", "", picture);
  button.type = "button";
  button.title = `Example ${example.name}`;
  button.setAttribute("aria-pressed", "false");
  button.onclick = () => chooseExample(index);
  return button;
}));
const drop = byId("drop");
const chooseOwn = (beside) => {
  adding = beside;
  byId("file").click();
};
drop.onclick = () => chooseOwn(false);
byId("add").onclick = () => chooseOwn(true);
drop.onkeydown = (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  if (event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  chooseOwn(false);
};
byId("file").onchange = (event) => {
  if (event.target.files.length) chooseFiles([...event.target.files], adding);
  event.target.value = "";
  adding = false;
};
const filesOf = (transfer) => [...(transfer?.files ?? [])];
document.ondragover = (event) => {
  event.preventDefault();
  drop.classList.add("over");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
};
document.ondrop = (event) => {
  event.preventDefault(); // a picture that misses the field must not replace the page
  drop.classList.remove("over");
  const files = filesOf(event.dataTransfer);
  if (files.length) chooseFiles(files, false);
};
document.onpaste = (event) => {
  const files = filesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  chooseFiles(files, false);
};
byId("views").onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const names = [ALL, ...data.types];
  chooseView(names[(names.indexOf(view) + step + names.length) % names.length]);
};
document.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    score();
  }
};
byId("response").oninput = showMissing;
byId("score").onclick = score;
showMissing();
