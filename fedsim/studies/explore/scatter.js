// The scatter plot: a point a run, any column on either axis, in colour and side by side; plotly draws it.

const MOST_FACETS = 12;
const MOST_DRAWN = 6000;
let drawn = new Map(); // run -> the trace that it is in, and its place there
let plotRuns = []; // of each trace, the runs of its points

const isSided = (column) => column.few || !column.numeric; // whether runs can be parted by it

const chart = () => byId("scatter");

function buildAxes() {
  const all = [...SETTINGS, ...FIGURES];
  const some = all.filter(isSided);
  byId("axes").append(
    chooser("x", "x", all), logBox("x"), chooser("y", "y", all), logBox("y"),
    chooser("colour", "Colour", all, "none"), logBox("colour"), chooser("facet", "Side by side", some, "none"), meansBox(),
  );
}

function chooser(name, words, columns, none = null) {
  const groups = [["Settings", "setting"], ["Figures", "figure"]].map(([label, role]) => {
    const options = columns.filter((column) => column.role === role).map((column) => make("option", { value: column.key }, column.label));
    return options.length ? make("optgroup", { label }, ...options) : null;
  });
  const select = make("select", { "data-axis": name }, none ? make("option", { value: "" }, none) : null, ...groups);
  select.addEventListener("change", () => {
    state[name] = select.value || null;
    if (name in state.log) state.log[name] = null;
    redraw();
  });
  return make("label", {}, words, select);
}

function logBox(axis) {
  const box = make("input", { type: "checkbox", "data-log": axis });
  box.addEventListener("change", () => {
    state.log[axis] = box.checked;
    redraw();
  });
  return make("label", { class: "log" }, box, "log");
}

function meansBox() {
  const box = make("input", { type: "checkbox", id: "means" });
  box.addEventListener("change", () => {
    state.means = box.checked;
    redraw();
  });
  return make("label", { class: "log", title: "a line through the mean of the runs shown, by colour" }, box, "means");
}

function drawChoices() {
  for (const select of document.querySelectorAll("[data-axis]")) select.value = state[select.dataset.axis] ?? "";
  for (const box of document.querySelectorAll("[data-log]")) {
    const column = COLUMNS.get(state[box.dataset.log]);
    const stepped = box.dataset.log === "colour" && column?.distinct.length <= STEPS;
    box.disabled = box.dataset.log !== "curve" && (stepped || !(column?.numeric && column.most > 0));
    box.checked = !box.disabled && isLog(box.dataset.log);
  }
  byId("means").checked = withMeans();
}

const withMeans = () => state.means ?? Boolean(COLUMNS.get(state.x)?.numeric && COLUMNS.get(state.x).few);

// Where run i stands on an axis, null where it has no value or a logarithm has none.
function along(axis) {
  const column = COLUMNS.get(state[axis]);
  const log = column.numeric && isLog(axis);
  return (i) => {
    const place = placeOf(column, i);
    return place === null || (log && place <= 0) ? null : place;
  };
}

// The same, with runs of one value lying side by side instead of upon each other, by colour and a little by chance.
function spread(axis, paint) {
  const column = COLUMNS.get(state[axis]);
  const at = along(axis);
  if (column.numeric && (!column.few || axis === "y")) return at;
  const bend = column.numeric && isLog(axis) ? [Math.log, Math.exp] : [(value) => value, (value) => value];
  const places = column.numeric ? column.distinct.filter((value) => !isLog(axis) || value > 0).map(bend[0]) : [0, 1];
  const gap = Math.min(...places.slice(1).map((place, n) => place - places[n]));
  if (!Number.isFinite(gap)) return at;
  const groups = axis === "x" && !paint.scale ? paint.groups.length : 1;
  return (i) => {
    const place = at(i);
    if (place === null) return null;
    const lane = groups > 1 ? (paint.groupOf(i) + 0.5) / groups - 0.5 : 0;
    return bend[1](bend[0](place) + gap * 0.55 * (lane + (chance(i, axis === "y" ? 2 : 1) - 0.5) * (0.6 / groups)));
  };
}

