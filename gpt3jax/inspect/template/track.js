// 2. The residual stream of one token, from the embedding to the probabilities.

function track() {
  const here = section("track", "Residual stream", "The residual stream of one token",
    "Each row is a vector and each cell one of its values: orange is positive, blue negative, on a common scale. Each layer adds to the residual stream. Push: the change of the logit of the next token.");
  const picker = el("div", {onkeydown: arrows}), body = el("div", {class: "wide"}), end = el("div", {class: "split"});
  const own = el("input", {type: "checkbox", id: "own-scale", onchange: () => body.replaceChildren(bars(state.at, own.checked))});
  here.append(picker, el("div", {class: "bar"}, el("label", {}, own, "scale each row separately")), body, end);
  watch(() => {
    const [start, stop] = around(60);
    picker.replaceChildren(tokenRow(start, stop));
    body.replaceChildren(bars(state.at, own.checked));
    end.replaceChildren(logits(state.at), story(state.at));
  });
}

function bars(t, isOwnScale) {
  const {vectors: v, predictions: p, lens, layers, tokens} = R, i = t - v.first, size = v.size;
  const d = v.token.shape[1], next = p.target.at(t);
  if (i < 0) return el("p", {}, `This page stores the vectors of the last ${count(v.token.shape[0])} tokens; this token is before them.`);
  const sum = v.token.row(i).map((x, n) => x + v.position.row(i)[n]);
  const all = [sum, ...layers.flatMap((_, n) => [v.attention.row(n, i), v.mlp.row(n, i), v.residual.row(n, i)])];
  const scaleOf = (lines) => {
    const sorted = Float32Array.from(lines.flatMap((each) => [...each]), Math.abs).sort();
    return sorted[Math.floor(0.985 * (sorted.length - 1))] || 1;
  };
  const common = scaleOf(all);
  const grid = el("div", {class: "track"}, ...["", "", "length", "push", "prediction"].map((each) => el("span", {class: "head"}, each)));
  const add = (name, values, length, push, guess, isSum) => {
    const canvas = el("canvas", {role: "img", "aria-label": name, ...telling((event) => {
      if (event.offsetX === undefined) return name;
      const n = Math.min(d - 1, Math.max(0, Math.floor((event.offsetX / event.target.clientWidth) * d)));
      return `${name}\nnumber ${n * v.stride}: ${values[n].toPrecision(4)}`;
    })});
    const scale = isOwnScale ? scaleOf([values]) : common;
    cells(canvas, d, 1, (x) => diverging(Math.min(1, Math.max(-1, values[x] / scale))));
    grid.append(el("span", {class: isSum ? "" : "soft"}, name), el("span", {class: isSum ? "sum" : ""}, canvas),
      el("span", {class: "num soft"}, length === null ? "" : length.toFixed(1)),
      el("span", {class: "num " + (push > 0 ? "final" : "soft")}, push === null ? "" : signed(push)),
      el("span", {}, ...(guess === null ? [] : [chip(guess, guess === next ? "right" : "")])));
  };
  const line = () => grid.append(el("span", {class: "start"}));
  add(`token ${tokens.data[t]}`, v.token.row(i), v.size_before.at(0, t), null, null);
  add(`+ position ${t}`, v.position.row(i), v.size_before.at(1, t), null, null);
  add("= stream", sum, null, p.push.at(0, t), lens.tokens.at(0, t, 0), true);
  layers.forEach((layer, n) => {
    line();
    add(`${layer} + attention`, v.attention.row(n, i), size.at(0, n, t), p.push.at(1 + 2 * layer, t), null);
    add(`${layer} + MLP`, v.mlp.row(n, i), size.at(1, n, t), p.push.at(2 + 2 * layer, t), null);
    add("= stream", v.residual.row(n, i), size.at(2, n, t), null, lens.tokens.at(layer + 1, t, 0), true);
  });
  if (v.stride > 1) grid.append(el("small", {style: {"grid-column": "1/-1"}}, `Every ${v.stride}th of ${count(R.model.d_model)} values is shown.`));
  return grid;
}

function logits(t) {
  const {predictions: p, sampling} = R, next = p.target.at(t), isKnown = t < T - 1;
  const rows = [...Array(p.tokens.shape[1]).keys()].map((i) => [p.tokens.at(t, i), p.logits.at(t, i), p.p.at(t, i), p.drawn.at(t, i)]);
  if (!rows.some(([id]) => id === next)) rows.push([next, p.target_logit.at(t), p.target_p.at(t), p.target_drawn.at(t)]);
  const how = sampling.temperature === 0 ? "greedy" : "at " + sampling.temperature;
  return el("div", {}, el("h3", {}, "Final norm, logits, softmax"), el("div", {class: "wide"}, el("table", {},
    el("thead", {}, el("tr", {}, ...["next token", "logit", "probability", "", how].map((each) => el("th", {}, each)))),
    el("tbody", {}, ...rows.map(([id, logit, share, as]) => {
      const isNext = isKnown && id === next;
      return el("tr", {}, el("td", {}, chip(id, isNext ? (isOwn(t + 1) ? "own at" : "at") : "")), el("td", {}, logit.toFixed(3)),
        el("td", {}, percent(share)), el("td", {style: {width: "7rem", "text-align": "left"}}, el("span", {class: "share", style: {width: 6 * share + "rem"}})),
        el("td", {class: "soft"}, percent(as)));
    })))));
}

function story(t) {
  const {predictions: p, sampling} = R, next = p.target.at(t), rank = p.target_rank.at(t);
  const what = t === T - 1 ? "No token was sampled after this one. Most likely: " : isOwn(t + 1) ? "Sampled: " : "The prompt continues with ";
  return el("div", {}, el("h3", {}, "Next token"), el("p", {}, what, chip(next, isOwn(t + 1) && t < T - 1 ? "own" : ""),
    `, with probability ${percent(p.target_p.at(t))}` + (rank ? `; ${count(rank)} ${rank === 1 ? "token was" : "tokens were"} more likely.` : ", the most likely token.")),
    el("p", {}, `A probability is e to the power of logit \u2212 ${p.log_sum.at(t).toFixed(3)}. ` + (sampling.temperature === 0 ? "Decoding is greedy."
      : `Tokens are sampled at temperature ${sampling.temperature}` + (sampling.top_k ? `, from the ${sampling.top_k} most likely` : "") + (sampling.top_p < 1 ? `, from those that add up to ${sampling.top_p}` : "") + `, with seed ${R.seed}.`)));
}
