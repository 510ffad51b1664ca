// The filters beside the page: every setting that differs, value by value or by bounds, and bounds for the figures.

const panels = new Map();

function buildFilters() {
  const box = byId("filters");
  for (const column of SETTINGS) box.append(panel(column));
  if (FIGURES.length) {
    const bounds = FIGURES.filter((column) => column.distinct.length > 1).map(panel);
    box.append(make("details", { id: "figure-filters" }, make("summary", {}, "Figures"), ...bounds));
  }
  box.append(make("button", { type: "button", id: "reset", onclick: resetFilters }, "Clear all filters"));
}

function panel(column) {
  const byValue = column.role === "setting" && (column.few || !column.numeric);
  const body = byValue ? valueChips(column) : boundFields(column);
  const fieldset = make("fieldset", { "data-key": column.key }, make("legend", {}, column.label), body);
  panels.set(column.key, fieldset);
  return fieldset;
}

function valueChips(column) {
  const values = [...column.distinct, ...(column.missing ? [null] : [])];
  const chips = values.map((value) => {
    const box = make("input", { type: "checkbox", onchange: (event) => pick(column.key, value, event.target.checked) });
    box.value = value === null ? "" : String(value);
    const words = value === null ? `${DASH} none` : short(valueText(column, value), 40);
    const chip = make("label", { class: "chip", title: value === null ? "no value" : valueText(column, value) }, box, words, make("b", {}));
    chip.wanted = value;
    return chip;
  });
  return make("div", { class: values.length > 24 ? "chips many" : "chips" }, ...chips);
}

function boundFields(column) {
  const field = (which, words) => {
    const bound = valueText(column, column[which]);
    const input = make("input", {
      type: "number", step: "any", placeholder: String(Number((column[which] ?? 0).toPrecision(4))), "data-bound": which,
      "aria-label": `${column.label}, ${words} (${bound})`,
    });
    input.addEventListener("change", () => setBound(column.key, which, input.value));
    return input;
  };
  return make("div", { class: "bounds" }, field("least", "at least"), DASH, field("most", "at most"));
}

function pick(key, value, on) {
  const values = new Set(state.filters.get(key)?.values ?? []);
  on ? values.add(value) : values.delete(value);
  setFilter(key, values.size ? { values } : null);
}

function setBound(key, which, text) {
  const filter = { ...state.filters.get(key) };
  delete filter.values;
  if (text === "" || !Number.isFinite(Number(text))) delete filter[which];
  else filter[which] = Number(text);
  setFilter(key, filter.least === undefined && filter.most === undefined ? null : filter);
}

function setFilter(key, filter) {
  filter ? state.filters.set(key, filter) : state.filters.delete(key);
  redraw();
}

function resetFilters() {
  state.filters.clear();
  state.search = "";
  redraw();
}

// Counts beside the values: how many runs a choice would show, given all other filters.
function drawFilters({ shown, butFor }) {
  const search = byId("search");
  if (search.value !== state.search) search.value = state.search;
  for (const [key, fieldset] of panels) {
    const column = COLUMNS.get(key);
    const filter = state.filters.get(key);
    fieldset.classList.toggle("active", Boolean(filter));
    for (const input of fieldset.querySelectorAll("[data-bound]")) {
      if (document.activeElement !== input) input.value = filter?.[input.dataset.bound] ?? "";
    }
    const chips = fieldset.querySelectorAll(".chip");
    if (!chips.length) continue;
    const counts = new Map();
    for (const i of butFor.get(key) ?? shown) counts.set(valueOf(column, i), (counts.get(valueOf(column, i)) ?? 0) + 1);
    for (const chip of chips) {
      const count = counts.get(chip.wanted) ?? 0;
      chip.firstChild.checked = Boolean(filter?.values?.has(chip.wanted));
      chip.lastChild.textContent = count.toLocaleString("en");
      chip.classList.toggle("empty", count === 0);
    }
  }
  const figures = byId("figure-filters");
  if (figures && FIGURES.some((column) => state.filters.has(column.key))) figures.open = true;
  byId("reset").hidden = state.filters.size === 0 && !state.search;
}
