// Parallel coordinates: a line a run across its settings and figures; dragging along an axis keeps the runs that cross there.

const MOST_AXES = 9;
const EDGE = { top: 50, bottom: 26, side: 60 };
const HEIGHT = 380;
const lines = { axes: [], shown: [], drag: null, lanes: 1, laneOf: () => 0 };

const canvas = () => byId("parallel");

// Settings that differ, then what the scatter plot's axes and the run's quality are.
function parallelAxes() {
  const settings = SETTINGS.filter((column) => column.distinct.length > 1 || column.missing);
  const figures = [...new Set([state.x, state.colour, state.y])].map((key) => COLUMNS.get(key)).filter((column) => column?.role === "figure");
  return [...settings.slice(0, MOST_AXES - figures.length), ...figures];
}

// How a column lies along its axis: share from 0 (below) to 1 of a place, and back.
function rulerOf(column) {
  const log = column.numeric && column.wide;
  const bend = log ? Math.log10 : (value) => value;
  const [from, to] = [bend(column.least ?? 0), bend(column.most ?? 1)];
  return {
    column,
    share: (place) => (to === from ? 0.5 : (bend(place) - from) / (to - from)),
    back: (share) => (log ? 10 ** (from + share * (to - from)) : from + share * (to - from)),
  };
}

function drawParallel(shown) {
  const width = canvas().parentElement.clientWidth;
  const ratio = window.devicePixelRatio || 1;
  Object.assign(canvas(), { width: width * ratio, height: HEIGHT * ratio });
  const columns = parallelAxes();
  const step = (width - 2 * EDGE.side) / Math.max(columns.length - 1, 1);
  const paint = colouring();
  lines.lanes = paint.scale ? 1 : paint.groups.length;
  lines.laneOf = paint.scale ? () => 0 : paint.groupOf;
  lines.axes = columns.map((column, n) => {
    const ruler = rulerOf(column);
    return { ...ruler, band: bandOf(ruler), x: columns.length > 1 ? EDGE.side + n * step : width / 2 };
  });
  lines.shown = shown;
  const pen = canvas().getContext("2d");
  pen.scale(ratio, ratio);
  const isShown = new Set(shown);
  pen.lineWidth = 1;
  pen.globalAlpha = 0.35;
  pen.strokeStyle = ink("line");
  for (let i = 0; i < COUNT; i += 1) if (!isShown.has(i)) stroke(pen, i);
  pen.globalAlpha = Math.max(0.14, Math.min(0.85, 110 / Math.max(shown.length, 1)));
  pen.lineWidth = shown.length > 400 ? 1 : 1.4;
  const colours = paint.groups.map((group) => group.colour);
  for (const i of [...shown].sort((a, b) => chance(a) - chance(b))) {
    pen.strokeStyle = paint.scale ? paint.colourOf(i) : colours[paint.groupOf(i)];
    stroke(pen, i);
  }
  pen.globalAlpha = 1;
  pen.lineWidth = 2.5;
  for (const i of state.selected) {
    pen.strokeStyle = paint.colourOf(i);
    if (isShown.has(i)) stroke(pen, i);
  }
  lines.axes.forEach((axis) => drawAxis(pen, axis, step));
}

const down = (share) => HEIGHT - EDGE.bottom - 22 - share * (HEIGHT - EDGE.top - EDGE.bottom - 22);
const NOWHERE = HEIGHT - EDGE.bottom; // the place of runs that have no value

// Where run i crosses the axis; runs of one of few values lie in a band, by colour and a little by chance.
function heightOf(axis, i) {
  const place = placeOf(axis.column, i);
  const lane = 0.5 - (lines.laneOf(i) + chance(i)) / lines.lanes; // the first group lowest, as its value is
  if (place === null) return NOWHERE + 10 * lane;
  return down(axis.share(place)) + axis.band * lane;
}

// How thick the bands of an axis are: what lies between its values, up to so many pixels; 0 where it has many.
function bandOf(ruler) {
  const { column } = ruler;
  if (column.role === "figure" && !column.few) return 0;
  const at = column.distinct.map((value, n) => down(ruler.share(column.numeric ? value : n))).sort((a, b) => a - b);
  const gaps = at.slice(1).map((y, n) => y - at[n]);
  return Math.min(26, 0.6 * Math.min(...gaps, 60));
}

function stroke(pen, i) {
  pen.beginPath();
  lines.axes.forEach((axis, n) => pen[n ? "lineTo" : "moveTo"](axis.x, heightOf(axis, i)));
  pen.stroke();
}

function drawAxis(pen, axis, step) {
  const { column, x } = axis;
  pen.strokeStyle = ink("soft");
  pen.lineWidth = 1.2;
  pen.beginPath();
  pen.moveTo(x, down(1));
  pen.lineTo(x, down(0));
  pen.stroke();
  drawKept(pen, axis);
  pen.textAlign = "center";
  pen.font = `600 12px system-ui, sans-serif`;
  const words = fitted(pen, column.label, Math.max(step - 10, 60));
  const half = pen.measureText(words).width / 2 + 2;
  written(pen, words, Math.min(Math.max(x, half), canvas().clientWidth - half), 18, ink("ink"));
  pen.font = `11px system-ui, sans-serif`;
  pen.textAlign = "left";
  for (const [place, words] of ticksOf(axis)) written(pen, fitted(pen, words, Math.max(step - 14, 50)), x + 8, down(axis.share(place)) + 4, ink("ink"));
  if (column.missing) written(pen, "none", x + 8, NOWHERE + 4, ink("soft"));
}

