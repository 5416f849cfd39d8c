// Shared by all sections: the record, elements, colours, the tooltip, and the selected token.
// Model text is only ever set as textContent, so it is never parsed as HTML.

const TYPES = {float32: Float32Array, uint32: Uint32Array, uint16: Uint16Array, uint8: Uint8Array, int32: Int32Array};

class Numbers {
  constructor({dtype, shape, base64}) {
    const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
    this.shape = shape;
    this.data = dtype === "float16" ? halves(new Uint16Array(bytes.buffer)) : new TYPES[dtype](bytes.buffer);
  }
  at(...place) {
    return this.data[place.reduce((sum, each, axis) => sum * this.shape[axis] + each, 0)];
  }
  row(...place) {
    const size = this.shape.slice(place.length).reduce((a, b) => a * b, 1);
    const start = size * place.reduce((sum, each, axis) => sum * this.shape[axis] + each, 0);
    return this.data.subarray(start, start + size);
  }
}

function halves(bits) {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const sign = bits[i] & 0x8000 ? -1 : 1, power = (bits[i] >> 10) & 31, part = bits[i] & 1023;
    values[i] = sign * (power === 0 ? part * 2 ** -24 : power === 31 ? (part ? NaN : Infinity) : (1 + part / 1024) * 2 ** (power - 15));
  }
  return values;
}

const R = JSON.parse(document.getElementById("record").textContent, (_, value) =>
  value && value.base64 !== undefined && value.dtype ? new Numbers(value) : value);
const T = R.tokens ? R.tokens.data.length : 0;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

function el(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) made.style.setProperty(key, each);
    else if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function section(id, name, title, text) {
  const made = el("section", {id, tabindex: -1}, el("h2", {}, title), el("p", {}, text));
  document.getElementById("main").append(made);
  document.getElementById("nav").append(el("a", {href: "#" + id}, name));
  return made;
}

// Spaces and line breaks are shown as grey symbols.
function spelled(text) {
  return [...text.matchAll(/[ \n\t\r\u2028\u2029]|[^ \n\t\r\u2028\u2029]+/g)].map(([part]) => {
    const sign = {" ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d", "\u2028": "\u23ce", "\u2029": "\u23ce"}[part];
    return sign ? el("i", {}, sign) : part;
  });
}
const textOf = (id) => R.texts[id] ?? "#" + id;
const roomy = (most) => Math.min(most, document.documentElement.clientWidth - 40);
const plain = (id) => textOf(id).replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5").replace(/ /g, "\u00b7");
const chip = (id, kind = "", tag = "span", more = {}) =>
  el(tag, {class: "token " + kind, ...(tag === "button" ? {type: "button"} : {}), ...more}, ...spelled(textOf(id)));
const isOwn = (t) => t >= R.prompt_length;

const percent = (p) => (Number.isNaN(p) ? "n/a" : p >= 0.9995 ? "100%" : p >= 0.0995 ? (100 * p).toFixed(0) + "%" : p >= 0.0001 ? (100 * p).toPrecision(2) + "%" : p > 0 ? "<0.01%" : "0");
const signed = (x) => (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(2);
const count = (n) => n.toLocaleString("en-US");
function large(n) {
  for (const [size, name] of [[1e12, " trillion"], [1e9, " billion"], [1e6, " million"]])
    if (n >= size) return (n / size).toPrecision(3).replace(/\.0+$/, "") + name;
  return count(n);
}

// Theme colours as numbers, for canvases, which are redrawn when the theme changes.
const redraws = [];
let palette = {};
function readPalette() {
  const probe = el("span");
  document.body.append(probe);
  for (const name of ["ink", "soft", "line", "paper", "raised", "blue", "orange", "green", "violet"]) {
    probe.style.color = `var(--${name})`;
    palette[name] = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  }
  probe.remove();
}
const blend = (from, to, share) => from.map((each, i) => Math.round(each + (to[i] - each) * Math.min(1, Math.max(0, share))));
const rgb = (colour) => `rgb(${colour.join(",")})`;
const towards = (name, share) => rgb(blend(palette.paper, palette[name], share));
const diverging = (x) => blend(palette.paper, x < 0 ? palette.blue : palette.orange, Math.abs(x) ** 0.7);
function drawn(draw) {
  redraws.push(draw);
  draw();
}

function cells(canvas, width, height, colour) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i += 4) {
      const [r, g, b] = colour(x, y);
      image.data[i] = r; image.data[i + 1] = g; image.data[i + 2] = b; image.data[i + 3] = 255;
    }
  context.putImageData(image, 0, 0);
}

const tip = document.getElementById("tip");
function tell(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const at = event.clientX === undefined || event.type === "focus" ? event.target.getBoundingClientRect() : null;
  const x = at ? at.left : event.clientX + 14, y = at ? at.bottom + 6 : event.clientY + 16;
  tip.style.left = Math.max(4, Math.min(x, innerWidth - box.width - 6)) + "px";
  tip.style.top = (y + box.height > innerHeight ? Math.max(4, y - box.height - 34) : y) + "px";
}
const hush = () => { tip.hidden = true; };
// The text is computed on demand, because there may be thousands of cells.
const telling = (text) => ({
  onpointermove: (event) => tell(event, text(event)), onpointerleave: hush,
  onfocus: (event) => tell(event, text(event)), onblur: hush,
});

// The selected token is shared by all sections.
const state = {at: 0};
const watchers = [];
function lookAt(t) {
  state.at = Math.max(0, Math.min(T - 1, t));
  for (const each of watchers) each();
}
function watch(draw) {
  watchers.push(draw);
  drawn(draw);
}

function tokenRow(start, stop, more = () => "") {
  const row = el("div");
  for (let t = start; t < stop; t++)
    row.append(chip(R.tokens.data[t], (isOwn(t) ? "own " : "") + (t === state.at ? "at " : "") + more(t), "button",
      {onclick: () => lookAt(t), "data-t": t, "aria-label": `token ${t}: ${textOf(R.tokens.data[t])}`}));
  return row;
}

// The part of a long text around the selected token.
function around(most) {
  const start = Math.max(0, Math.min(state.at - (most >> 1), T - most));
  return [start, Math.min(T, start + most)];
}
const arrows = (event) => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (by) { lookAt(state.at + by); event.preventDefault(); }
};
