// The page: what stands in its fields is painted as soon as it changes; an answer that is late is thrown away.

import { listenToKeys } from "./keys.js";
import { Mask } from "./mask.js";
import { Strip } from "./strip.js";

const token = new URLSearchParams(location.search).get("token");
const part = (id) => document.getElementById(id);
const HISTORY = 24;
const LARGEST_DRAWING = 1024;
const SIDE_BY_SIDE = [1, 2, 4, 8];
const WORDS_PAUSE = 600; // milliseconds
const STRIP_PAUSE = 700; // milliseconds after which the steps of what stands there are painted too
const SLOW = 1500; // milliseconds from which a picture is worth watching; its steps come with it then
const FINE = 128; // pixels up to which a picture is shown pixel for pixel, as on the documentation site

let model = null; // what the server says of itself
let socket = null;
let seq = 0; // of the newest wish
let sent = 0; // when it was sent
let wait = 250; // milliseconds to the next try to connect
let shown = []; // object URLs of the pictures on the page
let restoring = false;
const mask = new Mask(part("mask"));
const strip = new Strip(part("strip"), enlarge);
let took = Infinity; // milliseconds that the last picture took
let finished = 0; // the request whose pictures are all there
let isExample = false; // what the page painted of itself
let stripping = 0; // the timer of the strip
let isOwnStrength = false; // set by the person; else it is that of the API, for a whole picture or for marks
let hint = ""; // what the person should know of settings that came from a file

const query = token ? `?token=${encodeURIComponent(token)}` : "";

// ---- what is asked ----------------------------------------------------------------------------------------------

function settings() {
  const loras = {};
  for (const slider of document.querySelectorAll("#loras input")) loras[slider.dataset.name] = Number(slider.value);
  return {
    prompt: part("prompt").value,
    seed: Math.max(0, Math.floor(Number(part("seed").value) || 0)),
    steps: Number(part("steps").value),
    guidance_scale: model.guidance ? Number(part("guidance").value) : null,
    size: part("size").value || null,
    loras,
    strength: Number(part("strength").value),
    start: part("use-start").checked ? part("canvas").toDataURL("image/png") : null,
    mask: part("use-start").checked ? mask.toShow() : null,
    compare: part("compare").checked,
    previews: part("previews").checked,
  };
}

function restore(from) {
  restoring = true;
  part("prompt").value = from.prompt ?? "";
  if (from.seed !== undefined) part("seed").value = from.seed;
  const kept = [];
  const put = (field, name, value) => {
    field.value = value;
    if (Math.abs(Number(field.value) - value) > 0.05) kept.push(`${name} ${value} became ${field.value}`);
  };
  if (from.steps !== undefined) put(part("steps"), "steps", from.steps);
  if (from.guidance_scale != null && model.guidance) put(part("guidance"), "guidance", from.guidance_scale);
  if (from.size && model.sizes.includes(from.size)) part("size").value = from.size;
  isOwnStrength = from.strength !== undefined && from.strength !== usualStrength(from.mask);
  if (isOwnStrength) part("strength").value = from.strength;
  for (const slider of document.querySelectorAll("#loras input")) {
    const scale = from.loras?.[slider.dataset.name] ?? model.loras[slider.dataset.name];
    slider.min = Math.min(slider.min, scale);
    slider.max = Math.max(slider.max, scale);
    slider.value = scale;
  }
  if (Number(from.seed) > Number.MAX_SAFE_INTEGER) kept.push("the seed is larger than a page can tell exactly");
  if (kept.length) hint = [hint, ...kept].filter(Boolean).join("; ");
  if (from.compare !== undefined) part("compare").checked = from.compare;
  if (from.previews !== undefined) part("previews").checked = from.previews;
  part("use-start").checked = Boolean(from.start);
  say();
  restoring = false;
  if (from.start) { part("start").open = true; return drawOnCanvas(from.start).then(() => mask.show(from.mask)).then(() => paint()); }
  return paint();
}

function say() {
  const texts = { steps: counted(Number(part("steps").value)), guidance: part("guidance").value, strength: part("strength").value };
  for (const [name, text] of Object.entries(texts)) part(`${name}-said`).value = part(name).ariaValueText = text;
  for (const slider of document.querySelectorAll("#loras input")) slider.nextElementSibling.value = Number(slider.value).toFixed(2);
  part("steps").disabled = part("compare").checked;
}

