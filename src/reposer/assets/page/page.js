// The page: its tabs, its messages, and the reports of runs and studies. All text becomes text, never markup.
import { openPose } from "./pose.js";
import { openPictures } from "./review.js";

export const $ = (id) => document.getElementById(id);

export function made(tag, text = "", values = {}) {
  const element = Object.assign(document.createElement(tag), values);
  if (text !== "") element.textContent = text;
  return element;
}

export function tell(message = "") {
  $("told").textContent = message;
  $("told").hidden = !message;
}

// Ask the server; what it refuses is an Error with its line.
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is `reposer serve` still running?");
  }
  const json = (answer.headers.get("content-type") ?? "").startsWith("application/json");
  if (answer.ok) return json ? answer.json() : answer.blob();
  const told = json ? await answer.json() : { error: await answer.text(), advice: "" };
  throw new Error(told.advice ? `${told.error}: ${told.advice}` : told.error);
}

export const send = (path, value) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) });

export async function attempt(work) {
  try {
    const result = await work();
    tell();
    return result;
  } catch (error) {
    tell(error.message);
    return undefined;
  }
}

export function fill(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, text]) => made("option", text, { value })));
  select.value = choices.some(([value]) => value === chosen) ? chosen : (choices[0]?.[0] ?? "");
  return select.value;
}

// ---- tabs: the address's fragment remembers which, so that a reload comes back to it

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(name) {
  const chosen = tabs.find((tab) => tab.getAttribute("aria-controls") === name) ?? tabs[0];
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", String(tab === chosen));
    tab.tabIndex = tab === chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
}

for (const tab of tabs) {
  tab.addEventListener("click", () => {
    location.hash = tab.getAttribute("aria-controls");
  });
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}
const part = () => decodeURIComponent(location.hash.slice(1)).split("/");
addEventListener("hashchange", () => show(part()[0]));

// ---- reports

function table(one) {
  const element = made("table", "", { className: one.plain ? "plain" : "" });
  const row = (cells, tag) => {
    const line = made("tr");
    line.append(...cells.map((cell) => made(tag, cell)));
    return line;
  };
  const head = made("thead");
  head.append(row(one.columns, "th"));
  const body = made("tbody");
  body.append(...one.rows.map((cells) => row(cells, "td")));
  element.append(head, body);
  const scroll = made("div", "", { className: "scroll" });
  scroll.append(element);
  return one.caption ? [scroll, made("p", one.caption, { className: "soft" })] : [scroll];
}

function section(one, identity) {
  const parts = [made("h2", one.title), ...one.text.map((text) => made("p", text))];
  for (const picture of one.pictures) {
    const figure = made("figure");
    const scroll = made("div", "", { className: "scroll" });
    const place = `api/reports/${identity}/pictures/${picture.number}`;
    scroll.append(made("img", "", { src: place, alt: picture.caption, loading: "lazy" }));
    figure.append(scroll, made("figcaption", picture.caption));
    parts.push(figure);
  }
  for (const each of one.tables) parts.push(...table(each));
  for (const fold of one.folds) {
    const details = made("details");
    details.append(made("summary", fold.title), made("pre", fold.text));
    parts.push(details);
  }
  return parts;
}

async function openReport() {
  const identity = $("run").value;
  $("report").replaceChildren();
  if (!identity) return;
  $("report").setAttribute("aria-busy", "true");
  const report = await attempt(() => ask(`api/reports/${identity}`));
  $("report").removeAttribute("aria-busy");
  if (report && $("run").value === identity) {
    $("report").replaceChildren(...report.sections.flatMap((one) => section(one, identity)));
  }
}

// ---- start

async function start() {
  const [name, chosen] = part();
  show(name);
  const library = await attempt(() => ask("api/library"));
  if (!library) return;
  $("folder").textContent = library.folder;
  const named = (places) => places.map((one) => [one.id, `${one.title} (${one.kind})`]);
  fill($("run"), named(library.reports), name === "reports" ? chosen : undefined);
  $("none").hidden = library.reports.length > 0;
  $("run").parentElement.hidden = !library.reports.length;
  $("run").addEventListener("change", () => {
    history.replaceState(null, "", `#reports/${$("run").value}`);
    openReport();
  });
  let opened = false;
  const onReports = () => {
    if (part()[0] === "reports" && !opened) {
      opened = true;
      openReport();
    }
  };
  addEventListener("hashchange", onReports);
  onReports();
  const onPose = () => ($("pose").hidden ? undefined : openPose());
  addEventListener("hashchange", onPose);
  onPose();
  await openPictures(named(library.sets), name === "pictures" ? chosen : undefined);
}

start();
