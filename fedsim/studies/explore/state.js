// What is shown: filters, axes, selection. It lies in the URL's hash, so that a link shows the same view again.

const ID_TO_RUN = new Map(RUNS.map((run, i) => [run.id, i]));
const state = fresh();

function fresh() {
  const y = ["accuracy", "loss"].find((key) => COLUMNS.has(key)) ?? FIGURES[0]?.key ?? SETTINGS[0]?.key ?? null;
  const varied = SETTINGS.filter((column) => column.distinct.length > 1 && column.label !== "seed");
  const numbers = varied.filter((column) => column.numeric);
  const promises = [COLUMNS.get("config.privacy.epsilon"), COLUMNS.get("epsilon")].filter((column) => column?.distinct.length > 1);
  const x =
    promises[0] ?? numbers[0] ?? varied[0] ?? COLUMNS.get("seconds") ?? COLUMNS.get(y) ?? null;
  const rest = varied.filter((column) => column !== x && !column.label.startsWith("privacy"));
  const others = varied.filter((column) => column !== x);
  const colour = [...rest, ...others].find((column) => column.few) ?? others[0] ?? null;
  return {
    search: "",
    filters: new Map(), // key -> {values: Set of values, null among them for missing} or {least, most}
    x: x?.key ?? null,
    y,
    colour: colour?.key ?? null,
    facet: null,
    log: { x: null, y: null, colour: null, curve: null }, // null: as the column has it
    means: null, // lines through the means; null: where x has few numbers
    curve: DATA.curves.names[0] ?? null,
    sort: y ? { key: y, down: y !== "loss" } : { key: null, down: false },
    selected: new Set(), // of runs
  };
}

const isLog = (axis) => state.log[axis] ?? (axis !== "curve" && Boolean(COLUMNS.get(state[axis])?.wide));

function toHash() {
  const plain = fresh();
  const hash = new URLSearchParams();
  if (state.search) hash.set("q", state.search);
  for (const name of ["x", "y", "colour", "facet", "curve"]) {
    if (state[name] !== plain[name]) hash.set(name, state[name] ?? "");
  }
  for (const [axis, on] of Object.entries(state.log)) if (on !== null) hash.set(`log.${axis}`, on ? "1" : "0");
  if (state.means !== null) hash.set("means", state.means ? "1" : "0");
  for (const [key, filter] of state.filters) {
    for (const value of filter.values ?? []) value === null ? hash.set(`none.${key}`, "1") : hash.append(`is.${key}`, value);
    if (filter.least !== undefined) hash.set(`least.${key}`, filter.least);
    if (filter.most !== undefined) hash.set(`most.${key}`, filter.most);
  }
  if (state.sort.key !== plain.sort.key || state.sort.down !== plain.sort.down) {
    hash.set("sort", `${state.sort.down ? "-" : ""}${state.sort.key ?? ""}`);
  }
  if (state.selected.size) hash.set("selected", [...state.selected].map((i) => RUNS[i].id).join("."));
  return hash.toString();
}

// Take the view from a hash; what it names and this page does not have is left out.
function fromHash(text) {
  Object.assign(state, fresh());
  const hash = new URLSearchParams(text.replace(/^#/, ""));
  state.search = hash.get("q") ?? "";
  for (const name of ["x", "y", "colour", "facet"]) {
    const key = hash.get(name);
    if (key !== null && (COLUMNS.has(key) || (key === "" && name !== "x" && name !== "y"))) state[name] = key || null;
  }
  if (state.facet && !isSided(COLUMNS.get(state.facet))) state.facet = null;
  if (DATA.curves.names.includes(hash.get("curve"))) state.curve = hash.get("curve");
  for (const axis of Object.keys(state.log)) if (hash.has(`log.${axis}`)) state.log[axis] = hash.get(`log.${axis}`) === "1";
  if (hash.has("means")) state.means = hash.get("means") === "1";
  for (const [name, value] of hash) filterFromHash(name, value);
  const sort = hash.get("sort");
  if (sort !== null) state.sort = { key: sort.replace(/^-/, "") || null, down: sort.startsWith("-") };
  for (const id of (hash.get("selected") ?? "").split(".")) if (ID_TO_RUN.has(id)) state.selected.add(ID_TO_RUN.get(id));
}

function filterFromHash(name, value) {
  const [, kind, key] = name.match(/^(is|none|least|most)\.(.+)$/) ?? [];
  const column = COLUMNS.get(key);
  if (!column) return;
  const filter = state.filters.get(key) ?? {};
  if (kind === "least" || kind === "most") {
    if (value === "" || !Number.isFinite(Number(value))) return;
    filter[kind] = Number(value);
  } else {
    filter.values ??= new Set();
    filter.values.add(kind === "none" ? null : column.numeric ? Number(value) : value);
  }
  state.filters.set(key, filter);
}

function passes(filter, column, i) {
  const value = valueOf(column, i);
  if (filter.values) return filter.values.has(value);
  if (value === null) return false; // a run without the figure is not known to lie between two bounds
  const place = column.numeric ? value : placeOf(column, i);
  return !(place < (filter.least ?? -Infinity)) && !(place > (filter.most ?? Infinity));
}

// The runs that pass all filters, and for each key the runs that pass all others: what a choice of it would give.
function filtered() {
  const filters = [...state.filters].map(([key, filter]) => [key, filter, COLUMNS.get(key)]);
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = [];
  const butFor = new Map(filters.map(([key]) => [key, []]));
  for (let i = 0; i < COUNT; i += 1) {
    if (!words.every((word) => SEARCHED[i].includes(word))) continue;
    const failed = filters.filter(([, filter, column]) => !passes(filter, column, i));
    if (failed.length === 0) shown.push(i);
    for (const [key] of filters) if (failed.length === 0 || (failed.length === 1 && failed[0][0] === key)) butFor.get(key).push(i);
  }
  return { shown, butFor };
}
