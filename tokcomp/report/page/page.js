"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const percent = (value, digits = 0) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits) + " %");
const points = (value) => (value === null ? "–" : (value >= 0 ? "+" : "−") + Math.abs(100 * value).toFixed(1));
const PAGE = 200;
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a949e", "#7a5195"];
const MARKS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star", "pentagon", "hexagon"];

const COLUMNS = [
  { name: "vision", text: true, value: (run) => run.stages[0] },
  { name: "prefill", text: true, value: (run) => run.stages[1] },
  { name: "cache", text: true, value: (run) => run.stages[2] },
  { name: "accuracy", value: (run) => run.accuracy, show: (run) => `${percent(run.accuracy, 1)} ±${(50 * (run.interval[1] - run.interval[0])).toFixed(1)}` },
  { name: "difference", value: (run) => run.difference, show: difference },
  { name: "same answer", value: (run) => run.agreement, show: (run) => percent(run.agreement) },
  { name: "tokens", value: (run) => run.equivalent_tokens, show: (run) => run.equivalent_tokens.toFixed(1) },
  { name: "FLOPs", value: (run) => run.flops, show: (run) => percent(run.flops) },
  { name: "KV cache", value: (run) => run.kv_bytes, show: (run) => percent(run.kv_bytes) },
  { name: "prefill time", value: (run) => run.prefill_time, show: (run) => percent(run.prefill_time) },
  { name: "decoding", value: (run) => run.decode_time, show: (run) => percent(run.decode_time) },
  { name: "settings", text: true, wide: true, value: (run) => run.settings },
].filter((column) => column.wide ? data.runs.some((run) => run.settings) : column.text || data.runs.some((run) => column.value(run) !== null));

const state = { sort: "accuracy", down: true, shown: PAGE, cost: Object.keys(data.costs)[0], choice: ["", "", ""], search: "" };

function difference(run) {
  if (run.difference === null) return "–";
  return points(run.difference) + (run.p < 0.05 ? " *" : "");
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function chosen() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  return data.runs.filter((run) => run.stages.every((name, i) => !state.choice[i] || state.choice[i] === name)
    && words.every((word) => `${run.stages.join(" ")} ${run.command} ${run.key}`.toLowerCase().includes(word)));
}

function front(runs) {
  const cost = state.cost;
  const known = runs.filter((run) => run[cost] !== null).sort((a, b) => a[cost] - b[cost] || b.accuracy - a.accuracy);
  let best = -1;
  return known.filter((run) => run.accuracy > best && ((best = run.accuracy), true));
}

