// 7. Few-shot: the same question after 0, 1, 4 and 16 demonstrations.

function shots() {
  const {shots: all} = R, here = section("shots", "Few-shot", "In-context learning",
    `The same question of the task ${all.task} after more and more demonstrations, without any update of the parameters. Colour: attention from the last token before the answer.`);
  const layers = R.model.n_layers, H = R.model.n_heads, richest = all.settings[all.settings.length - 1];
  const onDemonstrations = (n, h) => richest.pieces.reduce((sum, piece, i) => sum + (piece.kind === "demonstration" ? richest.looks.at(n, h, i) : 0), 0);
  const peak = (n, h) => Math.max(...richest.pieces.map((piece, i) => (piece.kind === "demonstration" ? richest.looks.at(n, h, i) : 0)), 0);
  const list = [...Array(layers).keys()].flatMap((n) => [...Array(H).keys()].map((h) => [n, h]));
  list.sort((a, b) => peak(...b) - peak(...a));
  const select = el("select", {id: "shots-head", "aria-label": "head"}, el("option", {value: "mean"}, "mean of all heads"),
    ...list.slice(0, 200).map(([n, h]) => el("option", {value: `${n} ${h}`}, `layer ${n}, head ${h}: ${percent(onDemonstrations(n, h))} on demonstrations`)));
  if (list.length) select.value = list[0].join(" ");
  const columns = el("div", {class: "shots"});
  here.append(el("div", {class: "bar"}, el("label", {}, "attention of", select)), columns);
  const look = (setting, i) => {
    if (select.value !== "mean") return setting.looks.at(...select.value.split(" ").map(Number), i);
    return list.reduce((sum, [n, h]) => sum + setting.looks.at(n, h, i), 0) / list.length;
  };
  const draw = () => columns.replaceChildren(...all.settings.map((setting) => {
    const right = setting.p.data[0], mean = setting.p.data.reduce((a, b) => a + b, 0) / setting.p.data.length;
    return el("div", {}, el("h3", {}, `${setting.asked} ${setting.asked === 1 ? "demonstration" : "demonstrations"}` + (setting.shots < setting.asked ? `, ${setting.shots} fit` : "")),
      el("div", {}, "right answer: ", el("b", {}, percent(right))), el("div", {class: "meter"}, el("i", {style: {width: 100 * right + "%"}})),
      el("small", {}, `mean of ${setting.p.data.length} questions ${percent(mean)}; ${setting.greedy.filter(Boolean).length} right with greedy decoding`),
      el("div", {style: {"margin-top": ".6rem"}}, ...setting.pieces.map((piece, i) => {
        const share = look(setting, i);
        const last = i === setting.pieces.length - 1;
        return el("div", {class: "piece " + piece.kind, style: {background: towards("violet", 0.6 * Math.sqrt(share))}, ...telling(() => `${percent(share)} of the attention`)},
          el("span", {}, piece.text.trim() || "(empty)", ...(last ? [el("span", {class: "answer"}, setting.answer)] : [])), el("small", {}, percent(share)));
      })));
  }));
  select.addEventListener("change", draw);
  drawn(draw);
}
