// One run in words: the box at the pointer, the card that keeps the run last pointed at, its report and its command.

const TIP_SETTINGS = 12;
let pointed = null;

// Figures told of a run: those of the table, and what the axes show.
function toldFigures() {
  const keys = new Set([...DATA.table, state.y, state.x, state.colour]);
  return FIGURES.filter((column) => keys.has(column.key));
}

function rowsOf(columns, i) {
  return columns.flatMap((column) => [make("dt", {}, column.label), make("dd", {}, valueText(column, valueOf(column, i)))]);
}

function pairsOf(columns, i) {
  return columns.map((column) => make("div", {}, ...rowsOf([column], i)));
}

// The box beside the pointer (clientX, clientY); extra: a line more, of the point itself.
function showTip(i, clientX, clientY, extra = "") {
  const tip = byId("tip");
  const more = SETTINGS.length - TIP_SETTINGS;
  tip.replaceChildren(
    make("strong", {}, RUNS[i].name),
    extra ? make("p", {}, extra) : "",
    make("dl", {}, ...rowsOf(SETTINGS.slice(0, TIP_SETTINGS), i)),
    more > 0 ? make("p", { class: "soft" }, `and ${plural(more, "setting")} more below`) : "",
    make("dl", { class: "figures" }, ...rowsOf(toldFigures(), i)),
    make("p", { class: "soft" }, RUNS[i].href ? "Click: its report · Shift+click: select" : "It has no report · Shift+click: select"),
  );
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = clientX + 16 + width > innerWidth ? clientX - width - 16 : clientX + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(clientY + 12, innerHeight - height - 4))}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

// Keep run i in the card under the plot.
function keep(i) {
  pointed = i;
  drawCard();
}

function drawCard() {
  const card = byId("run");
  if (pointed === null) return;
  const run = RUNS[pointed];
  const chosen = state.selected.has(pointed);
  keepingFocus(card, () => card.replaceChildren(
    make("div", { class: "choices" }, make("h2", {}, run.name), reportLink(run), copyButton(run),
      make("button", { type: "button", "data-focus": "card", "aria-pressed": String(chosen), onclick: () => toggle(pointed) }, chosen ? "Selected" : "Select")),
    run.command ? make("pre", { tabindex: "0" }, run.command) : make("p", { class: "soft" }, "The run does not tell its command."),
    make("dl", { class: "facts" }, ...pairsOf([...SETTINGS, ...FIGURES], pointed)),
  ));
}

// Draw a part of the page anew, without taking the keyboard away from what it had in it.
function keepingFocus(part, draw) {
  const key = part.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  draw();
  if (key) part.querySelector(`[data-focus="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

function reportLink(run, words = "Open its report") {
  if (!run.href) return make("span", { class: "soft" }, "no report");
  return make("a", { href: run.href, target: "_blank", rel: "noopener", class: "report" }, words);
}

function openReport(i) {
  if (RUNS[i].href) reportLink(RUNS[i]).click();
  else say(`${RUNS[i].name} has no report`);
}

function copyButton(run, words = "Copy the command that repeats it") {
  return make("button", {
    type: "button", disabled: !run.command, title: run.command || "the run does not tell its command",
    "aria-label": `Copy the command that repeats ${run.name}`, onclick: (event) => copy(run.command, event.currentTarget),
  }, words);
}

async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not every browser lets a file from disk write to the clipboard by this way
    const field = make("textarea", { readonly: true, class: "aside" }, text);
    document.body.append(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
  }
  say(done ? "Copied" : `This browser refused; copy it by hand: ${text}`);
  if (!button) return;
  const before = button.textContent;
  if (before === "Copied" || !done) return;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1200);
}

// For those who listen; shown at the foot of the window for a moment, too.
function say(text) {
  const box = byId("said");
  box.textContent = text;
  box.classList.add("now");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => box.classList.remove("now"), 2500);
}

function toggle(i) {
  if (!state.selected.delete(i)) state.selected.add(i);
  say(`${RUNS[i].name} ${state.selected.has(i) ? "selected" : "no longer selected"}`);
  redraw();
}
