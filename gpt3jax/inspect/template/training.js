// 6. Training examples, and predictions of each checkpoint.

function training() {
  const {training: all} = R, last = all.steps.length - 1;
  const here = section("training", "Training", "Predictions during training",
    "The previous tokens are the features and the next token is the label. Each step updates all parameters to lower the loss of the labels.");
  if (all.windows) here.append(examples(all, last));
  else here.append(el("p", {}, "The run's training data is not available" + (all.missing ? ": " + all.missing : ".")));
  here.append(el("h3", {}, "The same prompt, at each checkpoint"));
  const slider = el("input", {type: "range", id: "checkpoint", min: 0, max: last, value: last, "aria-label": "checkpoint"}), label = el("b"), text = el("div"), curve = el("div"), when = el("p");
  here.append(el("div", {class: "bar"}, el("label", {}, "checkpoint", slider), label), text, when, curve);
  const draw = () => {
    const c = Number(slider.value), of = all.text, [start, stop] = around(60);
    label.textContent = all.steps[c] === 0 && all.began ? all.began : `step ${count(all.steps[c])}`;
    text.replaceChildren(...[...Array(stop - start).keys()].map((i) => {
      const t = start + i, guess = of.tokens.at(c, t, 0), isRight = t < T - 1 && guess === R.tokens.data[t + 1];
      return el("span", {class: "pair"}, chip(R.tokens.data[t], (isOwn(t) ? "own " : "") + (t === state.at ? "at" : ""), "button", {onclick: () => lookAt(t)}),
        chip(guess, "guess " + (isRight ? "right" : ""), "span", telling(() => `after ${plain(R.tokens.data[t])} at step ${count(all.steps[c])}:\n`
          + [0, 1, 2].filter((k) => k < of.tokens.shape[2]).map((k) => `${plain(of.tokens.at(c, t, k))} ${percent(of.p.at(c, t, k))}`).join("\n"))));
    }));
    const t = state.at, next = R.predictions.target.at(t), first = all.steps.findIndex((_, each) => of.tokens.at(each, t, 0) === next);
    when.replaceChildren("Below each token is the predicted next token. ", chip(next, "right"), " after ", chip(R.tokens.data[t], "at"),
      first < 0 ? " is not the top prediction of any checkpoint." : ` becomes the top prediction at step ${count(all.steps[first])}.`);
    curve.replaceChildren(chances(all.steps, (each) => of.target_p.at(each, t), c, (each) => { slider.value = each; draw(); }));
  };
  slider.addEventListener("input", draw);
  watch(draw);
}

function examples(all, last) {
  const S = all.windows.shape[1] - 1, box = el("div"), shown = el("div", {class: "window"});
  let w = 0, s = Math.min(5, S - 1), timer = 0;
  const place = el("input", {type: "range", min: 0, max: S - 1, value: s, "aria-label": "position of the window", oninput: () => { s = Number(place.value); draw(); }});
  const slide = el("button", {type: "button", id: "slide", onclick: () => {
    if (timer) { clearInterval(timer); timer = 0; slide.textContent = "\u25b6 slide"; return; }
    slide.textContent = "\u275a\u275a pause";
    timer = setInterval(() => { s = (s + 1) % S; place.value = s; draw(); }, 1100);
  }}, "\u25b6 slide");
  const which = el("select", {"aria-label": "example", onchange: () => { w = Number(which.value); draw(); }},
    ...[...Array(all.windows.shape[0]).keys()].map((n) => el("option", {value: n}, `window ${n + 1} of the training data`)));
  const guess = (of, ...at) => [chip(of.tokens.at(...at, 0), of.tokens.at(...at, 0) === all.windows.at(w, s + 1) ? "right" : ""), ` ${percent(of.p.at(...at, 0))}`];
  const draw = () => {
    const label = all.windows.at(w, s + 1), of = all.examples, loss = (c) => -Math.log(of.target_p.at(c, w, s));
    shown.replaceChildren(...[...all.windows.row(w)].map((id, n) => chip(id, n <= s ? "feature" : n === s + 1 ? "label" : "later")));
    const part = (title, ...children) => el("div", {}, el("h4", {}, title), ...children);
    const update = all.update && w === 0 ? all.update : null, moved = update && [...update.moved.data];
    box.replaceChildren(part(all.steps[0] === 0 && all.began ? `At step 0 (${all.began}) the model predicts` : `At step ${count(all.steps[0])} the model predicts`, el("p", {}, ...guess(of, 0, w, s))),
      part("Loss", el("p", {}, "the label ", chip(label), ` has ${percent(of.target_p.at(0, w, s))}: ${loss(0).toFixed(2)} nats`)),
      part("Update", el("p", {}, ...(update ? [`one step on this window at learning rate ${update.learning_rate} changes the matrices by ${percent(Math.min(...moved))} to ${percent(Math.max(...moved))}. Then: `, ...guess(update.after, 0, s),
        `; the label has ${percent(update.after.target_p.at(0, s))}`] : ["each step changes all parameters to lower the loss; shown for window 1", ...(all.update ? [] : [" of smaller models with training data"]), "."]))),
      part(`At step ${count(all.steps[last])} the model predicts`, el("p", {}, ...guess(of, last, w, s), `; the label has ${percent(of.target_p.at(last, w, s))}: ${loss(last).toFixed(2)} nats`)));
    curve.replaceChildren(chances(all.steps, (c) => of.target_p.at(c, w, s), -1));
  };
  const curve = el("div");
  drawn(draw);
  return el("div", {}, el("div", {class: "bar"}, slide, el("label", {}, "position", place), which), shown,
    el("p", {class: "soft"}, el("span", {class: "key a", style: {"margin-left": 0}}), "features", el("span", {class: "key m"}), "label"), el("div", {}, (box.className = "steps", box)), el("small", {}, "probability of the label, by checkpoint"), curve);
}

function chances(steps, value, marked, pick) {
  const W = roomy(600), H = 90, x = (c) => (steps.length > 1 ? 34 + ((W - 60) * (steps[c] - steps[0])) / (steps[steps.length - 1] - steps[0]) : W / 2), y = (p) => 10 + (H - 20) * (1 - p);
  const all = steps.map((_, c) => value(c));
  const path = all.map((p, c) => `${c ? "L" : "M"}${x(c)} ${y(p)}`).join("");
  const label = (p) => el("svg:text", {x: 0, y: y(p) + 4, class: "soft"}, percent(p));
  return el("svg:svg", {viewBox: `0 0 ${W} ${H + 12}`, style: {width: "min(100%,38rem)"}, role: "img", "aria-label": "probability by checkpoint"},
    ...[0, 1].map((p) => el("svg:line", {x1: 34, x2: W - 26, y1: y(p), y2: y(p), style: {stroke: "var(--line)"}})), label(0), label(1),
    el("svg:path", {d: path, fill: "none", style: {stroke: "var(--green)", "stroke-width": 2}}),
    ...all.map((p, c) => el("svg:circle", {cx: x(c), cy: y(p), r: c === marked ? 6 : 3.5, style: {fill: "var(--green)", cursor: pick ? "pointer" : "default"}, onclick: () => pick && pick(c), ...telling(() => `step ${count(steps[c])}: ${percent(p)}`)})),
    ...steps.map((step, c) => (c === 0 || c === steps.length - 1 ? el("svg:text", {x: x(c), y: H + 10, "text-anchor": c ? "end" : "start", class: "soft"}, `step ${count(step)}`) : "")));
}
