// Posing one person: a photo in, 18 joints to drag or a canonical pose, the picture out while one drags.
import { $, ask, attempt, fill, made, send } from "./page.js";

const LIMBS = [
  [1, 0], [1, 2], [2, 3], [3, 4], [1, 5], [5, 6], [6, 7], [1, 8], [8, 9], [9, 10], [1, 11], [11, 12], [12, 13],
  [0, 14], [14, 16], [0, 15], [15, 17],
];
const RIGHT = [2, 3, 4, 8, 9, 10, 14, 16];
const LARGEST = 20_000_000; // bytes of a photo, as the server takes

let studio = null;
let people = new Map(); // number -> what the server says of somebody
let who = null;
let target = []; // the new pose: 18 of [x, y] or null
let own = []; // the joints on the photo, as corrected
let corrected = false;
let chosen = -1; // joint
let picture = null; // the last one, as a file

const pose = () => ($("edit-own").checked ? own : target);
const copy = (joints) => joints.map((joint) => joint && [...joint]);
const label = (joint) => studio.joints[joint].replace("-", " ");

function svg(tag, values) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  return element;
}

// ---- the picture: one question at a time, and always the newest pose

let busy = false;
let again = false;

async function draw() {
  if (!who) return;
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  do {
    again = false;
    const began = performance.now();
    const body = { joints: target, background: $("background").value, own: corrected ? own : null };
    const number = who;
    const blob = await attempt(() => send(`api/people/${number}/picture`, body));
    if (!blob) {
      $("how").textContent = "";
      break;
    }
    const image = await createImageBitmap(blob);
    const canvas = $("result");
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").drawImage(image, 0, 0);
    picture = blob;
    $("save").disabled = false;
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn ?? 0) + 1);
    $("how").textContent = `made in ${Math.round(performance.now() - began)} ms`;
  } while (again);
  busy = false;
}

// ---- the skeleton

function skeleton() {
  const joints = pose();
  const lines = LIMBS.filter(([a, b]) => joints[a] && joints[b]).flatMap(([a, b]) => {
    const ends = { x1: joints[a][0], y1: joints[a][1], x2: joints[b][0], y2: joints[b][1] };
    return [svg("line", { ...ends, class: "under" }), svg("line", ends)];
  });
  const focused = document.activeElement?.dataset?.joint;
  const dots = joints.map((at, joint) => at && dot(joint, at)).filter(Boolean);
  $("skeleton").replaceChildren(...lines, ...dots);
  if (focused !== undefined) $("skeleton").querySelector(`[data-joint="${focused}"]`)?.focus();
  $("editor").classList.toggle("target", $("edit-target").checked);
  $("labels").hidden = !$("withlabels").checked;
  const lost = joints.map((at, joint) => (at ? null : joint)).filter((joint) => joint !== null);
  $("missing").replaceChildren(...(lost.length ? [made("span", "Add:", { className: "soft" })] : []), ...lost.map((joint) => {
    const button = made("button", label(joint));
    button.addEventListener("click", () => {
      joints[joint] = [studio.size[0] / 2, studio.size[1] / 8];
      moved(joint);
      $("skeleton").querySelector(`[data-joint="${joint}"]`).focus();
    });
    return button;
  }));
}

function dot(joint, [x, y]) {
  const group = svg("g", { tabindex: 0, role: "button", "data-joint": joint, class: joint === chosen ? "chosen" : "" });
  group.setAttribute("aria-label", `${label(joint)}, ${Math.round(x)} across, ${Math.round(y)} down`);
  const color = RIGHT.includes(joint) ? "#e4572e" : joint < 2 ? "#0b6e4f" : "#2274a5";
  const catcher = svg("circle", { cx: x, cy: y, r: 3.4, class: "catch" });
  group.append(catcher, svg("circle", { cx: x, cy: y, r: joint > 13 ? 1 : 1.5, fill: color, class: "dot" }));
  return group;
}

function moved(joint) {
  chosen = joint;
  if ($("edit-own").checked) corrected = true;
  const at = pose()[joint];
  $("joint").textContent = at ? `${label(joint)}: ${at[0].toFixed(1)} across, ${at[1].toFixed(1)} down` : `${label(joint)}: removed`;
  skeleton();
  draw();
}

function place(event) {
  const box = $("skeleton").getBoundingClientRect();
  const [width, height] = studio.size;
  const clip = (value, most) => Math.min(Math.max(value, -0.5), most - 0.5);
  const x = clip(((event.clientX - box.left) / box.width) * width - 0.5, width);
  const y = clip(((event.clientY - box.top) / box.height) * height - 0.5, height);
  return [Math.round(x * 10) / 10, Math.round(y * 10) / 10];
}

function nearest(event) {
  const [x, y] = place(event);
  const far = pose().map((at) => (at ? Math.hypot(at[0] - x, at[1] - y) : Infinity));
  const best = far.indexOf(Math.min(...far));
  return far[best] < 7 ? best : -1;
}

let held = -1;

function onDown(event) {
  held = event.button === 0 ? nearest(event) : -1;
  if (held < 0) return;
  event.preventDefault();
  $("skeleton").setPointerCapture(event.pointerId);
  pose()[held] = place(event);
  moved(held);
  $("skeleton").querySelector(`[data-joint="${held}"]`)?.focus({ preventScroll: true });
}

function onMove(event) {
  if (held < 0) return;
  pose()[held] = place(event);
  moved(held);
}

