// Looking through a set: filters, the grid, one picture large, and keep or drop with one key.
import { $, ask, attempt, fill, made, send } from "./page.js";
import { poseChosen } from "./pose.js";

const COUNT = 60;
const LIMBS = [
  [1, 0], [1, 2], [2, 3], [3, 4], [1, 5], [5, 6], [6, 7], [1, 8], [8, 9], [9, 10], [1, 11], [11, 12], [12, 13],
  [0, 14], [14, 16], [0, 15], [15, 17],
];
let start = 0;
let rows = [];
let chosen = 0; // in rows
let asked = 0; // number of the last question, so that a late answer is not shown

const identity = () => $("set").value;

function question() {
  const values = new URLSearchParams({ start, count: COUNT, state: $("state").value });
  if ($("person").value !== "*") values.set("person", $("person").value);
  if ($("camera").value !== "*") values.set("camera", $("camera").value);
  if ($("score").value) {
    values.set("score", $("score").value);
    if ($("descending").checked) values.set("descending", "true");
    if ($("low").value !== "") values.set("low", $("low").value);
    if ($("high").value !== "") values.set("high", $("high").value);
  }
  return `api/sets/${identity()}?${values}`;
}

function counted(page) {
  const all = page.pictures.toLocaleString("en");
  const words = [`${all} pictures, ${page.kept.toLocaleString("en")} used`];
  if (page.by_hand) words.push(`${page.by_hand.toLocaleString("en")} decided by hand`);
  if (page.fitting !== undefined && page.fitting !== page.pictures) words.push(`${page.fitting.toLocaleString("en")} shown by these filters`);
  $("counts").textContent = words.join(", ");
}

async function load(keep = 0) {
  if (!identity()) return;
  const number = ++asked;
  const page = await attempt(() => ask(question()));
  if (number !== asked) return;
  if (!page) {
    clear();
    return;
  }
  if (page.fitting && start >= page.fitting) {
    start = Math.floor((page.fitting - 1) / COUNT) * COUNT;
    await load(keep);
    return;
  }
  latest = page;
  const choices = (names, all) => [["*", all], ...names.map((name) => [name, name === "" ? "unknown" : name])];
  fill($("person"), choices(page.people, "all"), $("person").value);
  fill($("camera"), choices(page.cameras, "all"), $("camera").value);
  fill($("score"), [["", "none"], ...page.scores.map((name) => [name, name.replaceAll("_", " ")])], $("score").value);
  $("bounds").hidden = !$("score").value;
  if (page.range) {
    $("low").placeholder = page.range[0].toPrecision(3);
    $("high").placeholder = page.range[1].toPrecision(3);
  }
  counted(page);
  rows = page.rows;
  chosen = Math.min(keep, Math.max(rows.length - 1, 0));
  const shown = rows.length ? `${start + 1} to ${start + rows.length} of ${page.fitting.toLocaleString("en")}` : "";
  $("shown").textContent = shown;
  $("earlier").disabled = start === 0;
  $("later").disabled = start + rows.length >= page.fitting;
  document.querySelector(".pager").hidden = page.fitting <= COUNT;
  $("nothing").hidden = rows.length > 0;
  $("nothing").textContent = "No picture fits these filters.";
  draw();
}

let latest = null;

function clear() {
  rows = [];
  draw();
  $("counts").textContent = $("shown").textContent = "";
}

function word(one) {
  if (one.by_hand) return one.kept ? "kept by hand" : "dropped by hand";
  return one.kept ? "" : "dropped";
}

function dress(item, one, at) {
  item.className = `${one.kept ? "" : "dropped"} ${one.by_hand ? "hand" : ""}`;
  item.setAttribute("aria-selected", String(at === chosen));
  item.tabIndex = at === chosen ? 0 : -1;
  item.querySelector(".state").textContent = word(one) || "\u00a0";
  const who = one.person === "" ? "" : `person ${one.person}, `;
  item.setAttribute("aria-label", `${who}${one.file}${word(one) ? `, ${word(one)}` : ""}`);
}

function draw() {
  const score = $("score").value;
  const items = rows.map((one, at) => {
    const item = made("li", "", { role: "option" });
    item.setAttribute("role", "option");
    const image = made("img", "", { src: `api/sets/${identity()}/pictures/${one.row}`, alt: "", loading: "lazy", draggable: false });
    const value = score && one.scores[score] !== undefined ? one.scores[score].toPrecision(3) : null;
    const text = value ?? (one.person === "" ? one.file : `${one.person}${one.camera === "" ? "" : `, c${one.camera}`}`);
    item.append(image, made("span", text, { className: "word" }), made("span", "", { className: "state" }));
    item.addEventListener("click", () => choose(at, true));
    dress(item, one, at);
    return item;
  });
  $("grid").replaceChildren(...items);
  enlarge();
}

function choose(at, focus) {
  if (at < 0 || at >= rows.length) return;
  chosen = at;
  [...$("grid").children].forEach((item, i) => dress(item, rows[i], i));
  if (focus) {
    $("grid").children[at].focus();
    $("grid").children[at].scrollIntoView({ block: "nearest" });
  }
  enlarge();
}

