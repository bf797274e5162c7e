// Structures of proteins: one looked at, many generated; each with its map of distances and its
// secondary structure beside the backbone of backbone.js.
"use strict";

const FOLDS = { H: "helix", E: "strand", C: "other" };
let examining = 0; // number of the latest question: an older answer is not shown
let examined = null; // the file that was asked about, for another chain of it

// --- looked at ------------------------------------------------------------------------------------

async function examine(file) {
  const number = ++examining, place = at("protein-told"), form = new FormData();
  examined = file;
  form.append("file", file, file.name);
  if (at("chain").value.trim()) form.append("chain", at("chain").value.trim());
  if (at("blocks").checked) form.append("explain", "true");
  place.replaceChildren(element("p", "Looking at it …"));
  try {
    const answer = await call(`/v1/${task().task}/predict`, { method: "POST", body: form });
    if (number === examining) tellWindows(answer.items[0], answer.model, file.name);
  } catch (error) {
    if (number === examining) complain(place, error);
  }
}

at("chain").addEventListener("change", () => examined && examine(examined));

// A long chain is answered in windows: one is shown, and a choice of them all.
function tellWindows(item, model, name) {
  const first = `${item.chain}:${item.residues[0]}-${item.residues.at(-1)}`;
  const others = Object.entries(item).filter(([, value]) => value?.coordinates);
  const windows = new Map([[first, item], ...others]);
  const label = element("label", "Residues "), select = element("select"), shown = element("div");
  select.append(...[...windows.keys()].map((key) => element("option", key)));
  const tell = () => {
    const one = windows.get(select.value);
    const why = one.explanation && explained(one.explanation, "Picture", (of) => `What speaks for ${of}, by ` +
      `${one.explanation.method}: how the score changes where a block of the map is hidden.`);
    shown.replaceChildren(...answered(one, model, ...built(one, `${name}, ${select.value}`), ...(why ? [why] : [])));
  };
  select.addEventListener("change", tell);
  label.append(select);
  at("protein-told").replaceChildren(...(others.length ? [label] : [element("p", `${name}, ${first}`, { class: "hint" })]), shown);
  tell();
}

// --- a structure ------------------------------------------------------------------------------------

function built(item, name) {
  const row = element("div", undefined, { class: "built" });
  row.append(backbone(item, name), distances(item, name));
  return [row, strip(item), measured(item)];
}

function distances(item, name) {
  const label = `Distances between the residues of ${name}: near ones dark`;
  const figure = element("figure", undefined, { class: "map" });
  if (item.map) {
    figure.append(element("img", undefined, { src: `data:image/png;base64,${item.map}`, alt: label }));
  } else {
    const size = item.coordinates.length;
    const canvas = element("canvas", undefined, { width: size, height: size, role: "img", "aria-label": label });
    const image = new ImageData(size, size);
    item.coordinates.forEach((a, row) => item.coordinates.forEach((b, column) => {
      const far = Math.min(1, Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]) / 25); // ångström
      image.data.set([20 + 235 * far, 45 + 205 * far, 90 + 155 * far, 255], 4 * (row * size + column));
    }));
    canvas.getContext("2d").putImageData(image, 0, 0);
    figure.append(canvas);
  }
  figure.append(element("figcaption", "Distances between residues, near ones dark"));
  return figure;
}

// "helix 3 to 12, strand 20 to 25", by the residues' own names.
function stretches(item) {
  const named = (place) => item.residues?.[place] ?? place + 1;
  return [...item.secondary_structure.matchAll(/H+|E+/g)]
    .map((found) => `${FOLDS[found[0][0]]} ${named(found.index)} to ${named(found.index + found[0].length - 1)}`)
    .join(", ") || "neither helix nor strand";
}

function strip(item) {
  const figure = element("figure", undefined, { class: "strip" });
  const cells = element("div", undefined, { role: "img", "aria-label": `Secondary structure: ${stretches(item)}` });
  cells.append(...[...item.secondary_structure].map((fold, place) => {
    const sure = item.secondary_confidence?.[place];
    return element("span", item.sequence?.[place] ?? fold, { class: `fold ${FOLDS[fold]}`, title:
      `${item.residues?.[place] ?? place + 1}: ${FOLDS[fold]}${sure === undefined ? "" : `, ${percent(sure)} sure`}` });
  }));
  const legend = element("figcaption");
  legend.append(...Object.values(FOLDS).map((name) => element("span", name, { class: `fold ${name}` })),
    element("div", stretches(item)));
  figure.append(cells, legend);
  return figure;
}

function measured(item) {
  const list = element("dl", undefined, { class: "facts" });
  const say = (name, value) => list.append(element("dt", name), element("dd", value));
  const share = (value) => value === null ? "none to judge" : percent(value);
  say("plausibility", share(item.plausibility));
  if (item.probability !== undefined) say(`probability of ${item.class}`, percent(item.probability));
  if (item.checks) {
    const { bonds, clashes, right_handed: right, ramachandran_allowed: allowed } = item.checks;
    say("bonds as they should be", share(bonds));
    say("clashes", Number.isInteger(clashes) ? `${clashes}` : share(clashes));
    say("right-handed helices", right === null ? "no helix" : share(+right));
    say("torsions allowed", share(allowed));
  }
  if (item.nearest) say("nearest in training", `${item.nearest.rmsd.toFixed(2)} Å away`);
  return list;
}

// --- generated ------------------------------------------------------------------------------------

const numbered = (item) => `${item.class}, seed ${item.seed}, no. ${item.number}`;

function exhibit(items) {
  if (!items.length) return;
  const shown = element("div"), all = element("p", undefined, { class: "row" });
  const show = (item) => {
    const file = saved(item.pdb, `seed${item.seed}_number${item.number}.pdb`, "chemical/x-pdb", "This one as PDB");
    shown.replaceChildren(element("p", numbered(item), { class: "label" }), ...built(item, numbered(item)), file);
  };
  all.append(saved(models(items), "structures.pdb", "chemical/x-pdb", `All ${items.length} in one PDB file`));
  at("rows").replaceChildren(shown, all);
  at("gallery").replaceChildren(...items.map((item) => {
    const place = element("li"), button = element("button", undefined, { type: "button", class: "pick", "aria-pressed": "false" });
    button.append(element("img", undefined, { src: `data:image/png;base64,${item.map}`, alt: "" }), element("span", numbered(item)));
    button.addEventListener("click", () => {
      for (const other of at("gallery").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      show(item);
    });
    place.append(button);
    return place;
  }));
  at("gallery").querySelector("button").click();
}

// The models of one PDB file, which says first that nothing of it was measured; what else is told of
// a single file as a whole is left out.
function models(items) {
  const every = items.map((item, number) => [`MODEL     ${String(number + 1).padStart(4)}`,
    ...item.pdb.split("\n").filter((line) => /^(ATOM|HETATM|TER)/.test(line)), "ENDMDL\n"].join("\n"));
  return ["EXPDTA    THEORETICAL MODEL".padEnd(80) + "\n", ...every, "END\n"].join("");
}

kinds.structures = {
  own: ["protein-card"], most: 64, ask: () => { examined = null; at("chain").value = ""; }, read: examine, show: exhibit,
};
