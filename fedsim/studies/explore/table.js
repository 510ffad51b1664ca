// The runs that pass the filters, as a table that any column sorts.

const ROWS = 100;
let rowsShown = ROWS;

// Sorted by the chosen column; what is missing comes last, whichever way.
function sortedRuns(shown) {
  const { key, down } = state.sort;
  const column = COLUMNS.get(key);
  if (!column && key !== "name") return shown;
  const at = column ? (i) => placeOf(column, i) : (i) => RUNS[i].name;
  return [...shown].sort((a, b) => {
    const [left, right] = [at(a), at(b)];
    if (left === null || right === null) return (left === null) - (right === null) || a - b;
    const order = left < right ? -1 : left > right ? 1 : 0;
    return (down ? -order : order) || a - b;
  });
}

function sortBy(key) {
  const column = COLUMNS.get(key);
  const same = state.sort.key === key;
  state.sort = { key, down: same ? !state.sort.down : Boolean(column?.role === "figure") };
  redraw();
}

function buildTable() {
  const inside = { tabindex: "0", role: "region", "aria-label": "Table of runs" };
  byId("table").append(
    make("div", { class: "choices" }, make("h2", { id: "rows-said" })),
    make("div", { class: "scroll", ...inside }, make("table", {}, make("thead", { id: "head" }), make("tbody", { id: "rows" }))),
    make("button", { type: "button", id: "more", onclick: showMore }),
  );
}

function heading(key, words, numeric = false) {
  const { sort } = state;
  const mark = sort.key === key ? (sort.down ? " ▼" : " ▲") : "";
  const button = make("button", { type: "button", onclick: () => sortBy(key), "data-focus": `sort ${key}` }, words + mark);
  const order = sort.key !== key ? "none" : sort.down ? "descending" : "ascending";
  return make("th", { scope: "col", "aria-sort": order, class: numeric ? "number" : "" }, button);
}

function drawTable(sorted) {
  const columns = [...SETTINGS, ...toldFigures()];
  const head = make("tr", {}, make("th", { scope: "col" }, make("span", { class: "hidden" }, "Selected")), heading("name", "run"),
    ...columns.map((column) => heading(column.key, column.label, column.numeric)), make("th", { scope: "col" }, "command"));
  keepingFocus(byId("table"), () => {
    byId("head").replaceChildren(head);
    byId("rows").replaceChildren(...sorted.slice(0, rowsShown).map((i) => rowOf(i, columns)));
  });
  const left = sorted.length - rowsShown;
  byId("rows-said").textContent = sorted.length ? plural(sorted.length, "run") : "No run passes these filters";
  byId("more").hidden = left <= 0;
  byId("more").textContent = `Show ${Math.min(left, ROWS)} more of ${left.toLocaleString("en")}`;
}

function showMore() {
  rowsShown += ROWS;
  redraw();
}

function rowOf(i, columns) {
  const run = RUNS[i];
  const box = make("input", {
    type: "checkbox", checked: state.selected.has(i), "data-focus": `box ${run.id}`, "aria-label": `Select ${run.name}`, onchange: () => toggle(i),
  });
  const name = run.href ? reportLink(run, run.name) : make("span", {}, run.name);
  const cells = columns.map((column) => {
    const value = valueOf(column, i);
    return make("td", { class: value === null ? "missing" : column.numeric ? "number" : "" }, valueText(column, value));
  });
  const row = make("tr", { "data-run": run.id }, make("td", {}, box), make("th", { scope: "row", title: run.href ? run.name : `${run.name} (no report)` }, name), ...cells,
    make("td", {}, copyButton(run, "Copy")));
  row.classList.toggle("selected", state.selected.has(i));
  row.addEventListener("pointerenter", () => circle(i));
  row.addEventListener("pointerleave", leaveScatter);
  row.addEventListener("focusin", () => keep(i));
  return row;
}
