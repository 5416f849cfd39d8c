// 3. Logit lens: predictions after each layer, at each token.

function lensSection() {
  const here = section("lens", "Thinking", "Predictions after each layer",
    "The most likely next token after each layer; darker is more probable. A green frame marks the prediction of the last layer. Read a column from the bottom: the input token, then the layers.");
  const strip = el("div"), facts = el("p"), grid = el("div", {class: "wide lens", onkeydown: arrows});
  here.append(el("h3", {}, "Entropy and loss at each token"), strip, facts, grid);
  watch(() => strip.replaceChildren(uncertainty()));
  watch(() => {
    const t = state.at, {lens} = R, last = lens.tokens.shape[0] - 1, after = lens.appears.at(t);
    facts.replaceChildren("After ", chip(R.tokens.data[t]), " the final prediction ", chip(lens.tokens.at(last, t, 0), "right"),
      after === 0 ? " is the top prediction before the first layer" : after === last ? " is the top prediction only after the last layer" : ` is the top prediction from layer ${after - 1} on`,
      `. Entropy ${lens.entropy.at(last, t).toFixed(2)} nats, as for a uniform choice among ${Math.exp(lens.entropy.at(last, t)).toFixed(1)} tokens.`
      + (t < T - 1 ? ` The loss of the next token is ${lens.loss.at(last, t).toFixed(2)} nats.` : ""));
    grid.replaceChildren(guessTable());
    const column = grid.querySelector("tr.in .at");
    if (column) grid.scrollLeft += column.getBoundingClientRect().left - grid.getBoundingClientRect().left - grid.clientWidth / 2;
  });
}

function guessTable() {
  const {lens} = R, rows = lens.tokens.shape[0], k = lens.tokens.shape[2], [start, stop] = around(24);
  const places = [...Array(stop - start).keys()].map((i) => start + i);
  const cell = (row, t) => {
    const share = lens.p.at(row, t, 0), id = lens.tokens.at(row, t, 0), isSame = id === lens.tokens.at(rows - 1, t, 0);
    return el("td", {}, el("button", {type: "button", class: (isSame ? "same " : "") + (t === state.at ? "at" : ""), onclick: () => lookAt(t),
      style: {background: towards("green", 0.62 * share)}, ...telling(() => `${row ? "after layer " + (row - 1) : "before any layer"}, token ${t}\n`
        + [...Array(k).keys()].map((i) => `${plain(lens.tokens.at(row, t, i))}  ${percent(lens.p.at(row, t, i))}`).join("\n")
        + `\nentropy ${lens.entropy.at(row, t).toFixed(2)} nats` + (t < T - 1 ? `; what followed is no. ${lens.rank.at(row, t) + 1}` : ""))}, ...spelled(textOf(id))));
  };
  const table = el("table");
  for (let row = rows - 1; row >= 0; row--)
    table.append(el("tr", {}, el("th", {scope: "row"}, row ? `layer ${row - 1}` : "embedding"), ...places.map((t) => cell(row, t))));
  table.append(el("tr", {class: "in"}, el("th", {scope: "row"}, "goes in"), ...places.map((t) =>
    el("td", {}, el("button", {type: "button", class: t === state.at ? "at" : "", onclick: () => lookAt(t)}, ...spelled(textOf(R.tokens.data[t])))))));
  return table;
}

function uncertainty() {
  const {lens} = R, last = lens.tokens.shape[0] - 1, width = 1000, height = 90, step = width / T;
  const entropy = lens.entropy.row(last), loss = lens.loss.row(last).slice(0, T - 1);
  const top = Math.max(...entropy, ...loss, 1);
  const made = el("svg:svg", {viewBox: `0 0 ${width} ${height + 18}`, width: "100%", role: "img", "aria-label": "entropy and loss by token", preserveAspectRatio: "none", style: {height: "6.5rem"}});
  for (let t = 0; t < T; t++) {
    const bar = (value, x, share, colour) => el("svg:rect", {x: t * step + x * step, width: Math.max(0.5, share * step), y: height - (height * value) / top,
      height: (height * value) / top, style: {fill: `var(--${colour})`, opacity: isOwn(t + 1) ? 1 : 0.55}});
    made.append(bar(entropy[t], 0.1, 0.38, "blue"));
    if (t < T - 1) made.append(bar(loss[t], 0.5, 0.38, "orange"));
    if (t === state.at) made.append(el("svg:rect", {x: t * step, width: step, y: height + 4, height: 5, style: {fill: "var(--ink)"}}));
    made.append(el("svg:rect", {x: t * step, width: step, y: 0, height: height + 18, fill: "transparent", style: {cursor: "pointer"}, onclick: () => lookAt(t),
      ...telling(() => `${plain(R.tokens.data[t])}\nentropy ${entropy[t].toFixed(2)} nats` + (t < T - 1 ? `\n${plain(R.tokens.data[t + 1])} followed: ${loss[t].toFixed(2)} nats` : ""))}));
  }
  return el("div", {}, made, el("small", {}, el("span", {class: "key a", style: {"margin-left": 0}}), "entropy of the prediction", el("span", {class: "key m"}),
    (loss.length ? `loss of the next token; mean ${(loss.reduce((a, b) => a + b) / loss.length).toFixed(2)} nats, at most ${Math.max(...loss).toFixed(2)}` : "loss of the next token") + ". Paler: the prompt."));
}