function paint() {
  if (restoring || !model) return;
  if (!isOwnStrength) followMarks();
  const wish = settings();
  if (!wish.prompt.trim()) {
    seq += 1; // what is still being painted is late
    clearTimeout(stripping);
    part("latency").textContent = "Write a prompt, and it is painted.";
    part("notes").textContent = "";
    sayWords("");
    part("download").hidden = true;
    return;
  }
  if (!socket || socket.readyState !== WebSocket.OPEN) {
    wake();
    return;
  }
  seq += 1;
  part("pictures").dataset.asked = seq;
  sent = performance.now();
  asked = wish;
  send(wish.previews && took > SLOW);
}
let asked = null;

// While one types the picture comes first; its steps follow once typing rests, under the same number.
function send(previews) {
  clearTimeout(stripping);
  const message = {
    seq, previews, prompt: asked.prompt, seed: asked.seed, steps: asked.steps, loras: asked.loras, size: asked.size,
    guidance_scale: asked.guidance_scale, compare: asked.compare ? sideBySide() : [],
  };
  if (asked.start) Object.assign(message, { image: asked.start, strength: asked.strength, mask: mask.toSend() });
  socket.send(JSON.stringify(message));
}

const usualStrength = (marks) => model.strengths[marks ? "masked" : "whole"];

function followMarks() {
  part("strength").value = usualStrength(part("use-start").checked && mask.isMarked);
  say();
}

const counted = (steps) => `${steps} ${steps === 1 ? "step" : "steps"}`;
const sideBySide = () => SIDE_BY_SIDE.filter((steps) => steps <= model.steps);

function typed() {
  hint = "";
  touched();
  if (!part("lock").checked) roll();
  paint();
}

// What is painted from now on is the visitor's own.
function touched() {
  isExample = false;
  part("example").hidden = true;
}

function paintAnother() {
  touched();
  roll();
  paint();
}

function roll() {
  part("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}

let cleared = 0; // the request whose pictures are shown

// ---- what is answered -------------------------------------------------------------------------------------------

function answered(event) {
  if (typeof event.data === "string") {
    const { seq: of, error } = JSON.parse(event.data);
    if (of === seq || of === null) { part("notes").textContent = error.message; part("latency").textContent = ""; }
    return;
  }
  const length = new DataView(event.data).getUint32(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(event.data, 4, length)));
  if (head.seq !== seq) return; // late
  const blob = new Blob([new Uint8Array(event.data, 4 + length)], { type: "image/png" });
  const side = head.of > 1;
  const isNew = finished !== head.seq; // else it is there, and its strip follows
  const url = URL.createObjectURL(blob);
  const said = `${asked.prompt}, seed ${head.seed ?? asked.seed}, ${head.kind === "step" ? `after step ${head.step}` : counted(head.step)}`;
  if (isNew && cleared !== head.seq) { clearPictures(asked.previews && !asked.compare); cleared = head.seq; }
  shown.push(url);
  if (isNew && !side) part("pictures").replaceChildren(); // each step in place of the one before
  if (isNew) part("pictures").append(framed(url, said, side ? counted(head.step) : ""));
  part("pictures").classList.toggle("several", side);
  const image = part("pictures").lastElementChild.querySelector("img");
  if (head.kind === "step" || part("strip").childElementCount && !part("strip").matches(".late")) {
    strip.add(url, head.step, said, head.kind === "picture");
  }
  if (!isNew) return;
  if (head.kind !== "picture") return;
  part("notes").textContent = [...head.notes.filter((note) => note !== head.on_words), hint].filter(Boolean).join("; ");
  sayWords(head.on_words);
  image.decode().catch(() => {}).then(() => requestAnimationFrame(() => {
    if (head.seq !== seq) return;
    part("pictures").dataset.seq = head.seq;
    part("pictures").dataset.milliseconds = Math.round(performance.now() - sent);
  }));
  if (head.index !== (head.of ?? 1) - 1) return;
  finished = head.seq;
  took = performance.now() - sent;
  if (asked.previews && !side && (part("strip").hidden || part("strip").matches(".late"))) {
    stripping = setTimeout(() => { if (finished === seq && socket.readyState === WebSocket.OPEN) send(true); }, STRIP_PAUSE);
  }
  part("latency").textContent = `${Math.round(took)} ms, of which ${head.ms} ms on the server`;
  const link = part("download");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(blob); // its own: steps of the next picture revoke those that are shown
  link.download = `${asked.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "picture"}-seed${head.seed}${side ? `-${head.step}-steps` : ""}.png`;
  link.textContent = side ? `Download the picture of ${counted(head.step)}` : "Download";
  link.hidden = part("change-part").hidden = false;
  part("example").hidden = !isExample;
  if (!isExample) remember(blob, { ...asked, seed: asked.seed });
}

function framed(url, alt, captioned) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= FINE));
  image.alt = alt;
  image.src = url;
  figure.append(image);
  if (captioned) {
    const caption = document.createElement("figcaption");
    caption.textContent = captioned;
    figure.append(caption);
  }
  return figure;
}

