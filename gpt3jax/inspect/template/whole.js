// 1. Generation: each token passes through the layers, and the sampled token is the next input.

function whole() {
  const here = section("whole", "Generation", "One token at a time",
    "After each token the model predicts a probability for each token of the vocabulary to be next. Within the prompt the predictions are not used; after it, one token is sampled and becomes the next input.");
  const {layers, lens, predictions, vectors} = R, many = layers.length > 16;
  const written = el("div", {class: "written", tabindex: 0, "aria-label": "text so far"});
  const rows = layers.map((layer, n) => el("div", {class: "layer"}, el("span", {}, many ? String(layer) : "layer " + layer),
    el("span", {class: "adds"}, el("span", {class: "a"}), el("span", {class: "m"})), el("span", {})));
  const stack = el("div", {class: "stack" + (many ? " many" : "")}, ...[...rows].reverse());
  const into = el("div", {class: "flow"}), out = el("div", {class: "flow"});
  const candidates = el("div");
  const largest = Math.max(...vectors.size.row(0), ...vectors.size.row(1));
  let phase = layers.length, timer = 0, isMoved = false; // Play starts at the first token unless another was selected.

  // phase: number of layers the token has passed.
  const draw = () => {
    const t = state.at, [start, stop] = around(400), shown = Math.min(stop, T);
    written.replaceChildren(tokenRow(start, shown, (each) => (each > t ? "to-come " : "")));
    const current = written.querySelector(`[data-t="${t}"]`);
    if (current) written.scrollTop = current.offsetTop - written.offsetTop - written.clientHeight / 2;
    if (isOwn(t) && phase === 0) current.classList.add("pop");
    into.replaceChildren("\u2191 token ", el("b", {}, String(t)), " is the input: ", chip(R.tokens.data[t], isOwn(t) ? "own" : ""),
      isOwn(t) ? " (generated)" : "");
    rows.forEach((row, n) => {
      row.classList.toggle("lit", n < phase);
      row.classList.toggle("now", n === phase - 1 && phase < layers.length);
      const [bars, guess] = [row.children[1].children, row.children[2]];
      bars[0].style.width = (100 * vectors.size.at(0, n, t)) / largest + "%";
      bars[1].style.width = (100 * vectors.size.at(1, n, t)) / largest + "%";
      if (!many) guess.replaceChildren(...(n < phase ? [chip(lens.tokens.at(layers[n] + 1, t, 0))] : []));
    });
    const done = phase >= layers.length, isLast = t === T - 1;
    out.replaceChildren(...(!done ? ["\u2191 \u2026"] : isLast ? ["\u2191 generation stops here"] : isOwn(t + 1)
      ? ["\u2191 sampled: ", chip(R.tokens.data[t + 1], "own"), " and is the next input"]
      : ["\u2191 not used: the prompt continues with ", chip(R.tokens.data[t + 1])]));
    candidates.replaceChildren(...(done ? candidateRows(t, 8) : [el("p", {}, "passing through the layers \u2026")]));
  };
  watch(() => { if (!timer) phase = layers.length; draw(); });

  const speed = el("input", {type: "range", min: 0, max: 4, step: 0.5, value: 2, "aria-label": "speed"});
  const play = el("button", {type: "button", id: "play", "aria-pressed": "false"}, "\u25b6 play");
  const stop = () => { clearTimeout(timer); timer = 0; play.textContent = "\u25b6 play"; play.setAttribute("aria-pressed", "false"); };
  const tick = () => {
    if (!calm.matches && phase < layers.length) phase += Math.max(1, layers.length >> 3);
    else if (state.at === T - 1) { stop(); phase = layers.length; draw(); return; }
    else { phase = calm.matches ? layers.length : 0; timer = -1; lookAt(state.at + 1); }
    draw();
    const pause = 900 / 2 ** speed.value;
    timer = setTimeout(tick, calm.matches || phase >= layers.length ? 2.2 * pause : pause / 3);
  };
  const toggle = () => {
    if (timer) { stop(); phase = layers.length; draw(); return; }
    play.textContent = "\u275a\u275a pause";
    play.setAttribute("aria-pressed", "true");
    if (!isMoved || state.at === T - 1) { timer = -1; phase = 0; lookAt(0); }
    isMoved = true;
    timer = setTimeout(tick, 60);
  };
  const step = (by) => { stop(); isMoved = true; phase = layers.length; lookAt(state.at + by); };
  play.addEventListener("click", toggle);
  const place = el("input", {type: "range", min: 0, max: T - 1, value: 0, "aria-label": "token", oninput: () => { stop(); isMoved = true; lookAt(Number(place.value)); }});
  watch(() => { place.value = state.at; });
  here.addEventListener("keydown", (event) => {
    if (event.target.matches("input,button") && event.key === " ") return;
    if (event.key === " ") { toggle(); event.preventDefault(); }
    else if (event.key === "ArrowRight" && !event.target.matches("input")) { step(1); event.preventDefault(); }
    else if (event.key === "ArrowLeft" && !event.target.matches("input")) { step(-1); event.preventDefault(); }
  });
  here.append(
    el("div", {class: "bar"}, play, el("button", {type: "button", id: "back", onclick: () => step(-1)}, "\u2190 step"),
      el("button", {type: "button", id: "step", onclick: () => step(1)}, "step \u2192"), el("label", {}, "token", place), el("label", {}, "speed", speed)),
    el("div", {class: "whole"}, written, el("div", {}, out, stack, into,
      el("small", {}, "size of the update by", el("span", {class: "key a"}), "attention", el("span", {class: "key m"}), "MLP", many ? "" : "; right: current prediction")),
      el("div", {}, el("h3", {style: {"margin-top": 0}}, "Next token"), candidates)));
  here.append(el("h3", {}, "This model, and GPT-3"), el("div", {class: "wide"}, numbers()));
}

