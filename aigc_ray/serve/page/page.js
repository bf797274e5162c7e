// The page: what is served, one image recognised, samples generated; patient.js, molecule.js,
// sequence.js and protein.js have the forms of these. No framework, no outside parts.
"use strict";

const at = (id) => document.getElementById(id);
let served = [];          // what /v1/models says is served
const SHOWN = 20;         // rows of a table and sequences that are shown; the file has them all
let asked = 0;            // number of the latest prediction: an older answer is not shown

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// An answer as JSON, or an Error with the problem document's own words.
async function call(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer. Is it still running?");
  }
  if (response.status === 401) {
    sessionStorage.removeItem("token");
    at("token-form").hidden = false;
    at("token").focus();
    throw new Error(token ? "That is not the token." : "A token is needed.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const detail = body.detail || `The service answered ${response.status}.`;
    throw new Error(detail.replace(/^item 0: /, ""));  // the page sends one
  }
  return body;
}

function complain(place, error) {
  place.replaceChildren(element("p", error.message, { class: "error", role: "alert" }));
}

const version = (model) => `${model.task}, ` +
  (model.version === null ? "unregistered" : `version ${model.version}`) +
  `, ${model.sha256.slice(0, 12)}`;
const posted = (body) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});
const task = () => served.find((one) => one.task === at("task").value);
const NOUNS = { molecules: "molecules", dna: "sequences", proteins: "structures" };
const noun = (model) => NOUNS[model.task] ??
  (model.schema.some((field) => field.kind === "image") ? "images" : "patients");

// By noun: which parts of the page are its own, how many samples it makes at most, how it prepares
// its form (`ask`), reads a file, puts wishes into a request and shows samples.
const kinds = {
  images: {
    own: ["image-card"], most: 64, read: recognise,
    show: (items) => at("gallery").replaceChildren(...items.map(sample)),
  },
};  // the other files add theirs
const kind = () => kinds[noun(task())];

// --- tables and files --------------------------------------------------------------------------

const cell = (value) => value === null || value === undefined ? "" : String(value);

function tabled(items) {
  const names = Object.keys(items[0] ?? {});
  const head = element("tr"), table = element("table"), frame = element("div", undefined, { class: "table" });
  head.append(...names.map((name) => element("th", name)));
  table.append(head, ...items.slice(0, SHOWN).map((item) => {
    const row = element("tr");
    row.append(...names.map((name) => element("td", cell(item[name]))));
    return row;
  }));
  frame.append(table);
  return frame;
}

function csv(items) {
  const names = Object.keys(items[0] ?? {});
  const quoted = (value) => /[",\n]/.test(cell(value)) ? `"${cell(value).replaceAll('"', '""')}"` : cell(value);
  return [names, ...items.map((item) => names.map((name) => item[name]))]
    .map((row) => row.map(quoted).join(",")).join("\n") + "\n";
}

const saved = (text, name, type, label) => element("a", label, {
  href: URL.createObjectURL(new Blob([text], { type })), download: name,
});

// --- what is served ---------------------------------------------------------------------------

async function look() {
  try {
    const found = await call("/v1/models");
    served = found.serving.filter((one) => !one.problem);
    const down = found.serving.filter((one) => one.problem).map((one) => one.problem.detail);
    at("task").replaceChildren(...served.map((one) => element("option", one.task)));
    at("task-choice").hidden = served.length < 2;
    document.querySelector("main").hidden = served.length === 0;
    if (served.length) show();
    if (down.length || !served.length) {
      at("served").textContent = down.join("; ") || "No task is served.";
      setTimeout(look, 5000);
    }
  } catch (error) {
    at("served").textContent = error.message;
    if (at("token-form").hidden) setTimeout(look, 5000);
  }
}

function show() {
  const model = task();
  at("served").textContent = version(model);
  at("synthetic").hidden = !model.synthetic;
  const choices = model.classes.map((name) => element("option", name, { value: name }));
  at("class").replaceChildren(element("option", "each in turn", { value: "" }), ...choices);
  at("class-choice").hidden = choices.length === 0;
  for (const id of ["result", "made", "gallery", "rows", "course", "molecule-facts", "sequence-told", "protein-told"]) {
    at(id).replaceChildren();
  }
  at("gallery").className = "gallery";
  at("preview").hidden = true;
  for (const [name, one] of Object.entries(kinds)) {
    for (const id of one.own) at(id).hidden = name !== noun(model);
  }
  at("generate-title").textContent = `Generate ${noun(model)}`;
  at("n").max = kind().most;
  kind().ask?.(model);
}

at("task").addEventListener("change", show);
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value.trim());
  at("token").value = "";
  at("token-form").hidden = true;
  look();
});

// --- an image is recognised ---------------------------------------------------------------------

async function recognise(file) {
  const number = ++asked;
  preview(file);
  at("result").replaceChildren(element("p", "Looking at it …"));
  const form = new FormData();
  form.append("file", file, file.name || "pasted.png");
  if (at("explain").checked) form.append("explain", "true");
  try {
    const answer = await call(`/v1/${task().task}/predict`, { method: "POST", body: form });
    if (number === asked) tell(answer.items[0], answer.model);
  } catch (error) {
    if (number === asked) complain(at("result"), error);
  }
}