function drawTable(runs, onFront) {
  const column = COLUMNS.find((each) => each.name === state.sort);
  const order = [...runs].sort((a, b) => {
    const x = column.value(a), y = column.value(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (state.down ? -1 : 1);
  });
  const kept = new Set(onFront);
  byId("runs").tHead.replaceChildren(element("tr", {}, ...COLUMNS.map((each) => element("th", {
    class: each.text ? "text" : null, scope: "col",
    "aria-sort": each.name === state.sort ? (state.down ? "descending" : "ascending") : null,
  }, element("button", { type: "button", onclick: () => sortBy(each.name) }, each.name)))));
  byId("runs").tBodies[0].replaceChildren(...order.slice(0, state.shown).map((run) => element("tr", {
    class: kept.has(run) ? "open front" : "open", tabindex: "0", "data-key": run.key,
    onclick: () => { location.hash = run.key; },
    onkeydown: (event) => { if (event.key === "Enter") location.hash = run.key; },
  }, ...COLUMNS.map((each) => element("td", { class: each.wide ? "text wide" : each.text ? "text" : null },
    String(each.show ? each.show(run) : each.value(run)))))));
  byId("count").textContent = `${runs.length} of ${data.runs.length} runs; the blue edge marks the Pareto front. `
    + `Difference: points against ${data.against}, * significant at 5 % (sign flips, Holm).`;
  byId("more").hidden = order.length <= state.shown;
  byId("more").textContent = `show ${Math.min(PAGE, order.length - state.shown)} more`;
}

function sortBy(name) {
  state.down = state.sort === name ? !state.down : !COLUMNS.find((each) => each.name === name).text;
  state.sort = name;
  draw();
}

function drawPlot(runs, onFront) {
  const ink = getComputedStyle(document.body).color, rule = getComputedStyle(document.documentElement).getPropertyValue("--rule");
  const cost = state.cost, share = cost !== "equivalent_tokens";
  const scale = (value) => (share && value !== null ? 100 * value : value);
  const visions = [...new Set(data.runs.map((run) => run.stages[0]))].sort();
  const prefills = [...new Set(data.runs.map((run) => run.stages[1]))].sort();
  const traces = visions.map((vision, number) => {
    const group = runs.filter((run) => run.stages[0] === vision && run[cost] !== null);
    return {
      type: runs.length > 2000 ? "scattergl" : "scatter", mode: "markers", name: `vision=${vision}`, customdata: group.map((run) => run.key),
      x: group.map((run) => scale(run[cost])), y: group.map((run) => 100 * run.accuracy),
      text: group.map((run) => [run.stages.join(" · "), run.settings].filter(Boolean).join("<br>")),
      hovertemplate: "%{text}<br>%{y:.1f} % at %{x:.4g}<extra></extra>",
      marker: { color: COLOURS[number % COLOURS.length], size: 9, opacity: 0.8, symbol: group.map((run) => MARKS[prefills.indexOf(run.stages[1]) % MARKS.length]) },
    };
  }).filter((trace) => trace.x.length);
  if (prefills.length > 1) {
    prefills.slice(0, MARKS.length).forEach((prefill, number) => traces.push({
      type: "scatter", mode: "markers", name: `prefill=${prefill}`, x: [null], y: [null], hoverinfo: "skip",
      marker: { color: "#8a939c", size: 9, symbol: MARKS[number] },
    }));
  }
  traces.unshift({ type: "scatter", mode: "lines", name: "Pareto front", x: onFront.map((run) => scale(run[cost])), y: onFront.map((run) => 100 * run.accuracy),
    line: { shape: "hv", color: ink, width: 1.2 }, hoverinfo: "skip" });
  const narrow = window.innerWidth < 600;
  Plotly.react("plot", traces, {
    margin: { l: 48, r: 12, t: 12, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12 },
    xaxis: { title: { text: data.costs[cost] + (share ? ", % of the dense model" : "") }, gridcolor: rule, zeroline: false },
    yaxis: { title: { text: "accuracy, %" }, gridcolor: rule, zeroline: false }, hovermode: "closest",
    legend: narrow ? { orientation: "h", y: -0.25 } : {}, showlegend: visions.length <= 16 && !narrow,
  }, { responsive: true, displaylogo: false, displayModeBar: false });
}

function draw() {
  const runs = chosen(), onFront = front(runs);
  drawTable(runs, onFront);
  drawPlot(runs, onFront);
}

function figure(name, value) {
  return element("div", {}, element("b", {}, value), element("span", {}, name));
}

function drawRun(run) {
  const page = byId("run");
  const figures = [
    ["accuracy", `${percent(run.accuracy, 1)}`], [`95 % interval`, `${(100 * run.interval[0]).toFixed(1)} – ${(100 * run.interval[1]).toFixed(1)}`],
    ["dense accuracy", percent(run.dense, 1)], [`against ${data.against}`, difference(run)], ["same answer as dense", percent(run.agreement)],
    ["equivalent tokens", `${run.equivalent_tokens.toFixed(1)} of ${run.image_tokens.toFixed(0)}`],
    ...Object.entries(data.costs).filter(([cost]) => cost !== "equivalent_tokens").map(([cost, name]) => [`${name}, of dense`, percent(run[cost], 1)]),
  ];
  const parts = [
    element("p", {}, element("a", { href: "#" }, "← all runs")),
    element("h2", {}, run.stages.map((name, i) => `${["vision", "prefill", "cache"][i]}=${name}`).join("  ")),
    element("div", { class: "figures" }, ...figures.map(([name, value]) => figure(name, value))),
    element("p", {}, "This command makes the run again:"), element("pre", {}, run.command),
  ];
  if (run.picture) parts.push(element("img", { src: `data:image/png;base64,${run.picture}`, alt: "what each stage kept of an image" }));
  parts.push(run.answers ? answers(run) : element("p", { class: "faint" }, `The page holds the answers of some runs only; those of this one are in runs/${run.key}/result.json.`));
  page.replaceChildren(...parts);
}

function answers(run) {
  const heads = ["kind", "question", "expected", "dense", "compressed", "score"];
  const rows = data.questions[run.set].map((question, i) => ({ ...question, compressed: run.answers[i], score: run.scores[i] }));
  const body = element("tbody");
  const fill = (only) => body.replaceChildren(...rows.filter((row) => !only || row.compressed !== row.dense).map((row) => element("tr", {},
    ...heads.map((head) => element("td", {
      class: head === "score" ? null : "text wide" + (head === "compressed" && row.compressed !== row.dense ? (row.score > 0.5 ? " better" : " worse") : ""),
    }, String(row[head]))))));
  fill(false);
  const only = element("input", { type: "checkbox", id: "only", onchange: (event) => fill(event.target.checked) });
  return element("section", {}, element("div", { class: "head" }, element("h2", {}, "Answers"), element("label", {}, only, " only where dense and compressed differ")),
    element("div", { class: "scroll" }, element("table", { id: "answers" }, element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { class: head === "score" ? null : "text", scope: "col" }, head)))), body)));
}