// A number from 0 to 1 that is always the same for run i.
function chance(i, salt = 0) {
  let mixed = Math.imul(i + 1 + salt * 7919, 0x9e3779b1);
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32;
}

function facets(shown) {
  const column = COLUMNS.get(state.facet);
  if (!column) return { values: [undefined], left: 0 };
  const counts = new Map();
  for (const i of shown) counts.set(valueOf(column, i), (counts.get(valueOf(column, i)) ?? 0) + 1);
  const order = [...column.distinct, null].filter((value) => counts.has(value));
  const most = [...order].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, MOST_FACETS);
  return { values: order.filter((value) => most.includes(value)), left: order.length - most.length, column };
}

function drawScatter(shown) {
  if (!state.x || !state.y) return;
  const [paint, sides] = [colouring(), facets(shown)];
  const [x, y] = [spread("x", paint), spread("y", paint)];
  const placed = shown.filter((i) => x(i) !== null && y(i) !== null);
  placed.sort((a, b) => chance(a) - chance(b)); // so that no colour lies upon all others
  const step = Math.max(1, Math.ceil(placed.length / MOST_DRAWN));
  const points = step === 1 ? placed : placed.filter((i, n) => n % step === 0 || state.selected.has(i));
  const traces = tracesOf(points, x, y, paint, sides);
  Plotly.react(chart(), traces, scatterLayout(paint, sides), PLOT_CONFIG);
  byId("ring").hidden = true;
  byId("scatter-said").textContent = scatterWords(shown, placed, points, sides, paint);
}

function tracesOf(points, x, y, paint, sides) {
  const size = points.length > 2000 ? 6 : points.length > 300 ? 7.5 : 9;
  const traces = [];
  const told = new Set();
  [drawn, plotRuns] = [new Map(), []];
  sides.values.forEach((value, side) => {
    const here = sides.column ? points.filter((i) => valueOf(sides.column, i) === value) : points;
    const ends = { xaxis: side ? `x${side + 1}` : "x", yaxis: side ? `y${side + 1}` : "y" };
    paint.groups.forEach((group, n) => {
      const runs = here.filter((i) => paint.groupOf(i) === n);
      if (!runs.length) return;
      const graded = paint.scale && !group.none;
      const [xs, ys] = [runs.map(x), runs.map(y)];
      if (withMeans() && !graded && !group.none) traces.push(meansOf(runs, ys, group, ends));
      const uid = `side${side}group${n}`;
      runs.forEach((i, at) => drawn.set(i, { uid, at }));
      plotRuns[traces.length] = runs;
      traces.push({
        type: "scatter", mode: "markers", uid, x: xs, y: ys, ...ends, hoverinfo: "none",
        name: plain(short(group.label ?? "", 20)), legendgroup: String(n), legendrank: n,
        showlegend: group.label !== null && !graded && !told.has(n),
        marker: {
          size, symbol: group.symbol, opacity: 0.85, line: { width: 0.8, color: ink("page") },
          ...(graded ? { color: runs.map(paint.scale.shareOf), coloraxis: "coloraxis" } : { color: group.colour }),
        },
      });
      told.add(n);
    });
    const chosen = here.filter((i) => state.selected.has(i));
    if (chosen.length) traces.push(ringsOf(chosen, x, y, size, ends));
  });
  return traces;
}

function ringsOf(runs, x, y, size, ends) {
  const marker = { size: size + 7, symbol: "circle-open", color: ink("ink"), line: { width: 2, color: ink("ink") } };
  return { type: "scatter", mode: "markers", x: runs.map(x), y: runs.map(y), ...ends, hoverinfo: "skip", showlegend: false, marker };
}

function meansOf(runs, ys, group, ends) {
  const at = new Map();
  const column = COLUMNS.get(state.x);
  runs.forEach((i, n) => {
    const place = placeOf(column, i);
    at.has(place) ? at.get(place).push(ys[n]) : at.set(place, [ys[n]]);
  });
  const order = [...at.keys()].sort((a, b) => a - b);
  return {
    type: "scatter", mode: "lines", x: order, y: order.map((key) => at.get(key).reduce((a, b) => a + b, 0) / at.get(key).length),
    ...ends, hoverinfo: "skip", showlegend: false, opacity: 0.75, line: { color: group.colour, width: 2, dash: group.dash },
  };
}

