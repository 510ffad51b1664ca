// Layouts that both plots share, and the learning curves of the selected runs.

const MOST_CURVES = 150;
const SHOWN_UNASKED = 30;
const MOST_DASHED = 40; // of more curves the dashes only blur
let curveRuns = [];

const PLOT_CONFIG = {
  displaylogo: false, responsive: true, displayModeBar: true, showSendToCloud: false, plotlyServerURL: "", // nothing leaves the page
  modeBarButtonsToRemove: ["autoScale2d"], toImageButtonOptions: { format: "svg", filename: "fedsim" },
};

function plotLayout() {
  return {
    font: { family: "system-ui, sans-serif", size: 13, color: ink("ink") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("soft"), activecolor: ink("accent"), orientation: "v" },
  };
}

function axisLook() {
  const line = ink("line");
  return {
    gridcolor: line, zeroline: false, linecolor: ink("soft"), showline: true, ticks: "outside", tickcolor: line,
    automargin: true, title: { standoff: 10 },
  };
}

// The look of an axis that has so many pixels of room: logarithmic, with texts, or with few numbers at their places.
function axisOf(axis, room) {
  const column = COLUMNS.get(state[axis]);
  const look = { ...axisLook(), title: { text: plain(column.label), standoff: 10 } };
  if (!column.numeric) {
    const every = Math.ceil(column.levels.length / Math.max(2, Math.floor(room / 24)));
    const at = column.levels.map((_, n) => n).filter((n) => n % every === 0);
    const most = room < 400 ? 12 : 22;
    const range = [-0.6, column.levels.length - 0.4];
    return { ...look, type: "linear", range, tickvals: at, ticktext: at.map((n) => plain(short(column.levels[n], most))) };
  }
  const type = isLog(axis) ? "log" : "linear";
  if (column.few && areApart(column, isLog(axis))) {
    return { ...look, type, tickvals: column.distinct, ticktext: column.distinct.map((value) => valueText(column, value)) };
  }
  if (type === "linear") return { ...look, type, separatethousands: true };
  const ratio = column.most / column.least;
  const plainly = column.least >= 1e-4 && column.most <= 1e6 ? { tickformat: "~g" } : { exponentformat: "power" };
  return { ...look, type, dtick: ratio <= 30 ? "D2" : ratio <= 1e5 ? 1 : undefined, ...plainly };
}

// Whether the column's values can be written along an axis without touching each other.
function areApart(column, log) {
  const bend = log ? Math.log : (value) => value;
  const places = column.distinct.filter((value) => !log || value > 0).map(bend);
  const least = (places[places.length - 1] - places[0]) * 0.07;
  return places.every((place, n) => n === 0 || place - places[n - 1] >= least);
}

function scatterLayout(paint, sides) {
  const count = sides.values.length;
  const rows = Math.ceil(count / Math.max(1, Math.min(4, Math.floor(chart().clientWidth / 260))));
  const columns = Math.ceil(count / rows);
  const layout = {
    ...plotLayout(), height: rows === 1 ? (count === 1 ? 470 : 400) : 90 + 260 * rows, margin: { l: 64, r: 60, t: count === 1 ? 44 : 60, b: 56 },
    uirevision: JSON.stringify([state.x, state.y, state.facet, isLog("x"), isLog("y")]),
    legend: { orientation: "h", y: 1, yref: "container", yanchor: "top", x: 0, itemclick: false, itemdoubleclick: false,
      title: { text: paint.column ? `<b>${plain(paint.column.label)}</b> ` : "", side: "left", font: { size: 13 } } },
    annotations: [],
  };
  if (count > 1) layout.grid = { rows, columns, pattern: "independent", xgap: 0.05, ygap: 0.18 };
  sides.values.forEach((value, n) => {
    const tail = n ? String(n + 1) : "";
    const [x, y] = [axisOf("x", chart().clientWidth / columns - 60), axisOf("y", layout.height / rows - 90)];
    if (n) [x.matches, y.matches] = ["x", "y"];
    if (n % columns) Object.assign(y, { title: { text: "" }, showticklabels: false });
    if (n + columns < count) Object.assign(x, { title: { text: "" }, showticklabels: false });
    layout[`xaxis${tail}`] = { ...x, anchor: `y${tail}` };
    layout[`yaxis${tail}`] = { ...y, anchor: `x${tail}` };
    if (sides.column) layout.annotations.push(sideTitle(sides.column, value, tail));
  });
  if (paint.scale) layout.coloraxis = colourBar(paint);
  return layout;
}

function sideTitle(column, value, tail) {
  const text = `${plain(column.label)} = <b>${plain(short(valueText(column, value), 30))}</b>`;
  return { text, showarrow: false, xref: `x${tail} domain`, yref: `y${tail} domain`, x: 0, y: 1, yanchor: "bottom", xanchor: "left" };
}

