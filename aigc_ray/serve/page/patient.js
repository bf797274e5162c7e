// A patient: a form made from the schema, the curve drawn with its band, what speaks for it; and
// generated patients as a table.
"use strict";

let foreseen = 0;  // number of the latest question: an older answer is not shown

const inputs = (model) => model.schema.filter((field) => field.parts.includes("input"));
const withUnit = (field) => field.unit ? `${field.name} (${field.unit})` : field.name;

function ask(model) {
  const controls = inputs(model).map((field) => {
    const label = element("label", withUnit(field));
    const id = { "data-feature": field.name, autocomplete: "off" };
    if (field.kind === "number") {
      label.append(element("input", undefined, { type: "number", step: "any", ...id }));
    } else {
      const select = element("select", undefined, id);
      select.append(element("option", "not known", { value: "" }));
      select.append(...field.values.map((value) => element("option", value, { value })));
      label.append(select);
    }
    return label;
  });
  at("features").replaceChildren(...controls);
  const names = inputs(model).map((field) => element("option", field.name, { value: field.name }));
  at("if-feature").replaceChildren(element("option", "nothing", { value: "" }), ...names);
  at("if-value").value = at("horizons").value = "";
}

function described() {
  const item = {};
  for (const control of at("features").querySelectorAll("[data-feature]")) {
    if (control.value === "") continue;
    item[control.dataset.feature] = control.type === "number" ? Number(control.value) : control.value;
  }
  const times = at("horizons").value.split(/[\s,;]+/).filter(Boolean);
  if (times.length) item.horizons = times.map((time) => Number.isNaN(Number(time)) ? time : Number(time));
  const changed = at("if-feature").value;
  if (changed) item.what_if = { [changed]: at("if-value").value };
  return item;
}

at("patient").addEventListener("submit", async (event) => {
  event.preventDefault();
  const number = ++foreseen;
  at("course").replaceChildren(element("p", "Looking ahead …"));
  try {
    const answer = await call(`/v1/${task().task}/predict`, posted({ items: [described()], explain: at("why").checked }));
    if (number === foreseen) tellCourse(answer.items[0], answer.model);
  } catch (error) {
    if (number === foreseen) complain(at("course"), error);
  }
});

const short = (number) => Number(number.toPrecision(3)).toString();
const whole = (number) => Number(number.toPrecision(6)).toString(); // as it was asked for

function tellCourse(item, model) {
  const unit = item.unit ? ` ${item.unit}` : "";
  const by = (share, time) => time === null ? [] : [`to ${share} by ${short(time)}${unit}`];
  const ends = [...by("one in twenty", item.interval[0]), ...by("half", item.median),
    ...by("all but one in twenty", item.interval[1])];
  const half = ends.length ? `Of such patients the event comes ${ends.join(", ")}.`
    : "Of such patients the event comes to fewer than one in twenty while they are followed.";
  const parts = [element("p", half, { class: "label" }), drawn(item, unit)];
  for (const one of item.horizons ?? []) {
    parts.push(element("p", `${percent(one.survival)} without the event at ${whole(one.time)}${unit} ` +
      `(${percent(one.low)} to ${percent(one.high)}).`));
  }
  if (item.what_if) {
    const other = item.what_if;
    const when = other.median === null ? "fewer than half while followed" : `half by ${short(other.median)}${unit}`;
    parts.push(element("p", `Dashed, what if: ${when}.`));
    parts.push(...other.warnings.map((text) => element("p", `What if: ${text}.`, { class: "hint" })));
  }
  parts.push(...(item.warnings ?? []).map((text) => element("p", text)));
  if (item.explanation) parts.push(...spoken(item.explanation, unit));
  parts.push(element("p", "The band holds nine tenths of the model's own members; patients differ by more.", { class: "hint" }));
  parts.push(element("p", `Answered by ${version(model)}`, { class: "model" }));
  at("course").replaceChildren(...parts);
}

function spoken(explanation, unit) {
  if (explanation.withheld) return [element("p", `No account of it: ${explanation.withheld}.`)];
  const bars = element("dl", undefined, { class: "bars" });
  const shares = Object.entries(explanation.attributions);
  const most = Math.max(...shares.map(([, share]) => Math.abs(share)), 1e-9);
  for (const [name, share] of shares) {
    const sign = share < 0 ? "−" : "+";
    bars.append(
      element("dt", name),
      element("dd", `${sign}${(100 * Math.abs(share)).toFixed(1)} points`),
      element("progress", undefined, {
        value: Math.abs(share) / most, max: 1, "aria-label": name, class: share < 0 ? "less" : "more",
      }),
    );
  }
  const told = `At ${whole(explanation.horizon)}${unit} the chance of being without the event is ` +
    `${percent(explanation.survival)}, against ${percent(explanation.baseline)} of the mean patient; ` +
    "the features add up to the difference. They are associations, not causes.";
  return [element("p", told), bars];
}

// --- a curve ------------------------------------------------------------------------------------

function shape(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawn(item, unit) {
  const [width, height, left, bottom, top] = [430, 240, 48, 30, 8];
  const end = item.curve.times.at(-1) || 1;
  const x = (time) => left + (width - left - 12) * time / end;
  const y = (share) => top + (height - bottom - top) * (1 - share);
  const line = (curve, values) => curve.times.map((time, n) => `${x(time).toFixed(1)},${y(values[n]).toFixed(1)}`);
  const picture = shape("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img",
    "aria-label": "The chance of being without the event over time, with its band" });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    picture.append(shape("line", { x1: left - 4, x2: left, y1: y(share), y2: y(share), class: "axis" }));
    picture.append(shape("text", { x: left - 7, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`));
  }
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    picture.append(shape("line", { x1: x(part * end), x2: x(part * end), y1: y(0), y2: y(0) + 4, class: "axis" }));
    picture.append(shape("text", { x: x(part * end), y: y(0) + 17, "text-anchor": part === 1 ? "end" : "middle" },
      short(part * end) + (part === 1 ? unit : "")));
  }
  picture.append(shape("polyline", { points: `${left},${top} ${left},${y(0)} ${width - 12},${y(0)}`, class: "axis" }));
  const band = [...line(item.curve, item.curve.high), ...line(item.curve, item.curve.low).reverse()];
  picture.append(shape("polygon", { points: band.join(" "), class: "band" }));
  picture.append(shape("polyline", { points: line(item.curve, item.curve.survival).join(" "), class: "line" }));
  if (item.what_if) {
    const other = item.what_if.curve;
    picture.append(shape("polyline", { points: line(other, other.survival).join(" "), class: "other" }));
  }
  return picture;
}

// --- generated patients ---------------------------------------------------------------------------

function list(items) {
  const file = saved(csv(items), "patients.csv", "text/csv", `All ${items.length} as a CSV file`);
  at("rows").replaceChildren(tabled(items), file);
}

kinds.patients = { own: ["patient-card"], most: 10000, ask, show: list };
