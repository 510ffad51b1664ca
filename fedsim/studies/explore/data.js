// What the page holds: columns with a value for each run, and how values are written. Missing is null and shown as a dash.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const COUNT = RUNS.length;
const DASH = "–";
const FEW = 12; // values of a column that can be chosen one by one

const COLUMNS = new Map(DATA.columns.map((column) => [column.key, prepared(column)]));
const SETTINGS = [...COLUMNS.values()].filter((column) => column.role === "setting");
const FIGURES = [...COLUMNS.values()].filter((column) => column.role === "figure");

function prepared(column) {
  const numeric = !column.levels;
  const known = column.values.filter((value) => value !== null);
  const distinct = numeric ? [...new Set(known)].sort((a, b) => a - b) : column.levels;
  const [least, most] = numeric ? [distinct[0], distinct[distinct.length - 1]] : [0, distinct.length - 1];
  return {
    ...column,
    numeric,
    distinct,
    least,
    most,
    missing: known.length < column.values.length,
    few: distinct.length <= FEW,
    whole: numeric && distinct.every(Number.isInteger),
    wide: numeric && least > 0 && most / least >= 50 && (column.role === "setting" || most > 1), // a logarithm shows it better
  };
}

// The value of run i: a number, a text, or null.
function valueOf(column, i) {
  const value = column.values[i];
  return value === null || column.numeric ? value : column.levels[value];
}

// Where run i lies on the column's axis: its number, or the place of its text among all; null where it is missing.
function placeOf(column, i) {
  return column.values[i];
}

function valueText(column, value) {
  if (value === null || value === undefined) return DASH;
  if (typeof value === "string") return value;
  if (column.role === "setting") return String(Number(value.toPrecision(7)));
  const name = column.key.split(".").pop();
  if (name === "epsilon") return numberText(roundedUp(value)); // a promise is never told smaller than it is
  if (name.startsWith("bytes")) return withUnit(value, ["B", "kB", "MB", "GB", "TB", "PB"]);
  if (name.endsWith("seconds")) return `${numberText(value)} s`;
  if (name.endsWith("_mb")) return withUnit(value * 1e6, ["B", "kB", "MB", "GB", "TB"]);
  return numberText(value);
}

// In four digits, never below the value.
function roundedUp(value) {
  const near = Number(value.toPrecision(4));
  return near >= value ? near : Number((near + 10 ** (Math.floor(Math.log10(value)) - 3)).toPrecision(4));
}

function numberText(value) {
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return Number(value.toPrecision(3)).toExponential();
  return String(Number(value.toPrecision(4)));
}

function withUnit(value, units) {
  let power = 0;
  while (Math.abs(value) >= 1000 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${Number(value.toPrecision(3))} ${units[power]}`;
}

// Of run i: all that a search looks through, in lower case.
const SEARCHED = RUNS.map((run, i) =>
  [run.name, ...SETTINGS.map((column) => `${column.label}=${valueText(column, valueOf(column, i))}`)].join(" ").toLowerCase(),
);

// An element with its text or children; texts are never read as HTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value === "boolean") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
