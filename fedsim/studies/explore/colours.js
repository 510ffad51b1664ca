// Colours that are told apart with any colour vision, each group with a symbol and a dash of its own besides.

const HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1"];
const HUES_DARK = ["#4aa8e0", "#ff8b3d", "#2cc295", "#e59bc4", "#f2bf4b", "#9ad4f5", "#b79ad6"];
const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "triangle-down", "star", "hexagon"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
// Viridis (van der Walt and Smith 2015): even in lightness for all; the end that is close to the page's own shade is left out.
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const MOST_GROUPS = 10;
const STEPS = 8; // numbers up to which each has a colour and a symbol of its own

const probe = make("span", { hidden: true });
document.body.append(probe);

// A colour of page.css as the reader's light or dark has it.
function ink(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function isDark() {
  const chosen = document.documentElement.style.colorScheme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const scaleStops = () => (isDark() ? VIRIDIS.slice(3) : VIRIDIS.slice(0, 8));

// A colour between the ends of the scale, share from 0 to 1.
function between(share) {
  const stops = scaleStops();
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const channels = [1, 3, 5].map((from) => {
    const [a, b] = [stops[low], stops[low + 1]].map((stop) => parseInt(stop.slice(from, from + 2), 16));
    return Math.round(a + (b - a) * (at - low));
  });
  return `rgb(${channels.join(",")})`;
}

// How runs are coloured now: groups (label, colour, symbol, dash) and the group of run i, or one scale and the share of run i.
function colouring() {
  const column = COLUMNS.get(state.colour);
  if (!column) return grouped([{ label: null, colour: hue(0), symbol: "circle", dash: "solid" }], () => 0);
  const none = { label: `no ${column.label}`, colour: ink("soft"), symbol: "x", dash: "solid", none: true };
  if (column.numeric && column.distinct.length > STEPS) return scaled(column, none);
  const levels = column.numeric ? column.distinct : commonest(column);
  const groups = levels.map((level, n) => ({
    label: valueText(column, level),
    colour: column.numeric ? between(levels.length > 1 ? n / (levels.length - 1) : 0) : hue(n),
    symbol: SYMBOLS[n % SYMBOLS.length],
    dash: DASHES[n % DASHES.length],
  }));
  const place = new Map(levels.map((level, n) => [level, n]));
  const left = column.distinct.length - levels.length;
  if (left) groups.push({ ...none, label: `${left} others`, symbol: "circle-open" });
  if (column.missing) groups.push(none);
  return grouped(groups, (i) => {
    const value = valueOf(column, i);
    return value === null ? groups.length - 1 : (place.get(value) ?? levels.length);
  }, column);
}

// The texts that most runs have, as many as can be told apart, in their own order.
function commonest(column) {
  if (column.levels.length <= MOST_GROUPS) return column.levels;
  const counts = new Array(column.levels.length).fill(0);
  for (const place of column.values) if (place !== null) counts[place] += 1;
  const most = counts.map((_, n) => n).sort((a, b) => counts[b] - counts[a] || a - b).slice(0, MOST_GROUPS);
  return most.sort((a, b) => a - b).map((n) => column.levels[n]);
}

function grouped(groups, groupOf, column = null) {
  return { column, groups, groupOf, scale: null, colourOf: (i) => groups[groupOf(i)].colour };
}

function scaled(column, none) {
  const log = isLog("colour") && column.least > 0;
  const bend = log ? Math.log10 : (value) => value;
  const [from, to] = [bend(column.least), bend(column.most)];
  const shareOf = (i) => (valueOf(column, i) === null ? null : (bend(valueOf(column, i)) - from) / (to - from || 1));
  const groups = [{ label: column.label, colour: between(0.5), symbol: "circle", dash: "solid" }, none];
  return {
    column,
    groups,
    groupOf: (i) => (shareOf(i) === null ? 1 : 0),
    scale: { from, to, log, shareOf },
    colourOf: (i) => (shareOf(i) === null ? none.colour : between(shareOf(i))),
  };
}

const hue = (n) => (isDark() ? HUES_DARK : HUES)[n % HUES.length];

// Text for plotly, which reads a few tags and entities in what it is given.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 26) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