function candidateRows(t, most) {
  const {predictions: p} = R, k = Math.min(most, p.tokens.shape[1]), next = p.target.at(t), isKnown = t < T - 1;
  const rows = [...Array(k).keys()].map((i) => [p.tokens.at(t, i), p.p.at(t, i)]);
  if (isKnown && !rows.some(([id]) => id === next)) rows[k - 1] = [next, p.target_p.at(t)];
  return rows.map(([id, share]) => el("div", {class: "candidate" + (isKnown && id === next ? " drawn" : "")},
    el("span", {}, chip(id)), el("span", {class: "p", style: {width: 100 * share + "%"}}), el("span", {class: "num"}, percent(share))));
}

function numbers() {
  const {model, gpt3} = R;
  const rows = [["parameters", count(model.parameters), large(gpt3.parameters), gpt3.parameters / model.parameters],
    ["layers", model.n_layers, gpt3.n_layers, gpt3.n_layers / model.n_layers],
    ["width", count(model.d_model), count(gpt3.d_model), gpt3.d_model / model.d_model],
    ["heads per layer", model.n_heads, gpt3.n_heads, gpt3.n_heads / model.n_heads],
    ["context length", count(model.context), count(gpt3.context), gpt3.context / model.context],
    ["vocabulary size", count(model.vocabulary), count(gpt3.vocabulary), gpt3.vocabulary / model.vocabulary]];
  return el("table", {class: "numbers"}, el("thead", {}, el("tr", {}, ...["", R.name, "GPT-3 175B", "times"].map((each) => el("th", {scope: "col"}, each)))),
    el("tbody", {}, ...rows.map(([name, ours, theirs, times]) => el("tr", {}, el("th", {scope: "row"}, name), el("td", {}, String(ours)),
      el("td", {}, String(theirs)), el("td", {class: "soft"}, "\u00d7\u2009" + (times >= 10 ? count(Math.round(times)) : times.toPrecision(2)))))));
}