// A frame of the strip in place of the picture.
function enlarge(url, alt) {
  part("pictures").replaceChildren(framed(url, alt, ""));
}

// What the model never learnt is named once typing pauses: half a word is no word yet.
let saying = 0;
function sayWords(text) {
  clearTimeout(saying);
  const [named, ...known] = text.split("; ");
  const show = () => { part("words").replaceChildren(...(text ? [inRed(named), ...known.map((each) => `; ${each}`)] : [])); };
  if (text) saying = setTimeout(show, WORDS_PAUSE);
  else show();
}

function inRed(text) {
  const part = document.createElement("span");
  part.className = "bad";
  part.textContent = text;
  return part;
}

// Pictures of the strip stay until those that follow are there.
function clearPictures(keepsStrip) {
  part("pictures").replaceChildren();
  if (keepsStrip) strip.fade();
  else strip.clear();
  const used = new Set([...part("strip").querySelectorAll("img")].map((image) => image.src));
  for (const url of shown) if (!used.has(url)) URL.revokeObjectURL(url);
  shown = shown.filter((url) => used.has(url));
}

// One entry for each pause in typing, not for each letter.
let latest = null;
let remembering = 0;
function remember(blob, wish) {
  latest = { blob, wish };
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const key = JSON.stringify(latest.wish);
    const list = part("history");
    const held = [...list.children].find((each) => each.dataset.key === key);
    if (held) {
      const focused = held.contains(document.activeElement);
      list.prepend(held);
      if (focused) held.querySelector("button").focus();
      return;
    }
    const item = document.createElement("li");
    const button = document.createElement("button");
    const image = document.createElement("img");
    const url = URL.createObjectURL(latest.blob);
    const kept = latest.wish;
    item.dataset.key = key;
    button.type = "button";
    button.title = image.alt = `${kept.prompt}, seed ${kept.seed}, ${kept.compare ? `${sideBySide().join(", ")} steps` : counted(kept.steps)}`;
    image.src = url;
    button.append(image);
    button.addEventListener("click", () => restore(kept));
    item.append(button);
    list.prepend(item);
    while (list.children.length > HISTORY) {
      URL.revokeObjectURL(list.lastElementChild.querySelector("img").src);
      list.lastElementChild.remove();
    }
  }, 600);
}

