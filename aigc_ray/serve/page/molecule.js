// Molecules: one described, many generated for a profile and shown with their evidence.
"use strict";

const PROFILE = { logp: "logP", qed: "QED", sa: "accessibility (SA)", mw: "weight (g/mol)", tpsa: "polar surface (Å²)",
  hbd: "donors", hba: "acceptors", rings: "rings" };
let describing = 0; // number of the latest question: an older answer is not shown

const activities = (model) => model.schema.filter((field) => field.parts.includes("target"));
const depiction = (svg, smiles) => element("img", undefined, {
  src: `data:image/svg+xml;base64,${btoa(svg)}`, alt: `Structure of ${smiles}`,
});

function askMolecules(model) {
  const names = { ...PROFILE };
  for (const field of activities(model)) names[field.name] = field.name;
  at("targets").replaceChildren(...Object.entries(names).map(([name, label]) => {
    const made = element("label", label);
    made.append(element("input", undefined, { type: "text", "data-target": name, autocomplete: "off", inputmode: "decimal" }));
    return made;
  }));
  at("optimise").replaceChildren(element("option", "nothing", { value: "" }),
    ...Object.entries(names).flatMap(([name, label]) => [
      element("option", `${label}, up`, { value: name }), element("option", `${label}, down`, { value: `-${name}` }),
    ]));
  at("atoms").parentElement.hidden = activities(model).length === 0;
}

function wished() {
  const wish = { svg: true, molblock: true, filters: [], targets: {} };
  for (const box of document.querySelectorAll(".filter:checked")) wish.filters.push(box.value);
  for (const input of at("targets").querySelectorAll("input")) {
    if (input.value.trim()) wish.targets[input.dataset.target] = input.value.trim();
  }
  const text = (id) => at(id).value.trim();
  if (text("scaffold")) wish.scaffold = text("scaffold");
  if (text("fragments")) wish.fragments = text("fragments").split(",").map((part) => part.trim());
  if (text("must-have")) wish.must_have = [text("must-have")];
  if (text("must-not-have")) wish.must_not_have = [text("must-not-have")];
  if (text("similar")) wish.similar_to = text("similar");
  if (text("optimise")) wish.optimise = text("optimise");
  if (at("diverse").checked) wish.diverse = true;
  return wish;
}

// --- one molecule -------------------------------------------------------------------------------

at("molecule").addEventListener("submit", async (event) => {
  event.preventDefault();
  const number = ++describing;
  at("molecule-facts").replaceChildren(element("p", "Looking at it …"));
  try {
    const answer = await call(`/v1/${task().task}/predict`,
      posted({ items: [{ smiles: at("smiles").value, svg: true }], explain: at("atoms").checked }));
    if (number === describing) describe(answer.items[0], answer.model);
  } catch (error) {
    if (number === describing) complain(at("molecule-facts"), error);
  }
});

function describe(item, model) {
  const figure = element("figure", undefined, { class: "structure" });
  figure.append(depiction(item.svg, item.smiles), element("figcaption", item.smiles));
  const parts = [figure, ...(item.warnings ?? []).map((text) => element("p", `Beware: ${text}.`)), facts(item)];
  if (item.explanation?.withheld) parts.push(element("p", `No account of it: ${item.explanation.withheld}.`));
  if (item.explanation?.svg) {
    const marked = element("figure", undefined, { class: "structure" });
    marked.append(depiction(item.explanation.svg, item.smiles), element("figcaption",
      `Blue atoms raise ${item.explanation.of}, red ones lower it: associations, not causes.`));
    parts.push(marked);
  }
  parts.push(element("p", `Answered by ${version(model)}`, { class: "model" }));
  at("molecule-facts").replaceChildren(...parts);
}

const plainly = (value) => Number(value.toPrecision(3)).toString();

function facts(item) {
  const list = element("dl", undefined, { class: "facts" });
  const say = (name, value) => list.append(element("dt", name), element("dd", value));
  for (const [name, said] of Object.entries(item.activities ?? {})) {
    const range = said.low === undefined ? "" : `, nine times of ten within ${plainly(said.low)} to ${plainly(said.high)}`;
    say(name, `${plainly(said.value)} ± ${plainly(said.spread)}${range}`);
  }
  for (const [name, value] of Object.entries(item.properties)) {
    const wish = item.targets?.[name]?.wished;
    const asked = wish === undefined ? "" : ` (asked: ${[wish].flat().join(" to ")})`;
    say(PROFILE[name] ?? name, plainly(value) + asked);
  }
  say("alerts", item.alerts.map((alert) => `${alert.name} (${alert.filter})`).join(", ") || "none");
  if (item.nearest) say("nearest in training", `${item.nearest.smiles ?? "kept to itself"}, similarity ${plainly(item.nearest.similarity)}`);
  if (item.in_training !== undefined) say("in training", item.in_training ? "yes" : "no");
  if (item.in_domain === false && !item.warnings) say("activities", "may be far off: it is unlike what they were learned from");
  if (item.critic !== undefined) say("looks real to the critic", percent(item.critic));
  return list;
}

// --- many ---------------------------------------------------------------------------------------

function gather(items) {
  at("gallery").replaceChildren(...items.map((item) => {
    const place = element("li"), figure = element("figure"), more = element("details");
    figure.append(depiction(item.svg, item.smiles), element("figcaption", item.smiles));
    more.append(element("summary", `logP ${plainly(item.properties.logp)}, QED ${plainly(item.properties.qed)}`), facts(item));
    place.append(figure, more);
    return place;
  }));
  at("gallery").classList.toggle("structures", items.length > 0);
  if (!items.length) return;
  const row = element("p", undefined, { class: "row" });
  row.append(saved(csv(items.map(columns)), "molecules.csv", "text/csv", `All ${items.length} as CSV`),
    saved(asSdf(items), "molecules.sdf", "chemical/x-mdl-sdfile", "as SDF"));
  at("rows").replaceChildren(row);
}

const columns = (item) => ({ smiles: item.smiles, inchi_key: item.inchi_key, seed: item.seed, number: item.number,
  ...item.properties, in_training: item.in_training, similarity: item.nearest?.similarity ?? "",
  critic: item.critic ?? "", alerts: item.alerts.map((alert) => alert.name).join("; ") });

function asSdf(items) {
  return items.map((item) => {
    const fields = Object.entries(columns(item)).filter(([, value]) => value !== "");
    return item.molblock + fields.map(([name, value]) => `>  <${name}>\n${value}\n\n`).join("") + "$$$$\n";
  }).join("");
}

kinds.molecules = {
  own: ["molecule-card", "wishes", "wishes-hint"], most: 1000, ask: askMolecules, wish: wished, show: gather,
};
