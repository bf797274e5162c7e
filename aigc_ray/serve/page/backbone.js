// A protein's backbone on a canvas: a tube through its CA atoms, coloured by secondary structure, that
// turns by itself, by the arrow keys and by the pointer.
"use strict";

const STEPS = 6; // of the curve from one residue to the next
const PIXELS = 560; // of the canvas, either way
const THICK = { H: 1.3, E: 1.3, C: 0.7 }; // of the tube, in ångström

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => a.map((value) => value / (Math.hypot(...a) || 1));

// Atoms about their middle, turned (never mirrored) so that the longest way through them is upright:
// they turn about it, and so fill the canvas all the time.
function upright(atoms) {
  const middle = [0, 1, 2].map((axis) => atoms.reduce((sum, atom) => sum + atom[axis], 0) / atoms.length);
  const centred = atoms.map((atom) => atom.map((value, axis) => value - middle[axis]));
  let up = [0.36, 0.48, 0.8];
  for (let round = 0; round < 30; round++) { // power iteration: the direction of most variance
    const pull = [0, 0, 0];
    for (const atom of centred) atom.forEach((value, axis) => { pull[axis] += value * dot(atom, up); });
    up = unit(pull);
  }
  const right = unit(cross(up, Math.abs(up[0]) < 0.8 ? [1, 0, 0] : [0, 1, 0]));
  const frame = [right, up, cross(right, up)];
  return centred.map((atom) => frame.map((axis) => dot(atom, axis)));
}

// Points of a Catmull-Rom curve through atoms, `STEPS` for each.
function curve(atoms) {
  const near = (place, axis) => atoms[Math.min(Math.max(place, 0), atoms.length - 1)][axis];
  const points = [];
  for (let place = 0; place < atoms.length; place++) {
    for (let step = 0; step < (place === atoms.length - 1 ? 1 : STEPS); step++) {
      const t = step / STEPS;
      points.push([0, 1, 2].map((axis) => {
        const [a, b, c, d] = [-1, 0, 1, 2].map((offset) => near(place + offset, axis));
        return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
      }));
    }
  }
  return points;
}

const mixed = (one, other, share) => `rgb(${[1, 3, 5].map((from) => Math.round(
  (1 - share) * parseInt(one.slice(from, from + 2), 16) + share * parseInt(other.slice(from, from + 2), 16)))})`;

function backbone(item, name) {
  const figure = element("figure", undefined, { class: "backbone" });
  const canvas = element("canvas", undefined, { width: PIXELS, height: PIXELS, tabindex: 0, role: "img",
    "aria-label": `Backbone of ${name}; the arrow keys turn it` });
  const button = element("button", undefined, { type: "button" });
  const points = curve(upright(item.coordinates)), reach = Math.max(...points.map((point) => Math.hypot(...point)), 1);
  let yaw = 0.5, pitch = 0.2, before = 0, moving = false, pending = 0;

  function draw() {
    const style = getComputedStyle(document.documentElement), pen = canvas.getContext("2d");
    const colour = (key) => style.getPropertyValue(`--${key}`).trim();
    const [paper, ink] = [colour("backdrop"), colour("ink")];
    const tints = Object.fromEntries(Object.entries(FOLDS).map(([fold, name]) => [fold, colour(name)]));
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const scale = 0.44 * PIXELS / reach;
    const seen = points.map(([x, y, z]) => {
      const [right, deep] = [cy * x + sy * z, cy * z - sy * x];
      const [up, near] = [cp * y - sp * deep, (cp * deep + sp * y) / reach];
      const size = scale / (1 - 0.15 * near); // a little perspective
      return [PIXELS / 2 + size * right, PIXELS / 2 - size * up, near, size];
    });
    pen.clearRect(0, 0, PIXELS, PIXELS);
    const order = seen.slice(1).map((_, number) => number).sort((a, b) => seen[a][2] - seen[b][2]);
    for (const number of order) {
      const [, , near, size] = seen[number];
      const fold = item.secondary_structure[Math.round(number / STEPS)];
      const width = THICK[fold] * size, fog = 0.3 * (1 - near);
      const stroke = (places, lineCap, lineWidth, strokeStyle) => {
        Object.assign(pen, { lineCap, lineWidth, strokeStyle, lineJoin: "round" });
        pen.beginPath();
        for (const [x, y] of places) pen.lineTo(x, y);
        pen.stroke();
      };
      const part = seen.slice(number, number + 2);
      stroke(part, "butt", width + 4, paper); // parts what lies in front from what lies behind
      stroke(part, "round", width, mixed(tints[fold], paper, fog));
      // Over the neighbours too, whose light this part's round ends have covered.
      const light = seen.slice(Math.max(0, number - 1), number + 3);
      stroke(light, "butt", 0.3 * width, mixed(tints[fold], "#ffffff", 0.35 * (1 - fog)));
    }
    Object.assign(pen, { fillStyle: ink, font: "600 20px system-ui, sans-serif" });
    [["N", seen[0]], ["C", seen.at(-1)]].forEach(([end, [x, y]]) => pen.fillText(end, x + 8, y - 8));
  }

  function frame(now) {
    pending = 0;
    if (!canvas.isConnected) return; // another structure has taken its place
    if (moving && before) yaw += (now - before) / 3000; // a full turn in 19 seconds
    before = moving ? now : 0;
    draw();
    if (moving) soon();
  }

  function soon() {
    pending ||= requestAnimationFrame(frame);
  }

  function move(wanted) {
    button.textContent = wanted ? "Hold still" : "Let it turn";
    moving = wanted;
    soon();
  }

  function turn(right, up) {
    yaw += right;
    pitch += up;
    move(false); // who turns it by hand wants it to stay there
  }

  button.addEventListener("click", () => move(!moving));
  canvas.addEventListener("keydown", (event) => {
    const keys = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] };
    if (!keys[event.key]) return;
    event.preventDefault();
    turn(...keys[event.key]);
  });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) turn(event.movementX / 100, event.movementY / 100);
  });
  figure.append(canvas, button);
  move(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  return figure;
}