// ---- the connection ---------------------------------------------------------------------------------------------

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/ws${query}`);
  socket.binaryType = "arraybuffer";
  socket.addEventListener("open", async () => {
    wait = 250;
    try { await describe(); } catch { socket.close(); return; }
    state("ready", false);
    paint();
  });
  socket.addEventListener("message", answered);
  socket.addEventListener("close", (event) => {
    if (event.code === 4001) { // another page was opened, and this one rested longest; at once they would take turns
      rests = true;
      state("this page rests; it goes on when it is used", false);
      return;
    }
    const why = event.reason ? ` (${event.reason})` : "";
    state(`the server does not answer${why}; trying again …`, true);
    setTimeout(connect, wait);
    wait = Math.min(4000, wait * 2);
  });
}

let rests = false;

function wake() {
  if (!rests) return;
  rests = false;
  connect();
}
window.addEventListener("focus", wake);

function state(text, bad) {
  part("state").textContent = text;
  part("state").classList.toggle("bad", bad);
}

async function describe() {
  const answer = await fetch(`api/model${query}`);
  if (!answer.ok) throw new Error(answer.statusText);
  const before = model && JSON.stringify(model);
  model = await answer.json();
  if (before === JSON.stringify(model)) return;
  part("facts").replaceChildren(...facts().map(([name, text]) => {
    const group = document.createElement("div");
    const [term, description] = ["dt", "dd"].map((tag) => document.createElement(tag));
    term.textContent = name;
    description.textContent = text;
    group.append(term, description);
    return group;
  }));
  part("steps").max = model.steps;
  part("steps").value = model.default_steps;
  part("prompt").maxLength = model.prompt_letters;
  part("prompt").placeholder = model.examples[0];
  part("guidance-row").hidden = !model.guidance;
  if (model.guidance) {
    Object.assign(part("guidance"), { min: model.guidance.low, max: model.guidance.high });
    part("guidance").value = model.guidance.default;
    part("guidance-range").textContent = `1 is none, more follows the prompt more strictly; this model was made for ${model.guidance.low} to ${model.guidance.high}, best at ${model.guidance.default}`;
  }
  part("strength-how").textContent = `how much changes: ${model.strengths.whole} of a whole picture and ${model.strengths.masked} of what is marked, until you move it`;
  part("size").replaceChildren(...model.sizes.map((size) => new Option(size.replace("x", " × "), size)));
  part("size-row").hidden = model.sizes.length < 2;
  resizeDrawing(Math.min(LARGEST_DRAWING, Math.max(256, ...model.sizes[0].split("x").map(Number))));
  part("loras").replaceChildren(...Object.entries(model.loras).map(([name, scale], i) => slider(name, scale, i)));
  part("chips").replaceChildren(...Object.entries(model.chips).map(([name, words]) => chips(name, words)));
  part("vocabulary").hidden = !Object.keys(model.chips).length;
  part("vocabulary").open = matchMedia("(min-width: 60rem)").matches; // on a phone they would push the picture away
  part("examples").replaceChildren(...model.examples.map(exampleButton));
  say();
  beginWithExample();
}

function facts() {
  const { name, sizes, precision, device, default_steps: steps, guidance } = model;
  return [
    ["model", name], ["size", sizes[0].replace("x", " × ")], ["precision", `${precision} on ${device}`], ["made for", counted(steps)],
    ...(guidance ? [["guidance", `${guidance.low} to ${guidance.high}`]] : []),
  ];
}

// Who comes sees what the model paints, before a word is typed; the prompt is marked, to be typed over.
function beginWithExample() {
  if (seq || part("prompt").value) return;
  isExample = true;
  part("prompt").value = model.examples[0];
  part("example").textContent = `An example that ${model.name} has just painted. Type, and it paints yours.`;
  if (document.activeElement === part("prompt")) part("prompt").select();
}

function exampleButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => { part("prompt").value = text; typed(); });
  return button;
}

function slider(name, scale, i) {
  const row = document.createElement("div");
  row.className = "row";
  const label = document.createElement("label");
  label.htmlFor = `lora-${i}`;
  label.textContent = name;
  const input = document.createElement("input");
  Object.assign(input, { type: "range", id: `lora-${i}`, min: Math.min(0, scale), max: Math.max(1.5, scale), step: "any" });
  input.value = scale;
  input.dataset.name = name;
  const said = document.createElement("output");
  said.htmlFor = input.id;
  row.append(label, input, said);
  return row;
}

function chips(name, words) {
  const group = document.createElement("div");
  group.className = "chips";
  group.role = "group";
  group.ariaLabel = name;
  group.append(...words.map((word) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.addEventListener("click", () => insert(word));
    return button;
  }));
  return group;
}

function insert(word) {
  const field = part("prompt");
  const [start, end] = [field.selectionStart, field.selectionEnd];
  const before = field.value.slice(0, start).trimEnd();
  const after = field.value.slice(end).trimStart();
  field.value = [before, word, after].filter(Boolean).join(" ");
  const caret = (before ? before.length + 1 : 0) + word.length;
  field.focus();
  field.setSelectionRange(caret, caret);
  typed();
}

// ---- a picture to start from ------------------------------------------------------------------------------------

function drawing() {
  const canvas = part("canvas");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  };
  let last = null;
  const to = (point) => {
    const width = (Number(part("brush").value) * canvas.width) / 256;
    if (part("draw-mask").checked) mask.stroke(last ?? point, point, width);
    else draw(last ?? point, point, width);
    last = point;
    part("use-start").checked = true;
  };
  const draw = (from, point, width) => {
    pen.lineCap = pen.lineJoin = "round";
    pen.strokeStyle = part("colour").value;
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(...point);
    pen.stroke();
  };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); keep(); to(at(event)); });
  canvas.addEventListener("pointermove", (event) => { if (last) to(at(event)); });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { if (last) { last = null; paint(); } });
  // With the arrow keys a pen moves from the middle; with shift it moves without drawing.
  let place = [0.5, 0.5]; // in parts of the canvas
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const inPixels = () => [place[0] * canvas.width, place[1] * canvas.height];
  canvas.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); undo(); }
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    last = inPixels();
    place = place.map((value, i) => Math.max(0, Math.min(1, value + move[i] / 32)));
    if (!event.shiftKey) { if (!event.repeat) keep(); to(inPixels()); paint(); }
    last = null;
    part("pencil").style.left = `${100 * place[0]}%`;
    part("pencil").style.top = `${100 * place[1]}%`;
  });
  clearCanvas();
}

// What the drawing and its marks were before the last changes, to go back to.
const UNDONE = 12;
const past = [];

function keep() {
  const [drawn, marks] = ["canvas", "mask"].map((name) => {
    const canvas = part(name);
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  });
  past.push({ drawn, marks, isMarked: mask.isMarked, isUsed: part("use-start").checked });
  if (past.length > UNDONE) past.shift();
  part("undo").disabled = false;
}

function undo() {
  const before = past.pop();
  if (!before) return;
  part("canvas").getContext("2d").putImageData(before.drawn, 0, 0);
  mask.bring(before.marks, before.isMarked);
  part("use-start").checked = before.isUsed;
  part("undo").disabled = !past.length;
  if (!past.length && document.activeElement === document.body) part("canvas").focus();
  paint();
}

// A rectangle by numbers, for who has no pointer.
function markRectangle() {
  const [left, top, width, height] = ["left", "top", "width", "height"].map((name) => (Number(part(`mark-${name}`).value) || 0) / 100);
  keep();
  mask.fill(left, top, width, height);
  part("use-start").checked = true;
  paint();
}

// As fine as the model paints: what stays of the picture is as sharp as before.
function resizeDrawing(side) {
  const canvas = part("canvas");
  if (canvas.width === side) return;
  canvas.width = canvas.height = side;
  mask.resize(side);
  past.length = 0;
  part("undo").disabled = true;
  clearCanvas();
}

function clearCanvas() {
  const pen = part("canvas").getContext("2d");
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, part("canvas").width, part("canvas").height);
}

async function drawOnCanvas(source) {
  mask.clear();
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = part("canvas");
  const scale = Math.max(canvas.width / image.width, canvas.height / image.height);
  const [width, height] = [image.width * scale, image.height * scale];
  clearCanvas();
  canvas.getContext("2d").drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
}

// The picture that is shown, to be painted on.
async function takeShown() {
  const image = document.querySelector("#pictures figure:last-child img");
  if (!image) return;
  touched();
  keep();
  await drawOnCanvas(image.src);
  part("use-start").checked = true;
  paint();
}

// The same, and what is drawn marks what shall change.
async function changePart() {
  part("start").open = part("draw-mask").checked = true;
  await takeShown();
  part("canvas").focus();
  part("start").scrollIntoView({ block: "nearest" });
}

// ---- settings out of a PNG --------------------------------------------------------------------------------------

function dropping() {
  const over = (on) => document.body.classList.toggle("dropping", on);
  document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    take(event.dataTransfer.files[0], part("start").contains(event.target));
  });
  part("start-file").addEventListener("change", (event) => take(event.target.files[0], true));
  part("settings-file").addEventListener("change", (event) => take(event.target.files[0], false));
}

// A picture to start from, or one whose settings are wanted back.
async function take(file, toStart) {
  if (!file || !model) return;
  const text = toStart ? null : await parametersOf(file);
  const found = text && read(text);
  if (found) {
    hint = found.strength === undefined ? "" : "that picture began from another, which is not in the file";
    restore(found);
    return;
  }
  const url = URL.createObjectURL(file);
  try {
    await drawOnCanvas(url);
    part("start").open = part("use-start").checked = true;
    if (!toStart) hint = `there are no settings in ${file.name}, so it is the picture to start from now`;
    paint();
  } catch {
    part("notes").textContent = `${file.name} is not a picture that this browser reads`;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function parametersOf(file) {
  if (file.size > 64 * 2 ** 20) return null;
  const bytes = new DataView(await file.arrayBuffer());
  if (bytes.byteLength < 8 || bytes.getUint32(0) !== 0x89504e47) return null;
  const slice = (from, to) => new Uint8Array(bytes.buffer, from, Math.max(0, to - from));
  for (let at = 8; at + 12 <= bytes.byteLength; ) {
    const length = bytes.getUint32(at);
    const end = at + 8 + length;
    if (end > bytes.byteLength) return null;
    const kind = new TextDecoder("latin1").decode(slice(at + 4, at + 8));
    const content = slice(at + 8, end);
    const zero = content.indexOf(0);
    if ((kind === "tEXt" || kind === "iTXt") && new TextDecoder("latin1").decode(content.slice(0, zero)) === "parameters") {
      if (kind === "tEXt") return new TextDecoder("latin1").decode(content.slice(zero + 1));
      if (content[zero + 1] === 0) { // not compressed; then language, keyword in it, text
        let from = zero + 3;
        for (let i = 0; i < 2; i += 1) from = content.indexOf(0, from) + 1;
        return new TextDecoder().decode(content.slice(from));
      }
    }
    at = end + 4;
  }
  return null;
}

function unquoted(text) {
  try { return JSON.parse(text); } catch { return text.slice(1, -1); }
}

function read(text) {
  const lines = text.split("\n");
  const last = lines.pop();
  if (last.length > 2 ** 16 || !/(^|, )Steps: \d+/.test(last)) return null; // another program's
  const starts = (line) => line !== undefined && line.startsWith("Negative prompt: ");
  let own = lines.findLastIndex(starts);
  if (own < 0) own = lines.length;
  const found = { loras: {}, compare: false, start: null };
  for (const [, name, value] of last.matchAll(/(?<![\w \-/])[ \-/]*(\w[\w \-/]*): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)/g)) {
    const plain = value.startsWith('"') ? unquoted(value) : value.trim();
    if (name === "Steps") found.steps = Number(plain);
    if (name === "Seed") found.seed = Number(plain);
    if (name === "CFG scale") found.guidance_scale = Number(plain);
    if (name === "Size") found.size = plain;
    if (name === "Denoising strength") found.strength = Number(plain);
    // Where a prompt has a line that looks as if it began the negative one.
    if (name === "Prompt lines" && (Number(plain) === lines.length || starts(lines[Number(plain)]))) own = Number(plain);
    if (name.startsWith("Lora ")) found.loras[plain.slice(0, plain.lastIndexOf(":"))] = Number(plain.slice(plain.lastIndexOf(":") + 1));
  }
  found.prompt = lines.slice(0, own).join("\n");
  for (const name of Object.keys(model.loras)) found.loras[name] ??= 0;
  return found;
}

// ---- to begin ---------------------------------------------------------------------------------------------------

for (const id of ["prompt"]) part(id).addEventListener("input", typed);
part("strength").addEventListener("input", () => { isOwnStrength = true; });
for (const id of ["seed", "steps", "guidance", "strength", "loras"]) part(id).addEventListener("input", () => { touched(); say(); paint(); });
for (const id of ["size", "previews", "compare", "use-start"]) part(id).addEventListener("change", () => { touched(); say(); paint(); });
part("seed").addEventListener("change", () => {
  const asked = part("seed").value;
  part("seed").value = settings().seed;
  if (Number(asked) !== settings().seed) part("notes").textContent = `a seed is a whole number, 0 or more; ${settings().seed} is taken`;
});
part("roll").addEventListener("click", paintAnother);
part("clear").addEventListener("click", () => { keep(); clearCanvas(); paint(); });
part("clear-mask").addEventListener("click", () => { keep(); mask.clear(); paint(); });
part("undo").addEventListener("click", undo);
part("mark").addEventListener("click", markRectangle);
part("take-shown").addEventListener("click", takeShown);
part("change-part").addEventListener("click", changePart);
listenToKeys({ paint: typed, paintAnother });
part("seed").value = 0;
say();
drawing();
dropping();
connect();
