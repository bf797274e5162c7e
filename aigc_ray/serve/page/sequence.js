// Sequences of DNA: typed or from a file and recognised; generated as they are wished for, and shown
// letter by letter.
"use strict";

const TENS = 10; // letters that stand together
let reading = 0; // number of the latest question: an older answer is not shown

const lengthOf = (model) => model.schema.find((field) => field.name === "sequence").shape[0];

function askSequences(model) {
  at("sequence-length").textContent = `This model reads sequences of ${lengthOf(model)} letters.`;
  for (const id of ["motifs", "forbidden", "gc-from", "gc-to", "fixed", "sequence"]) at(id).value = "";
}

// --- recognised ---------------------------------------------------------------------------------

// What is typed as items: plain letters, or records of FASTA.
function typed(text) {
  if (!text.trim().startsWith(">")) return [{ sequence: text }];
  return text.trim().slice(1).split(/\n\s*>/).map((record) => {
    const [head, ...lines] = record.split("\n");
    return { name: head.trim().split(/\s+/)[0], sequence: lines.join("") };
  });
}

// `request` makes what is sent. Only a single answer is explained, and how many there will be is
// known once the service has read the file.
async function readSequences(request) {
  const number = ++reading, place = at("sequence-told");
  place.replaceChildren(element("p", "Reading …"));
  try {
    const path = `/v1/${task().task}/predict`;
    let answer = await call(path, request(false));
    if (answer.items.length === 1 && at("bases").checked) answer = await call(path, request(true));
    if (number !== reading) return;
    if (answer.items.length === 1) place.replaceChildren(...told(answer.items[0], answer.model));
    else place.replaceChildren(...toldTogether(answer.items, answer.model));
  } catch (error) {
    if (number === reading) complain(place, error);
  }
}

at("sequence-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const items = typed(at("sequence").value);
  readSequences((explain) => posted({ items, explain }));
});

function readSequenceFile(file) {
  readSequences((explain) => {
    const form = new FormData();
    form.append("file", file, file.name);
    form.append("explain", String(explain));
    return { method: "POST", body: form };
  });
}

function told(item, model) {
  const parts = item.name ? [element("p", item.name, { class: "hint" })] : [];
  const { explanation } = item, more = [];
  if (explanation) {
    more.push(explained(explanation, "Logo", (of) => `The taller a letter, the more it speaks for ${of}; letters ` +
      "that hang down speak against it: how the score changes, on average, with another letter in its place."));
  }
  if (explanation?.bases) {
    const order = explanation.bases.map((share, place) => [share, place + 1]).filter(([share]) => share > 0);
    const most = order.sort((a, b) => b[0] - a[0]).slice(0, 5).map(([, place]) => place);
    if (most.length) more.push(element("p", `Most speaks for ${explanation.of} at letters ${most.join(", ")}.`));
  }
  return [...parts, ...answered(item, model, ...more)];
}

function toldTogether(items, model) {
  const rows = items.map((item, number) => ({
    name: item.name || `${number + 1}`,
    label: item.abstained ? "no answer" : item.label,
    probability: percent(Math.max(...Object.values(item.probabilities))),
    remark: [item.abstained ? item.reason : "", ...(item.warnings ?? [])].filter(Boolean).join("; "),
  }));
  if (rows.every((row) => !row.remark)) rows.forEach((row) => delete row.remark);
  const table = csv(items.map((item, number) => ({
    name: item.name || number + 1, label: item.label, reason: item.reason, ...item.probabilities,
  })));
  const more = items.length > SHOWN ? [element("p", `The first ${SHOWN} of ${items.length}.`, { class: "hint" })] : [];
  return [tabled(rows), ...more, saved(table, "answers.csv", "text/csv", `All ${items.length} as a CSV file`),
    element("p", `Answered by ${version(model)}`, { class: "model" })];
}

// --- wished for ---------------------------------------------------------------------------------

const listed = (id) => at(id).value.split(",").map((part) => part.trim()).filter(Boolean);

function motif(text) {
  const [letters, place, ...rest] = text.split("@").map((part) => part.trim());
  if (place === undefined) return letters;
  const last = lengthOf(task()) - letters.length + 1;
  if (rest.length || !/^\d+$/.test(place) || place < 1 || place > last) {
    throw new Error(`${letters} begins at a letter from 1 to ${last}, such as ${letters}@1; got ${text}`);
  }
  return { motif: letters, position: Number(place) - 1 }; // the service counts from 0
}

function sequenceWishes() {
  const wish = {};
  const motifs = listed("motifs").map(motif), forbidden = listed("forbidden");
  const fixed = at("fixed").value.replace(/\s+/g, "");
  const [from, to] = [at("gc-from").value, at("gc-to").value];
  if (motifs.length) wish.motifs = motifs;
  if (forbidden.length) wish.forbidden = forbidden;
  if (fixed) wish.fixed = fixed;
  if (from || to) wish.gc = [Number(from || 0) / 100, Number(to || 100) / 100];
  return wish;
}

// --- generated ------------------------------------------------------------------------------------

// The letters in tens, each run of the same letter one part; what stands for a motif is underlined.
function lettered(item) {
  const marked = new Set();
  for (const { motif: letters, position } of item.motifs) {
    for (let place = 0; place < letters.length; place++) marked.add(position + place);
  }
  const code = element("code", undefined, { class: "sequence" });
  for (let start = 0; start < item.sequence.length; start += TENS) {
    const ten = element("span", undefined, { class: "ten", title: `from ${start + 1}` });
    let last;
    [...item.sequence.slice(start, start + TENS)].forEach((letter, offset) => {
      const look = `base-${letter.toLowerCase()}${marked.has(start + offset) ? " motif" : ""}`;
      if (last?.className === look) last.textContent += letter;
      else ten.append(last = element("span", letter, { class: look }));
    });
    code.append(ten);
  }
  return code;
}

function showSequences(items) {
  if (!items.length) return;
  const shown = items.slice(0, SHOWN).map((item) => {
    const place = element("li");
    const motifs = item.motifs.map((one) => `${one.motif} at ${one.position + 1}`).join(", ");
    const facts = [item.class, `probability ${percent(item.probability)}`, `GC ${percent(item.gc)}`, motifs];
    place.append(element("span", facts.filter(Boolean).join(", ")), lettered(item));
    return place;
  });
  const list = element("ol", undefined, { class: "sequences" });
  list.append(...shown);
  const rows = items.map((item) => ({ ...item,
    motifs: item.motifs.map((one) => `${one.motif}@${one.position + 1}`).join("; ") }));
  const fasta = items.map((item) => `>seed${item.seed}_number${item.number} label=${item.class} gc=${item.gc} ` +
    `probability=${item.probability}\n${item.sequence.match(/.{1,60}/g).join("\n")}\n`).join("");
  const row = element("p", undefined, { class: "row" });
  row.append(saved(fasta, "sequences.fa", "text/plain", `All ${items.length} as FASTA`),
    saved(csv(rows), "sequences.csv", "text/csv", "as CSV"));
  const more = items.length > SHOWN ? [element("p", `The first ${SHOWN} of ${items.length}.`, { class: "hint" })] : [];
  at("rows").replaceChildren(row, list, ...more);
}

kinds.sequences = {
  own: ["sequence-card", "sequence-wishes", "sequence-hint"], most: 1000, ask: askSequences, read: readSequenceFile,
  wish: sequenceWishes, show: showSequences,
};