function ticksOf(axis) {
  const { column } = axis;
  if (!column.numeric) {
    const every = Math.ceil(column.levels.length / 14);
    return column.levels.map((text, n) => [n, text]).filter(([n]) => n % every === 0);
  }
  if (column.distinct.length <= 8) return column.distinct.map((value) => [value, valueText(column, value)]);
  const at = [0, 0.25, 0.5, 0.75, 1].map((share) => (column.whole ? Math.round(axis.back(share)) : axis.back(share)));
  return at.map((place) => [place, valueText({ ...column, role: "figure" }, place)]);
}

function fitted(pen, text, most) {
  while (text.length > 3 && pen.measureText(text).width > most) text = `${text.slice(0, -2)}…`;
  return text;
}

// Text with a rim of the page's colour, so that it is read across lines.
function written(pen, text, x, y, colour) {
  pen.lineWidth = 3;
  pen.strokeStyle = ink("card");
  pen.strokeText(text, x, y);
  pen.fillStyle = colour;
  pen.fillText(text, x, y);
}

function drawKept(pen, axis) {
  const filter = state.filters.get(axis.column.key);
  pen.fillStyle = ink("accent");
  const bar = (from, to) => pen.fillRect(axis.x - 4, Math.min(from, to) - 4, 8, Math.abs(to - from) + 8);
  for (const value of filter?.values ?? []) {
    const place = value === null || axis.column.numeric ? value : axis.column.levels.indexOf(value);
    const y = place === null ? NOWHERE : down(axis.share(place));
    bar(y, y);
  }
  const bounds = [filter?.least ?? axis.column.least, filter?.most ?? axis.column.most];
  if (filter && !filter.values) bar(...bounds.map((bound) => down(Math.min(Math.max(axis.share(bound), 0), 1))));
  if (lines.drag?.key === axis.column.key) {
    pen.globalAlpha = 0.35;
    bar(lines.drag.from, lines.drag.to);
    pen.globalAlpha = 1;
  }
}

function listenToParallel() {
  const at = (event) => {
    const box = canvas().getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas().addEventListener("pointerdown", (event) => {
    const [x, y] = at(event);
    const axis = lines.axes.find((one) => Math.abs(one.x - x) < 22);
    if (!axis) return;
    lines.drag = { key: axis.column.key, from: y, to: y, axis };
    canvas().setPointerCapture(event.pointerId);
    hideTip();
  });
  canvas().addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (lines.drag) {
      lines.drag.to = y;
      drawParallel(lines.shown);
      return;
    }
    const i = nearestLine(x, y);
    canvas().style.cursor = lines.axes.some((one) => Math.abs(one.x - x) < 22) ? "ns-resize" : i === null ? "default" : "pointer";
    if (i === null) return hideTip();
    circle(i);
    showTip(i, event.clientX, event.clientY);
  });
  canvas().addEventListener("pointerup", () => {
    if (lines.drag) letGo(lines.drag);
  });
  canvas().addEventListener("click", (event) => {
    const [x, y] = at(event);
    const i = lines.axes.some((one) => Math.abs(one.x - x) < 22) ? null : nearestLine(x, y);
    if (i === null) return;
    keep(i);
    event.shiftKey ? toggle(i) : openReport(i);
  });
  canvas().addEventListener("pointerleave", leaveScatter);
}

function letGo({ axis, from, to }) {
  lines.drag = null;
  if (Math.abs(to - from) < 4) return setFilter(axis.column.key, null);
  const [high, low] = [Math.min(from, to) - 3, Math.max(from, to) + 3];
  const inside = (y) => y >= high && y <= low;
  const { column } = axis;
  if (column.role === "setting" && (column.few || !column.numeric)) {
    const values = column.distinct.filter((value, n) => inside(down(axis.share(column.numeric ? value : n))));
    if (column.missing && inside(NOWHERE)) values.push(null);
    return setFilter(column.key, values.length ? { values: new Set(values) } : null);
  }
  const bound = (y) => Number(axis.back((down(0) - y) / (down(0) - down(1))).toPrecision(4));
  return setFilter(column.key, { least: bound(low), most: bound(high) });
}

// The shown run whose line passes within a few pixels of (x, y), or null.
function nearestLine(x, y) {
  const right = lines.axes.findIndex((axis) => axis.x >= x);
  if (right < 1) return null;
  const [a, b] = [lines.axes[right - 1], lines.axes[right]];
  const share = (x - a.x) / (b.x - a.x);
  let [best, least] = [null, 6];
  for (const i of lines.shown) {
    const far = Math.abs(heightOf(a, i) + share * (heightOf(b, i) - heightOf(a, i)) - y);
    if (far < least) [best, least] = [i, far];
  }
  return best;
}