function enlarge() {
  const one = rows[chosen];
  $("one").hidden = !one;
  if (!one) return;
  $("large").src = `api/sets/${identity()}/pictures/${one.row}`;
  $("large").alt = one.file;
  $("posethis").hidden = !one.map;
  $("overlay").hidden = !one.map && !one.keypoints;
  const over = $("withmap").checked;
  $("map").hidden = !(one.map && over);
  if (one.map && over) $("map").src = `api/sets/${identity()}/maps/${one.row}`;
  $("joints").toggleAttribute("hidden", !(one.keypoints && over));
  if (one.keypoints && one.size && over) drawJoints(one.keypoints, one.size);
  const facts = [["file", one.file], ["state", word(one) || "used"], ["filter", one.reason]];
  facts.push(["person", one.person], ["camera", one.camera], ["look at", one.flags.join(", ")]);
  facts.push(...Object.entries(one.facts), ...Object.entries(one.scores).map(([name, v]) => [name, v.toPrecision(4)]));
  const parts = facts.filter(([, text]) => text !== "");
  $("facts").replaceChildren(...parts.flatMap(([name, text]) => [made("dt", name.replaceAll("_", " ")), made("dd", text)]));
}

function drawJoints(points, [width, height]) {
  const svg = $("joints");
  svg.setAttribute("viewBox", `-0.5 -0.5 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const at = (joint) => [points[2 * joint], points[2 * joint + 1]];
  const there = (joint) => at(joint)[0] !== null && at(joint)[1] !== null;
  const shape = (tag, values) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
    return element;
  };
  const thin = Math.max(width, height) / 130;
  const lines = LIMBS.filter(([a, b]) => there(a) && there(b)).map(([a, b]) =>
    shape("line", { x1: at(a)[0], y1: at(a)[1], x2: at(b)[0], y2: at(b)[1], stroke: "#fff", "stroke-width": thin }));
  const dots = [...Array(18).keys()].filter(there).map((joint) =>
    shape("circle", { cx: at(joint)[0], cy: at(joint)[1], r: thin * 1.5, fill: [2, 3, 4, 8, 9, 10, 14, 16].includes(joint) ? "#e4572e" : "#2274a5" }));
  svg.replaceChildren(...lines, ...dots);
}

// The choice moves on at once, however fast the keys come; the server is told of one decision after the other.
let told = Promise.resolve();

function decide(decision) {
  const one = rows[chosen];
  if (!one) return;
  const [set, at] = [identity(), chosen];
  if (decision !== "undo" && at < rows.length - 1) choose(at + 1, true);
  told = told.then(async () => {
    const answer = await attempt(() => send(`api/sets/${set}/decisions`, { rows: [one.row], decision }));
    if (!answer) return;
    Object.assign(one, answer.changed[0]);
    if (set !== identity()) return;
    counted({ ...latest, ...answer });
    if (rows[at] === one) dress($("grid").children[at], one, at);
    if (at === chosen) enlarge();
  });
}

function columns() {
  return getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("pictures").hidden) return;
  if (event.target.matches("select, input") || !rows.length) return;
  const words = { k: "keep", d: "drop", u: "undo" };
  const key = event.key.toLowerCase();
  const inGrid = $("grid").contains(event.target) || event.target === document.body;
  const steps = { arrowright: 1, arrowleft: -1, arrowdown: columns(), arrowup: -columns() };
  if (words[key]) decide(words[key]);
  else if (inGrid && steps[key]) choose(Math.min(Math.max(chosen + steps[key], 0), rows.length - 1), true);
  else if (inGrid && key === "home") choose(0, true);
  else if (inGrid && key === "end") choose(rows.length - 1, true);
  else if (inGrid && key === "pagedown" && !$("later").disabled) turn(1);
  else if (inGrid && key === "pageup" && !$("earlier").disabled) turn(-1);
  else return;
  event.preventDefault();
}

async function turn(by) {
  start = Math.max(start + by * COUNT, 0);
  await load();
  $("grid").children[0]?.focus();
}

export async function openPictures(sets, wanted) {
  fill($("set"), sets, wanted);
  for (const id of ["person", "camera"]) fill($(id), [["*", "all"]], "*");
  fill($("score"), [["", "none"]], "");
  for (const word of ["keep", "drop", "undo"]) $(word).addEventListener("click", () => decide(word));
  $("withmap").addEventListener("change", enlarge);
  $("posethis").addEventListener("click", () => poseChosen(identity(), rows[chosen].row));
  $("earlier").addEventListener("click", () => turn(-1));
  $("later").addEventListener("click", () => turn(1));
  for (const id of ["person", "camera", "state", "score", "low", "high", "descending"]) {
    $(id).addEventListener("change", () => {
      if (id === "score") $("low").value = $("high").value = "";
      start = 0;
      load();
    });
  }
  $("set").addEventListener("change", () => {
    history.replaceState(null, "", `#pictures/${identity()}`);
    start = 0;
    for (const id of ["person", "camera"]) $(id).value = "*";
    $("score").value = $("low").value = $("high").value = "";
    clear(); // a key must not decide about a row of the earlier set while the server is asked for this one
    load();
  });
  addEventListener("keydown", onKey);
  document.querySelector("#pictures .bar").hidden = !sets.length;
  if (!sets.length) {
    $("nothing").hidden = false;
    $("nothing").textContent = "There is no augmented set and no annotated folder here yet: make one with `reposer augment` or `reposer annotate`.";
    return;
  }
  await load();
}
