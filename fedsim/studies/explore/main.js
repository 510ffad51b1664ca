// Puts the page together: every change of `state` is followed by `redraw`.

let waiting = false;

function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawAll();
    const hash = toHash();
    if (location.hash.replace(/^#/, "") !== hash) history.replaceState(null, "", hash ? `#${hash}` : "#");
  });
}

function drawAll() {
  const found = filtered();
  const sorted = sortedRuns(found.shown);
  byId("counts").textContent = countWords(found.shown.length);
  drawFilters(found);
  drawChoices();
  drawScatter(found.shown);
  drawCurves(sorted);
  drawParallel(found.shown);
  drawTable(sorted);
  pointed ??= sorted[0] ?? null;
  drawCard();
}

function countWords(shown) {
  const all = plural(COUNT, "run");
  const words = [shown === COUNT ? all : `${shown.toLocaleString("en")} of ${all}`];
  if (DATA.left_out.length) words.push(`${DATA.left_out.length.toLocaleString("en")} not finished, left out`);
  if (state.selected.size) words.push(`${state.selected.size.toLocaleString("en")} selected`);
  return words.join(" · ");
}

function drawNotes() {
  const notes = [];
  const names = COLUMNS.get("experiment")?.levels ?? [];
  if (names.length > 1) {
    notes.push(make("p", { class: "note" }, `Runs of ${names.length} experiments lie side by side here: what they measure is not comparable unless data and task are the same. Filter by experiment to see one.`));
  }
  if (COUNT === 1) notes.push(make("p", { class: "note" }, "This is one run: no setting differs."));
  else if (!SETTINGS.length) notes.push(make("p", { class: "note" }, "No setting differs between these runs, or they do not tell their configuration."));
  if (DATA.left_out.length) {
    const items = DATA.left_out.slice(0, 200).map((name) => make("li", {}, name));
    notes.push(make("details", { class: "note", id: "left-out" }, make("summary", {}, `${plural(DATA.left_out.length, "folder")} left out: begun and not finished`), make("ul", {}, ...items)));
  }
  byId("notes").replaceChildren(...notes);
}

function themeWords() {
  byId("theme").textContent = isDark() ? "Light" : "Dark";
}

function switchTheme() {
  document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
  themeWords();
  redraw();
}

function start() {
  fromHash(location.hash);
  drawNotes();
  buildFilters();
  buildAxes();
  buildCurves();
  buildTable();
  byId("search").addEventListener("input", (event) => {
    state.search = event.target.value;
    rowsShown = ROWS;
    redraw();
  });
  byId("theme").addEventListener("click", switchTheme);
  byId("share").addEventListener("click", (event) => copy(location.href, event.currentTarget));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    themeWords();
    redraw();
  });
  addEventListener("hashchange", () => {
    fromHash(location.hash);
    redraw();
  });
  addEventListener("resize", redraw);
  themeWords();
  drawAll();
  listenToScatter();
  listenToCurves();
  listenToParallel();
}

start();