function drawEffects() {
  const all = Object.entries(data.effects).flatMap(([stage, effects]) => Object.entries(effects).map(([name, effect]) => [`${stage}=${name}`, effect]));
  if (!all.length) return;
  byId("effects-part").hidden = false;
  const widest = Math.max(...all.map(([, effect]) => Math.abs(effect)), 1e-9);
  byId("effects").replaceChildren(...all.map(([name, effect]) => element("div", { class: "bar" }, element("span", {}, name),
    element("i", { class: effect < 0 ? "minus" : "plus", style: `width:${Math.max(1, (100 * Math.abs(effect)) / widest)}%` }), element("output", {}, points(effect)))));
}

function route() {
  const run = data.runs.find((each) => each.key === location.hash.slice(1));
  byId("study").hidden = Boolean(run);
  byId("run").hidden = !run;
  if (run) { drawRun(run); window.scrollTo(0, 0); } else draw();
}

function begin() {
  const failed = data.failed ? `; ${data.failed} failed` : "";
  byId("about").textContent = `${data.runs.length} runs of ${data.model} on ${data.benchmark}${failed}.`;
  byId("cost").append(...Object.entries(data.costs).map(([cost, name]) => element("option", { value: cost }, name)));
  byId("cost").addEventListener("change", (event) => { state.cost = event.target.value; draw(); });
  ["vision", "prefill", "cache"].forEach((stage, i) => {
    const names = [...new Set(data.runs.map((run) => run.stages[i]))].sort();
    const select = element("select", { id: `filter-${stage}`, onchange: (event) => { state.choice[i] = event.target.value; state.shown = PAGE; draw(); } },
      element("option", { value: "" }, "all"), ...names.map((name) => element("option", { value: name }, name)));
    byId("filters").append(element("label", {}, `${stage} `, select), " ");
  });
  byId("search").addEventListener("input", (event) => { state.search = event.target.value; state.shown = PAGE; draw(); });
  byId("more").addEventListener("click", () => { state.shown += PAGE; draw(); });
  window.addEventListener("hashchange", route);
  drawEffects();
  route();
  byId("plot").on("plotly_click", (event) => { const key = event.points[0].customdata; if (key) location.hash = key; });
}

begin();
