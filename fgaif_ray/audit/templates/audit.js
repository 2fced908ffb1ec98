"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const items = data.items;
  const storageKey = `${data.format}:${data.audit}`;
  const RIGHT = "consistent", WRONG = "hallucinated", NOTHING = "absent", UNSURE = "unsure";
  const WORDS = { [RIGHT]: "right", [WRONG]: "wrong", [UNSURE]: "unsure", [NOTHING]: "nothing claimed" };
  const KEYS = { r: RIGHT, 1: RIGHT, w: WRONG, 2: WRONG, u: UNSURE, 3: UNSURE, n: NOTHING, 0: NOTHING };
  const byId = (id) => document.getElementById(id);

  // ---- state: what was answered, kept in the browser ----

  // Per item: an answer per fact, and a label per type where one was chosen by hand.
  const blank = (item) => ({ facts: item.facts.map(() => null), labels: {} });
  const state = { annotator: "", position: 0, answers: items.map(blank) };
  let line = 0; // the line of the item that the keys act on
  let lines = []; // {kind: "fact", index} or {kind: "label", type}, with their elements

  function restore() {
    let kept = null;
    try {
      kept = JSON.parse(localStorage.getItem(storageKey));
    } catch {
      notify("This browser keeps nothing for this page: export before you close it.");
    }
    if (!kept || kept.answers.length !== items.length) return;
    Object.assign(state, kept);
    state.position = Math.min(Math.max(0, state.position), items.length - 1);
  }

  function keep() {
    try {
      localStorage.setItem(storageKey, JSON.stringify(state));
    } catch {
      notify("The browser could not keep your last answer: export before you close this page.");
    }
  }

  function notify(text) {
    byId("notice").textContent = text;
    byId("notice").hidden = !text;
  }

  // ---- rules ----

  /** The label of a type as its facts have it: null while one is open, or where there is none. */
  function labelFromFacts(position, type) {
    const verdicts = state.answers[position].facts.filter((_, index) => items[position].facts[index].type === type);
    if (!verdicts.length || verdicts.includes(null)) return null;
    if (verdicts.includes(WRONG)) return WRONG;
    return verdicts.includes(UNSURE) ? UNSURE : RIGHT;
  }

  function labelOf(position, type) {
    return state.answers[position].labels[type] ?? labelFromFacts(position, type);
  }

  function isDone(position) {
    return !state.answers[position].facts.includes(null) && data.types.every(({ name }) => labelOf(position, name));
  }

  function isStarted(position) {
    const { facts, labels } = state.answers[position];
    return facts.some((verdict) => verdict) || Object.keys(labels).length > 0;
  }

  function answerOf({ kind, index, type }) {
    return kind === "fact" ? state.answers[state.position].facts[index] : labelOf(state.position, type);
  }

  // ---- acts ----

  function answer(target, value) {
    const answers = state.answers[state.position];
    if (target.kind === "fact") {
      if (value === NOTHING) return;
      answers.facts[target.index] = value;
    } else if (value === null) {
      delete answers.labels[target.type];
    } else {
      answers.labels[target.type] = value;
    }
    keep();
  }

  function answerCurrent(value) {
    const target = lines[line];
    if (target.kind === "fact" && value === NOTHING) return;
    answer(target, value);
    if (value !== null) {
      const open = lines.findIndex((other, index) => index > line && !answerOf(other));
      const first = lines.findIndex((other) => !answerOf(other));
      if (open >= 0 || first >= 0) line = open >= 0 ? open : first;
    }
    refresh();
  }

  function goTo(position) {
    state.position = Math.min(Math.max(0, position), items.length - 1);
    keep();
    show();
  }

  function goToUnfinished() {
    for (let step = 1; step <= items.length; step++) {
      const position = (state.position + step) % items.length;
      if (!isDone(position)) return goTo(position);
    }
    notify(`All ${items.length} segments are done. Export your answers, and send the file to who asked you.`);
  }

  function moveLine(step) {
    line = Math.min(Math.max(0, line + step), lines.length - 1);
    refresh();
  }

  function toggleZoom() {
    byId("zoom").setAttribute("aria-pressed", String(document.body.classList.toggle("zoomed")));
  }

  function exportAnswers() {
    const annotator = state.annotator.trim();
    byId("annotator").classList.toggle("missing", !annotator);
    byId("annotator").setAttribute("aria-invalid", String(!annotator));
    if (!annotator) {
      notify("Write your name first, so that your answers can be told from others'.");
      byId("annotator").focus();
      return;
    }
    const words = { [RIGHT]: "right", [WRONG]: "wrong", [UNSURE]: "unsure" };
    const answers = items.flatMap((item, position) => {
      if (!isStarted(position)) return [];
      const labels = Object.fromEntries(data.types.map(({ name }) => [name, labelOf(position, name)]));
      const facts = state.answers[position].facts.map((verdict) => words[verdict] ?? null);
      return [{ sample_id: item.sample_id, segment: item.segment, text: item.text, facts, labels }];
    });
    const content = {
      format: data.format, version: data.version, audit: data.audit, annotator,
      exported_at: new Date().toISOString(), answers,
    };
    const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = `answers-${data.audit}-${annotator.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    notify(`Exported ${answers.length} of ${items.length} segments.`);
  }

  // ---- view ----

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function makeLine(target, what, values) {
    const row = element("div", target.kind === "fact" ? "line" : "line verdict");
    const choices = element("div", "choices");
    choices.setAttribute("role", "radiogroup");
    choices.setAttribute("aria-label", what.textContent);
    const index = lines.length;
    const buttons = values.map((value) => {
      const button = element("button", value, WORDS[value]);
      button.type = "button";
      button.setAttribute("role", "radio");
      button.addEventListener("click", () => {
        line = index;
        answerCurrent(value);
      });
      choices.append(button);
      return { value, button };
    });
    row.append(what, choices);
    row.addEventListener("click", (event) => {
      if (event.target.closest("button")) return;
      line = index;
      refresh();
    });
    lines.push({ ...target, row, buttons, what });
    return row;
  }

  function makeGroup({ name, title, meaning, colour }) {
    const group = element("article", "group card");
    const header = element("header");
    const dot = element("i", "dot");
    dot.style.background = `var(--${colour})`;
    header.append(dot, element("h3", "", title), element("span", "muted small", meaning));
    group.append(header);
    items[state.position].facts.forEach((fact, index) => {
      if (fact.type !== name) return;
      group.append(makeLine({ kind: "fact", index }, element("span", "what", fact.text), [RIGHT, WRONG, UNSURE]));
    });
    const what = element("span", "what", "The segment");
    group.append(makeLine({ kind: "label", type: name }, what, [RIGHT, WRONG, UNSURE, NOTHING]));
    return group;
  }

  /** Build the view of the current item. */
  function show() {
    const item = items[state.position];
    const picture = data.pictures[item.picture];
    byId("picture").src = picture.url;
    byId("picture").classList.toggle("enlarged", picture.enlarged);
    // White space belongs to segments, but the mark looks better without it.
    const [, space, text, end] = /^(\s*)(.*?)(\s*)$/su.exec(item.text);
    byId("prompt").textContent = item.prompt;
    byId("before").textContent = item.before + space;
    byId("text").textContent = text;
    byId("after").textContent = end + item.after;
    byId("announcement").textContent = `Segment ${state.position + 1} of ${items.length}: ${text}`;
    lines = [];
    byId("groups").replaceChildren(...data.types.map(makeGroup));
    line = Math.max(0, lines.findIndex((target) => !answerOf(target)));
    byId("text").scrollIntoView({ block: "nearest" });
    window.scrollTo(0, 0);
    refresh();
  }

  /** Bring the view up to date with the answers. */
  function refresh() {
    const { position } = state;
    lines.forEach((target, index) => {
      const given = answerOf(target);
      target.row.classList.toggle("current", index === line);
      for (const { value, button } of target.buttons) button.setAttribute("aria-checked", String(value === given));
      if (target.kind === "label") {
        const byHand = state.answers[position].labels[target.type] !== undefined;
        const hasFacts = items[position].facts.some((fact) => fact.type === target.type);
        const note = byHand ? "" : given ? " as its facts" : hasFacts ? "" : " no fact was found";
        target.what.replaceChildren("The segment", element("small", "", note));
      }
    });
    lines[line].row.scrollIntoView({ block: "nearest" });
    const done = items.filter((_, index) => isDone(index)).length;
    byId("done").textContent = done;
    byId("unfinished").textContent = done === items.length ? "· all done" : "";
    byId("position").textContent = `Segment ${position + 1} of ${items.length}`;
    byId("back").disabled = position === 0;
    byId("next").disabled = position === items.length - 1;
    byId("finished").hidden = !isDone(position) || done === items.length;
    [...byId("map").children].forEach((button, index) => {
      button.classList.toggle("done", isDone(index));
      button.classList.toggle("started", isStarted(index));
      button.classList.toggle("current", index === position);
      button.setAttribute("aria-current", String(index === position));
    });
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    if (event.target === byId("annotator")) {
      if (event.key === "Enter" || event.key === "Escape") byId("annotator").blur();
      return;
    }
    if (event.target === byId("response") && event.key.startsWith("Arrow")) return; // they scroll it
    const onControl = event.target instanceof HTMLButtonElement && !event.target.closest(".choices");
    if (onControl && (event.key === "Enter" || event.key === " ")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const acts = {
      ArrowDown: () => moveLine(1), j: () => moveLine(1), ArrowUp: () => moveLine(-1), k: () => moveLine(-1),
      ArrowRight: () => goTo(state.position + 1), ArrowLeft: () => goTo(state.position - 1),
      Enter: goToUnfinished, Backspace: () => answerCurrent(null), x: exportAnswers, z: toggleZoom,
      "?": () => byId("help").showModal(),
    };
    const act = Object.hasOwn(KEYS, key) ? () => answerCurrent(KEYS[key]) : Object.hasOwn(acts, key) ? acts[key] : null;
    if (!act) return;
    event.preventDefault();
    if (key !== "x") notify("");
    act();
  }

  restore();
  byId("annotator").value = state.annotator;
  byId("annotator").addEventListener("input", (event) => {
    state.annotator = event.target.value;
    keep();
  });
  byId("map").append(...items.map((_, index) => {
    const button = element("button");
    button.type = "button";
    button.title = `Segment ${index + 1}`;
    button.tabIndex = -1;
    button.addEventListener("click", () => goTo(index));
    return button;
  }));
  byId("picture").addEventListener("click", toggleZoom);
  byId("zoom").addEventListener("click", toggleZoom);
  byId("back").addEventListener("click", () => goTo(state.position - 1));
  byId("next").addEventListener("click", () => goTo(state.position + 1));
  byId("export").addEventListener("click", exportAnswers);
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  document.addEventListener("keydown", onKey);
  show();
})();
