"use strict";
const charts = JSON.parse(document.getElementById("curves").textContent);
const tip = document.getElementById("tip");

// The point of a line that is nearest to a step; its steps ascend.
function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? low : high;
}

function place(axis, value, isLog) {
  let [low, high, start, end] = axis;
  if (isLog) { low = Math.log10(low); high = Math.log10(high); value = Math.log10(value); }
  return start + (value - low) / (high - low) * (end - start);
}

function show(svg, step) {
  const about = charts[svg.dataset.chart];
  const longest = about.lines.reduce((a, b) => (b.points.length > a.points.length ? b : a));
  const at = longest.points[nearest(longest.points, step)][0];
  const group = svg.querySelector(".pointer"), rule = group.firstElementChild;
  const x = place(about.x, at, false);
  rule.setAttribute("x1", x);
  rule.setAttribute("x2", x);
  group.querySelectorAll("circle").forEach((dot) => dot.remove());
  tip.replaceChildren(document.createTextNode("step " + at.toLocaleString("en")));
  about.lines.forEach((line) => {
    const [where, value] = line.points[nearest(line.points, at)];
    // A line that has nothing near here, as a validation long ago, says of which step it is.
    const note = where === at ? "" : " (step " + where.toLocaleString("en") + ")";
    const row = document.createElement("div");
    row.textContent = line.name + ": " + value.toLocaleString("en", { maximumSignificantDigits: 5 }) + note;
    tip.append(row);
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    dot.setAttribute("class", "c" + line.colour);
    dot.setAttribute("r", 4);
    dot.setAttribute("cx", place(about.x, where, false));
    dot.setAttribute("cy", place(about.y, value, about.log));
    group.append(dot);
  });
  group.classList.add("on");
  svg.dataset.step = at;
  tip.hidden = false;
  const box = svg.getBoundingClientRect(), left = box.left + x / about.width * box.width;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(8, Math.min(left + 14, room)) + window.scrollX + "px";
  tip.style.top = box.top + window.scrollY + 14 + "px";
}

function hide(svg) {
  svg.querySelector(".pointer").classList.remove("on");
  tip.hidden = true;
}

for (const svg of document.querySelectorAll("svg.chart")) {
  const about = charts[svg.dataset.chart];
  const [low, high, start, end] = about.x;
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * about.width;
    show(svg, low + (x - start) / (end - start) * (high - low));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", () => hide(svg));
  svg.addEventListener("blur", () => hide(svg));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const steps = about.lines.reduce((a, b) => (b.points.length > a.points.length ? b : a)).points;
    const now = svg.dataset.step === undefined ? (by > 0 ? -1 : steps.length) : nearest(steps, +svg.dataset.step);
    show(svg, steps[Math.max(0, Math.min(steps.length - 1, now + by))][0]);
  });
}