function preview(file) {
  const image = at("preview-image");
  URL.revokeObjectURL(image.src);
  image.onerror = () => { image.hidden = true; };  // a browser cannot show TIFF and DICOM
  image.hidden = false;
  image.alt = `The image that was sent: ${file.name || "pasted"}`;
  image.src = URL.createObjectURL(file);
  at("preview-name").textContent = file.name || "pasted";
  at("preview").hidden = false;
}

function tell(item, model) {
  const heat = item.explanation && explained(item.explanation, "Heat map", (of) => `Orange speaks for ${of}, ` +
    "blue against it: how the score changes where a patch is hidden. It shows what the model looked at, " +
    "not where a lesion is.");
  at("result").replaceChildren(...answered(item, model, ...(heat ? [heat] : [])));
}

// What every task's answer says, with `more` after the bars.
function answered(item, model, ...more) {
  const label = item.abstained ? "No answer" : item.label ?? (item.labels.join(", ") || "none of the labels");
  const bars = element("dl", undefined, { class: "bars" });
  const ordered = Object.entries(item.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [name, probability] of ordered) {
    bars.append(
      element("dt", name),
      element("dd", percent(probability)),
      element("progress", undefined, { value: probability, max: 1, "aria-label": name }),
    );
  }
  const facts = [];
  if (item.abstained) facts.push(`Withheld: ${item.reason}.`);
  if (item.undecided?.length && !item.abstained) facts.push(`Undecided: ${item.undecided.join(", ")}.`);
  for (const [name, finding] of Object.entries(item.findings ?? {})) facts.push(pointed(name, finding));
  if (item.outlier !== undefined && !item.abstained) facts.push(unusual(item.outlier));
  if (item.abstained === undefined) facts.push("This model is not calibrated: its scores are no probabilities.");
  facts.push(...(item.warnings ?? []));
  return [
    element("p", label, { class: item.abstained ? "label withheld" : "label" }),
    ...facts.map((text) => element("p", text)),
    bars,
    ...more,
    element("p", `Answered by ${version(model)}`, { class: "model" }),
  ];
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// An operating point: what the threshold did on the rows that it was chosen on.
function pointed(name, finding) {
  const word = finding.called ? "called" : "not called";
  return `At the operating point ${name} is ${word} (from ${percent(finding.threshold)} on; on held-back ` +
    `images this found ${percent(finding.sensitivity)} of them and spared ${percent(finding.specificity)} of the others).`;
}

const unusual = (outlier) => `Of the ${noun(task())} held back, ${percent(outlier)} look more usual than this one.`;

function explained(explanation, name, caption) {
  if (explanation.withheld) return element("p", `No ${name.toLowerCase()}: ${explanation.withheld}.`);
  const figure = element("figure", undefined, { class: "heat" });
  figure.append(
    element("img", undefined, {
      src: `data:image/png;base64,${explanation.image}`,
      alt: `${name} by ${explanation.method} for ${explanation.of}`,
    }),
    element("figcaption", caption(explanation.of)),
  );
  return figure;
}

for (const input of document.querySelectorAll(".drop input")) {
  input.addEventListener("change", () => {
    if (input.files.length) kind().read(input.files[0]);
    input.value = "";  // so that the same file can be chosen again
  });
}
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();  // else the browser opens the file in place of the page
    for (const place of document.querySelectorAll(".drop")) place.classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => take(event.clipboardData.files));

function take(files) {
  if (files.length && task()) kind().read?.(files[0]);
}

// --- samples are generated -----------------------------------------------------------------------

at("generate").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  at("made").replaceChildren(element("p", "Drawing …"));
  try {
    const request = { n: Number(at("n").value), seed: Number(at("seed").value), ...kind().wish?.() };
    if (at("class").value) request.class = at("class").value;
    const answer = await call(`/v1/${task().task}/generate`, posted(request));
    at("gallery").replaceChildren();
    at("rows").replaceChildren();
    kind().show(answer.items);
    const missing = answer.shortfall.map((one) => `; ${one.missing} missing: ${one.reason}`).join("");
    const made = `${answer.items.length} ${noun(task())} by ${version(answer.model)}${missing}`;
    at("made").replaceChildren(element("p", made, { class: "model" }));
  } catch (error) {
    at("gallery").replaceChildren();
    at("rows").replaceChildren();
    complain(at("made"), error);
  } finally {
    button.disabled = false;
  }
});

function sample(item) {
  const names = [item.class].flat().join(", ") || "no label";
  const figure = element("figure");
  figure.append(
    element("img", undefined, {
      src: `data:image/png;base64,${item.image}`,
      alt: `Generated: ${names}, number ${item.number} of seed ${item.seed}`,
    }),
    element("figcaption", `${names}, seed ${item.seed}, no. ${item.number}`),
  );
  const place = element("li");
  place.append(figure);
  return place;
}

document.addEventListener("DOMContentLoaded", look);  // once the other files are there
