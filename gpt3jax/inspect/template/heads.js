// 4. Attention of each head.

const FACTS = {
  induction: ["induction", (x) => (Number.isNaN(x) ? "n/a" : x.toFixed(2)), "attends to the token that followed the same token before", -1],
  entropy: ["entropy", (x) => x.toFixed(2) + " nats", "entropy of the weights: 0 for a single token", 1],
  distance: ["distance", (x) => x.toFixed(1) + " back", "mean distance to the attended tokens", -1],
  previous: ["previous token", (x) => percent(x), "weight on the previous token", -1],
  itself: ["itself", (x) => percent(x), "weight on the query's own token", -1],
  first: ["first token", (x) => percent(x), "weight on the first token, which idle heads attend to", -1],
};
const MOST_HEADS = 96;

function heads() {
  const here = section("heads", "Attention", "Attention of each head",
    "Each picture is a head, with a row per query and a column per key; darker is more weight. Dense layers attend to all previous tokens, banded layers to the last few; keys outside the band are hatched.");
  const list = R.layers.flatMap((layer, n) => [...Array(R.model.n_heads).keys()].map((h) => ({layer, n, h, dense: R.model.dense[layer]})));
  const fact = (name, {n, h}) => R.heads.facts[name].at(n, h);
  let chosen = list.reduce((best, each) => (fact("induction", each) > fact("induction", best) ? each : best));
  const small = el("div", {class: "heads"}), big = el("canvas", {role: "img", "aria-label": "attention of the chosen head"});
  const title = el("h3", {style: {"margin-top": 0}}), seen = el("div", {class: "seen", onkeydown: arrows}), exact = el("p");
  const sort = el("select", {"aria-label": "sort heads", onchange: () => all()}, el("option", {value: ""}, "by layer"),
    ...Object.entries(FACTS).map(([name, [text]]) => el("option", {value: name}, "by " + text)));
  const says = el("small");
  const all = () => {
    const name = sort.value, order = name ? [...list].sort((a, b) => FACTS[name][3] * (fact(name, a) - fact(name, b))) : list;
    says.textContent = (name ? FACTS[name][2] : "") + (order.length > MOST_HEADS ? ` (${MOST_HEADS} of ${order.length})` : "");
    small.replaceChildren(...order.slice(0, MOST_HEADS).map((each) => {
      const canvas = el("canvas");
      paint(canvas, each, Math.min(T, 96));
      return el("button", {type: "button", "aria-pressed": String(each === chosen), onclick: () => { chosen = each; all(); one(); },
        ...telling(() => `layer ${each.layer}, head ${each.h}: ${each.dense ? "dense" : `sees the last ${R.model.band}`}\n`
          + Object.entries(FACTS).map(([key, [text, show]]) => `${text}: ${show(fact(key, each))}`).join("\n"))},
        canvas, `${each.layer}.${each.h} ${each.dense ? "dense" : "banded"}`, el("br"), name ? FACTS[name][1](fact(name, each)) : "");
    }));
  };
  const one = () => {
    const [start, stop] = around(128);
    paint(big, chosen, 128, start, stop, state.at);
    title.textContent = `Layer ${chosen.layer}, head ${chosen.h}: ${chosen.dense ? "dense" : `banded, sees the last ${R.model.band}`}`;
    const row = looks(chosen, state.at), from = chosen.dense ? 0 : Math.max(0, state.at - R.model.band + 1);
    seen.replaceChildren(tokenRow(...around(160)));
    for (const each of seen.querySelectorAll("[data-t]")) {
      const s = Number(each.dataset.t);
      if (s === state.at) continue;
      const isSeen = from <= s && s <= state.at, isKept = isSeen && !Number.isNaN(row[s]);
      each.style.background = isKept ? towards("violet", Math.sqrt(row[s])) : "none";
      each.style.border = isSeen && !isKept ? "1px dotted var(--soft)" : "";
      each.style.opacity = isSeen ? 1 : 0.3;
      Object.entries(telling(() => weightText(chosen, state.at, s))).forEach(([key, run]) => each.addEventListener(key.slice(2), run));
    }
    const most = [...row.keys()].filter((s) => from <= s && s <= state.at && !Number.isNaN(row[s])).sort((a, b) => row[b] - row[a]).slice(0, 4);
    exact.replaceChildren("From ", chip(R.tokens.data[state.at], "at"), " mostly to ", ...most.flatMap((s) => [chip(R.tokens.data[s]), ` ${percent(row[s])} `]));
  };
  const point = (event) => {
    const [start, stop] = around(128), size = stop - start;
    const s = start + Math.floor((event.offsetX / big.clientWidth) * size), t = start + Math.floor((event.offsetY / big.clientHeight) * size);
    return s < start || t < start || s >= stop || t >= stop ? null : [t, s];
  };
  big.addEventListener("pointermove", (event) => { const at = point(event); if (at) tell(event, weightText(chosen, ...at)); });
  big.addEventListener("pointerleave", hush);
  big.addEventListener("click", (event) => { const at = point(event); if (at) lookAt(at[0]); });
  const left = R.heads.kept < T ? el("small", {}, `This page stores the ${R.heads.kept} largest weights of each query; a dot or a dotted frame marks a smaller one.`) : "";
  here.append(el("div", {class: "bar"}, el("label", {}, "heads", sort), says), el("div", {class: "split"}, small,
    el("div", {class: "big"}, title, big, left, exact, seen)));
  drawn(all);
  watch(one);
}

// Weights of one query by key; NaN if not stored. If the smallest stored weight is 0, the others are 0 too.
function looks({n, h}, t) {
  const {keys, weights, kept} = R.heads, where = keys.row(n, h, t), what = weights.row(n, h, t);
  const row = new Float32Array(T).fill(kept < t + 1 && what[kept - 1] !== 0 ? NaN : 0);
  for (let i = 0; i < kept; i++) if (where[i] <= t) row[where[i]] = what[i];
  return row;
}

function weightText(head, t, s) {
  const pair = `${plain(R.tokens.data[t])} (${t}) \u2192 ${plain(R.tokens.data[s])} (${s})`;
  if (s > t) return pair + "\na later token, which is masked";
  if (!head.dense && t - s >= R.model.band) return pair + "\noutside the band";
  const weight = looks(head, t)[s];
  if (Number.isNaN(weight)) return pair + `\nat most ${R.heads.weights.at(head.n, head.h, t, R.heads.kept - 1).toPrecision(4)}: only larger ones are on this page`;
  return pair + `\n${weight.toPrecision(7)}`;
}

function paint(canvas, head, most, start = 0, stop = Math.min(T, most), marked = -1) {
  const size = stop - start, {band} = R.model;
  const zoom = Math.max(1, Math.floor((marked >= 0 ? 480 : 96) / size)), rows = [];
  const colour = (x, y) => {
    const s = start + Math.floor(x / zoom), t = start + Math.floor(y / zoom);
    if (s > t) return t === marked ? palette.raised : palette.paper;
    if (!head.dense && t - s >= band) return (x + y) % Math.max(4, Math.min(8, zoom)) < 2 ? palette.line : palette.raised;
    rows[t - start] ??= looks(head, t);
    const weight = rows[t - start][s], isMiddle = x % zoom === zoom >> 1 && y % zoom === zoom >> 1;
    if (Number.isNaN(weight) && isMiddle) return blend(palette.line, palette.soft, zoom < 3 ? 0 : 0.4);
    return blend(t === marked ? palette.line : palette.raised, palette.violet, Number.isNaN(weight) ? 0 : Math.sqrt(weight));
  };
  cells(canvas, size * zoom, size * zoom, colour);
}