function colourBar({ column, scale }) {
  const at = [0, 0.25, 0.5, 0.75, 1];
  const value = (share) => scale.from + share * (scale.to - scale.from);
  const stops = scaleStops();
  return {
    cmin: 0, cmax: 1, colorscale: stops.map((colour, n) => [n / (stops.length - 1), colour]),
    colorbar: {
      title: { text: plain(column.label), side: "right" }, thickness: 12, outlinewidth: 0, len: 0.9, tickvals: at,
      ticktext: at.map((share) => plain(valueText({ ...column, role: "figure" }, scale.log ? 10 ** value(share) : value(share)))),
    },
  };
}

function buildCurves() {
  const names = DATA.curves.names;
  const select = make("select", { id: "curve" }, ...names.map((name) => make("option", { value: name }, name)));
  select.addEventListener("change", () => {
    state.curve = select.value;
    redraw();
  });
  byId("curve-choices").append(
    make("h2", {}, "Learning curves"), make("label", {}, "Show", select), logBox("curve"),
    make("button", { type: "button", id: "select-shown", onclick: selectShown }, "Select all shown"),
    make("button", { type: "button", id: "select-none", onclick: selectNone }, "Select none"),
  );
}

function selectShown() {
  for (const i of filtered().shown) state.selected.add(i);
  redraw();
}

function selectNone() {
  state.selected.clear();
  redraw();
}

// The curve of run i: rounds and values, null where nothing was measured.
function curveOf(i) {
  const curve = DATA.curves.of[state.curve]?.[i];
  return curve ? { x: DATA.curves.rounds[curve[0]], y: curve[1] } : null;
}

function drawCurves(sorted) {
  const chosen = state.selected.size ? [...state.selected] : sorted.slice(0, SHOWN_UNASKED);
  const known = chosen.filter((i) => curveOf(i) !== null);
  curveRuns = known.slice(0, MOST_CURVES);
  const paint = colouring();
  const told = new Set();
  const traces = curveRuns.map((i) => {
    const n = paint.groupOf(i);
    const group = paint.groups[n];
    const first = !told.has(n) && group.label !== null && !(paint.scale && !group.none);
    told.add(n);
    return {
      type: "scatter", mode: "lines", ...curveOf(i), hoverinfo: "none", name: plain(short(group.label ?? "", 20)), legendgroup: String(n), legendrank: n,
      showlegend: first, opacity: curveRuns.length > 60 ? 0.5 : 0.8,
      line: { color: paint.colourOf(i), width: curveRuns.length > 60 ? 1.1 : 1.8, dash: curveRuns.length > MOST_DASHED ? "solid" : group.dash },
    };
  });
  Plotly.react(byId("curves"), traces, curveLayout(paint), PLOT_CONFIG);
  byId("curve").value = state.curve ?? "";
  byId("select-none").hidden = state.selected.size === 0;
  byId("curves-said").textContent = curveWords(chosen, known);
}

function curveLayout(paint) {
  const layout = {
    ...plotLayout(), height: 380, margin: { l: 64, r: 60, t: 44, b: 50 }, uirevision: JSON.stringify([state.curve, isLog("curve")]),
    xaxis: { ...axisLook(), title: { text: "round", standoff: 8 }, rangemode: "tozero" },
    yaxis: { ...axisLook(), title: { text: plain(state.curve ?? ""), standoff: 10 }, type: isLog("curve") ? "log" : "linear" },
  };
  layout.legend = scatterLayout(paint, { values: [undefined] }).legend;
  return layout;
}

function curveWords(chosen, known) {
  if (!state.curve) return "These runs tell nothing by round.";
  const words = [state.selected.size ? plural(chosen.length, "selected run") : `Nothing is selected: the first ${plural(chosen.length, "run")} of the table`];
  if (known.length > MOST_CURVES) words.push(`the first ${MOST_CURVES} of them drawn`);
  if (known.length < chosen.length) words.push(`${plural(chosen.length - known.length, "run")} without ${state.curve} by round left out`);
  words.push(`at most ${DATA.curves.points} points a curve, evenly picked`);
  return `${words.join(" · ")}.`;
}

function listenToCurves() {
  byId("curves").on("plotly_hover", ({ points, event }) => {
    const i = curveRuns[points[0].curveNumber];
    keep(i);
    if (event?.clientX) showTip(i, event.clientX, event.clientY, `round ${points[0].x}: ${numberText(points[0].y)}`);
  });
  byId("curves").on("plotly_unhover", hideTip);
  byId("curves").on("plotly_click", ({ points, event }) => {
    const i = curveRuns[points[0].curveNumber];
    event?.shiftKey ? toggle(i) : openReport(i);
  });
}
