// 5. The parameters.

const TINTS = {token_embedding: "green", position_embedding: "soft", qkv: "blue", out: "violet", up: "orange", down: "orange"};
const partOf = (name) => name.replace(/^layers\//, "").split("/")[0];

function anatomySection() {
  const {anatomy, model} = R, inLayers = anatomy.arrays.filter((each) => each.copies > 1 || each.name.startsWith("layers/"));
  const perLayer = inLayers.reduce((sum, each) => sum + each.count, 0);
  const matrices = anatomy.arrays.reduce((sum, each) => sum + (each.shape.length > 1 && !each.name.endsWith("bias") ? each.copies : 0), 0);
  const here = section("anatomy", "Parameters", "Parameters of the model",
    "Each column is a layer, and each area is proportional to its number of parameters.");
  here.append(el("div", {class: "figures"}, ...[[large(anatomy.total), "parameters"], [count(model.n_layers), "layers"], [large(perLayer), "in each layer"], [count(matrices), "matrices"]]
    .map(([value, name]) => el("div", {}, el("b", {}, value), name))));
  const detail = el("div"), map = el("div", {class: "map"});
  here.append(map, detail);
  let chosen = {each: inLayers.find((each) => each.name.endsWith("up/kernel")) ?? anatomy.arrays[0], layer: 0};
  const show = () => detail.replaceChildren(arrayDetail(chosen));
  const pick = (each, layer) => { chosen = {each, layer}; show(); };
  map.append(area(inLayers, perLayer, pick));
  drawn(show);
  here.append(el("h3", {}, "All arrays"), el("div", {class: "wide"}, arrayTable(pick)));
}

function area(inLayers, perLayer, pick) {
  const {anatomy, model} = R, W = 1000, H = 260, parts = [];
  const rect = (each, layer, x, y, w, h) => el("svg:rect", {x, y, width: w, height: h, style: {fill: `var(--${TINTS[partOf(each.name)] ?? "soft"})`,
    opacity: partOf(each.name) === "down" ? 0.7 : 1, cursor: "pointer"}, onclick: () => pick(each, layer),
    ...telling(() => `${each.name}${each.copies > 1 ? `, layer ${layer}` : ""}\n${each.shape.join(" \u00d7 ")} = ${count(each.count)}\n${percent(each.count / anatomy.total)} of all`)});
  let x = 0;
  for (const each of anatomy.arrays.filter((one) => !inLayers.includes(one))) {
    const w = W * each.share;
    parts.push(rect(each, 0, x, 0, w, H));
    x += w;
  }
  const width = (W * perLayer) / anatomy.total;
  for (let layer = 0; layer < model.n_layers; layer++) {
    let y = 0;
    for (const each of inLayers) {
      const h = (H * each.count) / perLayer;
      parts.push(rect(each, layer, x, y, width, h));
      y += h;
    }
    x += width;
  }
  const names = [["green", "token embedding (and head)"], ["soft", "positions, norms, biases"], ["blue", "queries, keys, values"], ["violet", "attention's output"], ["orange", "MLP: up, down"]];
  return el("div", {}, el("svg:svg", {viewBox: `0 0 ${W} ${H}`, width: "100%", preserveAspectRatio: "none", style: {height: "16rem"}, role: "img", "aria-label": "shares of the parameters"}, ...parts),
    el("small", {class: "legend"}, ...names.map(([colour, text]) => el("span", {}, el("span", {class: "key", style: {background: `var(--${colour})`}}), text))));
}

function arrayTable(pick) {
  const {anatomy} = R;
  return el("table", {}, el("thead", {}, el("tr", {}, ...["array", "shape", "numbers", "copies", "share", "", "initialized as"].map((each) => el("th", {}, each)))),
    el("tbody", {}, ...anatomy.arrays.map((each) => el("tr", {}, el("td", {}, el("button", {type: "button", onclick: () => pick(each, 0)}, each.name)), el("td", {}, each.shape.join(" \u00d7 ")), el("td", {}, count(each.count)),
      el("td", {}, count(each.copies)), el("td", {}, percent(each.share)), el("td", {style: {width: "8rem", "text-align": "left"}}, el("span", {class: "share", style: {width: 7 * each.share + "rem"}})),
      el("td", {class: "soft"}, each.init === "normal" ? `normal, \u03c3 ${each.std.toPrecision(2)}` : each.init)))));
}

function arrayDetail({each, layer}) {
  const heading = el("h3", {}, `${each.name}${each.copies > 1 ? `, layer ${layer}` : ""}: ${each.shape.join(" \u00d7 ")}`);
  if (!each.histogram) return el("div", {}, heading, el("p", {}, `${count(each.count)} values; there are no weights yet. They are initialized as ${each.init === "normal" ? `normal, with standard deviation ${each.std.toPrecision(3)}` : each.init}.`));
  const found = each.histogram.row(layer), bins = found.length, W = roomy(600), H = 120, wide = (2 * each.reach) / bins, middle = each.init === "ones" ? 1 : 0;
  const density = [...found].map((n) => n / each.count), first = each.init === "normal" && each.std > 0;
  const normal = (x) => (Math.exp(-0.5 * (x / each.std) ** 2) / (each.std * Math.sqrt(2 * Math.PI))) * wide;
  const top = Math.max(...density, first ? normal(0) : 0);
  const bars = density.map((share, i) => el("svg:rect", {x: (i * W) / bins + 0.5, width: W / bins - 1, y: H - (H * share) / top, height: (H * share) / top, style: {fill: "var(--blue)", opacity: 0.8},
    ...telling(() => `${(middle - each.reach + i * wide).toPrecision(3)} to ${(middle - each.reach + (i + 1) * wide).toPrecision(3)}: ${count(found[i])}`)}));
  const line = [...Array(200).keys()].map((i) => { const x = -each.reach + (2 * each.reach * i) / 199; return `${i ? "L" : "M"}${(i * W) / 199} ${H - (H * normal(x)) / top}`; }).join("");
  const start = first ? el("svg:path", {d: line, fill: "none", style: {stroke: "var(--orange)", "stroke-width": 1.6}}) : el("svg:line", {x1: W / 2, x2: W / 2, y1: 0, y2: H, style: {stroke: "var(--orange)", "stroke-width": 1.6}});
  const text = (x, anchor, value) => el("svg:text", {x, y: H + 16, "text-anchor": anchor, class: "soft"}, value.toPrecision(2));
  return el("div", {}, heading, el("svg:svg", {viewBox: `0 0 ${W} ${H + 20}`, style: {width: "min(100%,38rem)"}, role: "img", "aria-label": "histogram of values"}, ...bars, start,
    text(0, "start", middle - each.reach), text(W / 2, "middle", middle), text(W, "end", middle + each.reach)),
    el("small", {}, el("span", {class: "key a", style: {"margin-left": 0}}), `values now: mean ${each.mean.at(layer).toPrecision(2)}, root mean square ${each.rms.at(layer).toPrecision(3)}`, el("span", {class: "key m"}), "at initialization"));
}
