// The page: an image, prompts, and their masks as they are typed.

import { cutOut, decodeRle, paint, toImage } from "./masks.js";

const COLOURS = [[255, 64, 112], [0, 150, 255], [255, 176, 0], [0, 190, 120], [170, 90, 255], [255, 110, 30]];
const PAUSE = 120; // milliseconds after the last keystroke

const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });
const token = new URLSearchParams(location.hash.slice(1)).get("token"); // as in /#token=...

let image = null; // { id, file, pixels: ImageData }
let prompts = []; // { row, input, answer, colour, result, mask, request, timer }

function show(message, isError = false) {
  element("status").textContent = message;
  element("status").classList.toggle("error", isError);
}

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const problem = await response.json().catch(() => ({ detail: response.statusText }));
    throw Object.assign(new Error(problem.detail), { status: response.status });
  }
  return response.status === 204 ? null : response.json();
}

async function upload(file) {
  const form = new FormData();
  form.append("image", file, "image");
  return (await call("v1/images", { method: "POST", body: form })).id;
}

async function open(file) {
  if (!file) return;
  show("Reading the image …");
  try {
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
    const id = await upload(file);
    if (image) call(`v1/images/${image.id}`, { method: "DELETE" }).catch(() => {});
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    context.drawImage(bitmap, 0, 0);
    image = { id, file, pixels: context.getImageData(0, 0, bitmap.width, bitmap.height) };
  } catch (error) {
    show(error instanceof DOMException ? "This file is not an image that the browser can show." : error.message, true);
    return;
  }
  canvas.hidden = false;
  element("invitation").hidden = true;
  element("drop").classList.add("full");
  show("");
  prompts.forEach((prompt) => segment(prompt));
  prompts[0].input.focus();
}

async function segment(prompt, again = true) {
  prompt.request?.abort();
  const text = prompt.input.value.trim();
  if (!image || !text) {
    settle(prompt, null, "");
    return;
  }
  const request = (prompt.request = new AbortController());
  const current = image;
  try {
    const { results } = await call(`v1/images/${current.id}/segment`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ prompts: [text], threshold: Number(element("threshold").value) }),
      signal: request.signal,
    });
    settle(prompt, results[0], describe(results[0]));
    show("");
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 404 && again && current === image) { // it expired
      current.id = await upload(current.file);
      return segment(prompt, false);
    }
    settle(prompt, null, "");
    show(error.message, true);
  }
}

function describe(result) {
  const presence = typeof result.presence === "number" ? `presence ${Math.round(100 * result.presence)} % · ` : "";
  const time = Object.values(result.timings).reduce((sum, seconds) => sum + seconds, 0);
  const found = result.empty ? "nothing matches" : `score ${Math.round(100 * result.score)} %`;
  return `${presence}${found} · ${(1000 * time).toFixed(1)} ms`;
}

function settle(prompt, result, text) {
  prompt.result = result;
  prompt.mask = result && !result.empty ? decodeRle(result.mask) : null;
  prompt.answer.textContent = text;
  prompt.row.querySelectorAll(".downloads button").forEach((button) => { button.disabled = !prompt.mask; });
  element("json").disabled = !prompts.some((one) => one.result);
  draw();
}

function draw() {
  if (!image) return;
  const pixels = new ImageData(new Uint8ClampedArray(image.pixels.data), image.pixels.width, image.pixels.height);
  const shown = prompts.filter((prompt) => prompt.mask);
  shown.forEach((prompt) => paint(pixels, prompt.mask, prompt.colour));
  context.putImageData(pixels, 0, 0);
  const names = shown.map((prompt) => prompt.input.value.trim()).join(", ");
  canvas.setAttribute("aria-label", names ? `The image, with masks of: ${names}` : "The image");
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function downloadImage(pixels, name) {
  const sheet = document.createElement("canvas");
  sheet.width = pixels.width;
  sheet.height = pixels.height;
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  sheet.toBlob((blob) => download(blob, name), "image/png");
}

const fileName = (prompt, ending) => `${prompt.input.value.trim().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 48)}${ending}`;

function add(text = "") {
  const row = element("prompt-row").content.firstElementChild.cloneNode(true);
  const used = new Set(prompts.map((prompt) => prompt.colour));
  const colour = COLOURS.find((one) => !used.has(one)) ?? COLOURS[prompts.length % COLOURS.length];
  const prompt = { row, colour, input: row.querySelector("input"), answer: row.querySelector(".answer") };
  row.style.setProperty("--colour", `rgb(${colour})`);
  prompt.input.value = text;
  prompt.input.setAttribute("aria-label", `Prompt ${prompts.length + 1}`);
  prompt.input.addEventListener("input", () => {
    clearTimeout(prompt.timer);
    prompt.timer = setTimeout(() => segment(prompt), PAUSE);
  });
  prompt.input.addEventListener("keydown", (event) => { if (event.key === "Enter") add().input.focus(); });
  row.querySelector(".remove").addEventListener("click", () => {
    prompt.request?.abort();
    clearTimeout(prompt.timer);
    prompts = prompts.filter((one) => one !== prompt);
    row.remove();
    if (!prompts.length) add();
    draw();
  });
  row.querySelector(".mask").addEventListener("click", () =>
    downloadImage(toImage(prompt.mask, canvas.width, canvas.height), fileName(prompt, "-mask.png")));
  row.querySelector(".cutout").addEventListener("click", () =>
    downloadImage(cutOut(image.pixels, prompt.mask), fileName(prompt, "-cut-out.png")));
  element("prompts").append(row);
  prompts.push(prompt);
  return prompt;
}

for (const id of ["file", "camera"]) {
  element(id).addEventListener("change", (event) => {
    open(event.target.files[0]);
    event.target.value = "";
  });
}
const drop = element("drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  open(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) { event.preventDefault(); open(file); }
});
element("add").addEventListener("click", () => add().input.focus());
element("json").addEventListener("click", () => {
  const results = prompts.map((prompt) => prompt.result).filter(Boolean);
  download(new Blob([JSON.stringify({ results }, null, 2)], { type: "application/json" }), "masks.json");
});
element("threshold").addEventListener("input", (event) => {
  element("threshold-value").value = Number(event.target.value).toFixed(2);
  prompts.forEach((prompt) => {
    clearTimeout(prompt.timer);
    prompt.timer = setTimeout(() => segment(prompt), PAUSE);
  });
});

element("where").textContent = location.host;
add();
call("v1/models").then(({ models: [model] }) => {
  element("threshold").value = model.threshold;
  element("threshold-value").value = model.threshold.toFixed(2);
}).catch((error) => show(error.message, true));