function onKey(event) {
  const joint = Number(event.target.dataset?.joint ?? -1);
  if (joint < 0) return;
  const by = event.shiftKey ? 5 : 1;
  const step = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] }[event.key];
  const joints = pose();
  if (step) {
    const limit = (value, most) => Math.min(Math.max(value, -0.5), most - 0.5);
    joints[joint] = joints[joint].map((value, axis) => limit(value + step[axis], studio.size[axis]));
  } else if (event.key === "Delete" || event.key === "Backspace") {
    joints[joint] = null;
  } else {
    return;
  }
  event.preventDefault();
  moved(joint);
}

// ---- who

function listed() {
  const items = [...people.values()].map((one) => {
    const item = made("li", "", { tabIndex: one.number === who ? 0 : -1 });
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", String(one.number === who));
    item.setAttribute("aria-label", one.name);
    item.append(made("img", "", { src: `api/people/${one.number}/image`, alt: "", draggable: false }));
    item.addEventListener("click", () => take(one.number));
    item.addEventListener("keydown", (event) => {
      const all = [...people.keys()];
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = all[all.indexOf(one.number) + (step ?? 0)];
      if (step && next !== undefined) {
        event.preventDefault();
        take(next);
        $("people").querySelector("[aria-selected=true]").focus();
      }
    });
    return item;
  });
  $("people").replaceChildren(...items);
}

function take(number) {
  const one = people.get(number);
  if (!one) return;
  who = number;
  [target, own, corrected, chosen] = [copy(one.joints), copy(one.joints), false, -1];
  if (!target.some(Boolean)) [target, own] = [copy(one.poses.front), copy(one.poses.front)];
  if (!one.joints.some(Boolean)) corrected = true;
  $("who").src = `api/people/${number}/image`;
  $("who").alt = one.name;
  $("labels").src = `api/people/${number}/map`;
  const notes = one.notes.length ? `${one.notes.join("; ")}.` : "Drag a joint, or choose it and use the arrow keys.";
  $("joint").textContent = notes;
  sessionStorage.setItem("who", String(number));
  listed();
  skeleton();
  draw();
}

async function upload(file) {
  if (!file) return;
  const old = $("photos").textContent;
  $("photos").textContent = `reading ${file.name} ... (the first photo opens the networks, which may have to be fetched)`;
  const added = await attempt(async () => {
    if (file.size > LARGEST) throw new Error(`${file.name}: larger than ${LARGEST / 1e6} MB: make it smaller`);
    return ask("api/people", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
  });
  $("photos").textContent = old;
  $("photo").value = "";
  if (!added) return;
  for (const one of added) people.set(one.number, one);
  take(added[0].number);
}

export async function poseChosen(identity, row) {
  await openPose();
  const one = await attempt(() => send("api/people/chosen", { identity, row }));
  if (!one || !studio) return;
  people.set(one.number, one);
  take(one.number);
  location.hash = "pose";
}

function buttons() {
  const named = (text, make) => {
    const button = made("button", text);
    button.addEventListener("click", () => {
      target = make();
      $("edit-target").checked = true;
      chosen = -1;
      skeleton();
      draw();
    });
    return button;
  };
  const swap = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16];
  const mirrored = () => swap.map((joint) => target[joint] && [studio.size[0] - 1 - target[joint][0], target[joint][1]]);
  $("poses").replaceChildren(
    named("as in the photo", () => copy(own)),
    ...studio.canonical.map((name) => named(name, () => copy(people.get(who).poses[name]))),
    named("mirrored", mirrored),
  );
}

for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  addEventListener(name, (event) => {
    event.preventDefault(); // a dropped file is never opened in place of the page
    $("zone").classList.toggle("over", over);
    if (name === "drop" && studio?.photos) upload(event.dataTransfer.files[0]);
  });
}
let opening = null;

/** Asks for the people once: the server loads its networks then, and not before. */
export function openPose() {
  opening ??= open().finally(() => {
    if (!studio) opening = null;
  });
  return opening;
}

async function open() {
  $("photos").textContent = "The networks are being opened ...";
  studio = await attempt(() => ask("api/studio"));
  if (!studio) return;
  people = new Map(studio.people.map((one) => [one.number, one]));
  $("skeleton").setAttribute("viewBox", `-0.5 -0.5 ${studio.size[0]} ${studio.size[1]}`);
  $("photos").textContent = studio.photos ? "or drop it here; it stays on this machine" : "Photos are not taken here.";
  $("photo").disabled = !studio.photos;
  $("provenance").textContent = `${studio.generator}${studio.provenance ? `: ${studio.provenance}` : ""}`;
  fill($("background"), studio.backgrounds.map((name) => [name, name === "source" ? "the photo's" : "as generated"]), "source");
  $("background").addEventListener("change", draw);
  for (const id of ["edit-target", "edit-own", "withlabels"]) $(id).addEventListener("change", skeleton);
  $("skeleton").addEventListener("pointerdown", onDown);
  $("skeleton").addEventListener("pointermove", onMove);
  for (const name of ["pointerup", "pointercancel"]) $("skeleton").addEventListener(name, () => { held = -1; });
  $("skeleton").addEventListener("keydown", onKey);
  $("photo").addEventListener("change", () => upload($("photo").files[0]));
  $("save").addEventListener("click", () => {
    const link = made("a", "", { href: URL.createObjectURL(picture), download: "posed.png" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  buttons();
  const last = Number(sessionStorage.getItem("who"));
  take(people.has(last) ? last : (people.keys().next().value ?? null));
}