function scatterWords(shown, placed, points, sides, paint) {
  const words = [`${plural(points.length, "run")} drawn`];
  if (points.length < placed.length) words[0] += ` of ${placed.length.toLocaleString("en")}, evenly picked; the table has all`;
  const missing = shown.length - placed.length;
  const names = [...new Set([state.x, state.y])].map((key) => COLUMNS.get(key).label).join(" or ");
  if (missing) words.push(`${plural(missing, "run")} left out: no ${names}${isLog("x") || isLog("y") ? ", or none that a logarithm has" : ""}`);
  if (sides.left > 0) words.push(`${plural(sides.left, "rarer value")} of ${sides.column.label} not drawn`);
  if (COLUMNS.get(state.x).few || !COLUMNS.get(state.x).numeric) words.push("runs of one value are spread sideways");
  if (withMeans() && !paint.scale) words.push("lines go through the means of the runs shown");
  return `${words.join(" · ")}.`;
}

function listenToScatter() {
  chart().on("plotly_hover", ({ points }) => {
    const i = plotRuns[points[0].curveNumber]?.[points[0].pointNumber];
    if (i !== undefined) pointAt(i);
  });
  chart().on("plotly_unhover", leaveScatter);
  chart().on("plotly_click", ({ points, event }) => {
    const i = plotRuns[points[0].curveNumber]?.[points[0].pointNumber];
    if (i === undefined) return;
    event?.shiftKey ? toggle(i) : openReport(i);
  });
  chart().on("plotly_selected", (picked) => {
    if (!picked?.points?.length) return;
    for (const point of picked.points) {
      const i = plotRuns[point.curveNumber]?.[point.pointNumber];
      if (i !== undefined) state.selected.add(i);
    }
    Plotly.restyle(chart(), { selectedpoints: [null] });
    Plotly.relayout(chart(), { selections: [] });
    say(`${plural(state.selected.size, "run")} selected`);
    redraw();
  });
  chart().addEventListener("keydown", byKeyboard);
  chart().addEventListener("blur", leaveScatter);
}

function leaveScatter() {
  hideTip();
  byId("ring").hidden = true;
}

// Where run i is drawn in the window, or null.
function spotOf(i) {
  const place = drawn.get(i);
  const mark = place && chart().querySelectorAll(`.trace${place.uid} .points path`)[place.at];
  const box = mark?.getBoundingClientRect();
  return box?.width ? [(box.left + box.right) / 2, (box.top + box.bottom) / 2] : null;
}

// A ring around run i in the plot, if it is there.
function circle(i) {
  const spot = spotOf(i);
  byId("ring").hidden = !spot;
  if (!spot) return;
  const stage = byId("ring").parentElement.getBoundingClientRect();
  byId("ring").style.left = `${spot[0] - stage.left}px`;
  byId("ring").style.top = `${spot[1] - stage.top}px`;
}

// Point at run i, by mouse or by keyboard.
function pointAt(i) {
  circle(i);
  keep(i);
  const spot = spotOf(i);
  if (spot) showTip(i, ...spot);
}

function byKeyboard(event) {
  const steps = { ArrowRight: ["x", 1], ArrowLeft: ["x", -1], ArrowUp: ["y", 1], ArrowDown: ["y", -1] };
  if (event.key in steps) {
    const [axis, step] = steps[event.key];
    const at = along(axis);
    const order = [...drawn.keys()].sort((a, b) => at(a) - at(b) || a - b);
    const now = order.indexOf(pointed);
    const next = order[now === -1 ? 0 : Math.min(Math.max(now + step, 0), order.length - 1)];
    if (next !== undefined) pointAt(next);
  } else if (event.key === "Enter" && pointed !== null) openReport(pointed);
  else if (event.key === " " && pointed !== null) toggle(pointed);
  else if (event.key === "Escape") leaveScatter();
  else return;
  event.preventDefault();
}
