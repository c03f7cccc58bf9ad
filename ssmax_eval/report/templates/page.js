"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const RESULTS = ["right", "first token only", "wrong", "no score"];
const PAGE = 50;

function element(name, text, kind) {  // model output is data: it goes in as text only
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}
const number = n => n.toLocaleString("en");

// series: hidden everywhere at once, in tables, cards and figures
const hidden = new Set();
document.querySelectorAll("input[data-series]").forEach(box => {
  box.checked = true;
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(box.dataset.series); else hidden.add(box.dataset.series);
    document.querySelectorAll("." + box.dataset.series).forEach(node => node.classList.toggle("off", !box.checked));
    draw();
  });
});

// downloads
function save(name, parts, type) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob(parts, {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
function source(figure) {
  const svg = figure.querySelector("svg").cloneNode(true);
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  svg.querySelectorAll(".off").forEach(node => node.remove());
  return new XMLSerializer().serializeToString(svg);
}
document.querySelectorAll("figure[data-name]").forEach(figure => {
  const tools = element("div", undefined, "tools");
  const as = (kind, act) => {
    const button = element("button", kind, "tool");
    button.type = "button";
    button.setAttribute("aria-label", `Save figure ${figure.dataset.name} as ${kind}`);
    button.addEventListener("click", act);
    tools.append(button);
  };
  as("SVG", () => save(figure.dataset.name + ".svg", [source(figure)], "image/svg+xml"));
  as("PNG", () => {
    const svg = figure.querySelector("svg"), box = svg.viewBox.baseVal, image = new Image();
    image.onload = () => {
      const canvas = element("canvas");
      canvas.width = 3 * box.width;
      canvas.height = 3 * box.height;
      const brush = canvas.getContext("2d");
      brush.fillStyle = "#fff";
      brush.fillRect(0, 0, canvas.width, canvas.height);
      brush.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(blob => save(figure.dataset.name + ".png", [blob], "image/png"));
    };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(source(figure));
  });
  figure.append(tools);
});

// prompts: filtered, sorted, a page at a time
const filters = {};
const sorting = {column: "length", down: false};
let shown = PAGE;

function unpack(prompt, answer) {
  if (!answer) return null;
  const [state, nll, predicted = 0, ranks = 0, tokens = 0, cause = 0, attention = 0, error = 0] = answer;
  const expected = prompt[7] || null;  // 0 below: as expected; null: none
  return {
    state, nll, expected, error: error || null, attention: attention || null, cause: cause ? data.causes[cause - 1] : null,
    predicted: predicted === 0 ? prompt[6] : predicted,
    ranks: ranks === 0 ? expected && Array(expected.length).fill(0) : ranks, tokens: tokens === 0 ? expected : tokens,
  };
}
const task = () => data.tasks[filters.task ? +filters.task.value : 0];
function answersOf(i) {
  return task().series.map(series => ({series, answer: unpack(task().prompts[i], series.answers[i])}));
}
function kept() {
  const {prompts, series} = task(), seen = series.filter(each => !hidden.has(each.key));
  const states = i => seen.map(each => each.answers[i] ? each.answers[i][0] : null);
  const want = {
    all: () => true,
    wrong: i => states(i).some(state => state === 1 || state === 2),
    differ: i => new Set(states(i).filter(state => state !== null).map(state => state === 0)).size > 1,
    failed: i => states(i).some(state => state === 3),
  }[filters.result.value];
  const fits = (filter, value) => filter.value === "" || +filter.value === value;
  const text = filters.text.value.trim().toLowerCase();
  const holds = i => !text || [prompts[i][4], prompts[i][5], prompts[i][6], ...seen.map(each => (each.answers[i] || [])[2])].some(each => typeof each === "string" && each.toLowerCase().includes(text));
  const picked = [...prompts.keys()].filter(i => fits(filters.length, prompts[i][0]) && fits(filters.depth, prompts[i][1]) && want(i) && holds(i));
  const places = {length: 0, depth: 1, trial: 2, expected: 6};
  const own = series.find(each => each.key === sorting.column);
  const value = i => own ? (own.answers[i] ? (own.answers[i][0] === 3 ? Infinity : own.answers[i][1] ?? own.answers[i][0]) : Infinity) : prompts[i][places[sorting.column]];
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b) || 0;
  picked.sort((i, j) => (sorting.down ? -1 : 1) * compare(value(i), value(j)) || i - j);
  return picked;
}
function tokensOf(answer) {
  const line = element("div");
  answer.tokens.forEach((token, k) => {
    const right = !answer.ranks[k];
    const box = element("span", token, "tok" + (right ? "" : " no"));
    const notes = [];
    if (!right) notes.push(`rank of ${JSON.stringify(answer.expected?.[k])}: ${answer.ranks[k]}`);
    if (answer.attention) notes.push(`${answer.attention[0][k]}% on the answer`);
    box.title = notes.join("; ");
    const small = [];
    if (!right) small.push("r" + answer.ranks[k]);
    if (answer.attention) small.push(answer.attention[0][k] + "%");
    if (small.length) box.append(" ", element("small", small.join(" ")));
    line.append(box);
  });
  return line;
}
function result(answer) {
  // a partial answer as it is: 5 of 7 digits are not "the first token only"
  const partial = (answer.state === 1 || answer.state === 2) && Array.isArray(answer.ranks);
  return partial ? `${answer.ranks.filter((rank) => rank === 0).length} of ${answer.ranks.length} tokens right` : RESULTS[answer.state];
}

function attentionOf([, layer, head, answer, needle, first, question, at, total], prompt) {
  const parts = [["answer", answer], ["needle besides", needle], ["first token", first], ["question", question]];
  const sum = total === undefined ? 100 : total, rest = Math.max(0, sum - answer - needle - first - question);
  const line = element("div"), bar = element("div", undefined, "attention");
  parts.forEach(([, share], k) => { const piece = element("span", undefined, "a" + k); piece.style.width = share + "%"; bar.append(piece); });
  bar.setAttribute("role", "img");
  const text = parts.map(([name, share]) => `${name} ${share}%`).join(", ") + `, elsewhere ${rest}%` + (total === undefined ? "" : `, of a row that sums to ${sum}%`);
  bar.setAttribute("aria-label", text);
  line.append(bar, element("small", `head ${layer}.${head}: ${text}; most at token ${number(at)} of ${number(prompt[0])}`, "soft"));
  return line;
}
function cellOf(answer, prompt) {
  const cell = element("td", undefined, "answer");
  if (!answer) { cell.textContent = "–"; return cell; }
  const verdict = element("div", answer.state === 3 ? answer.error || "no score" : result(answer), answer.state === 0 ? "yes" : "no");
  if (answer.cause) verdict.append(element("span", ` · ${answer.cause}`, "soft"));
  if (typeof answer.nll === "number") verdict.append(element("span", ` · nll ${answer.nll.toFixed(2)}`, "soft"));
  cell.append(verdict);
  if (answer.tokens && answer.ranks) cell.append(tokensOf(answer));
  else if (answer.predicted !== null) cell.append(element("code", answer.predicted), answer.ranks ? ` ranks ${answer.ranks.join(" ")}` : "");
  if (answer.attention) cell.append(attentionOf(answer.attention, prompt));
  return cell;
}
function draw() {
  if (!data.tasks.length) return;
  const picked = kept(), {series, prompts} = task();
  const head = element("tr");
  const columns = [["length", "length"], ["depth", "depth %"], ["trial", "trial"], [null, "needle, question"], ["expected", "expected"]];
  series.filter(each => !hidden.has(each.key)).forEach(each => columns.push([each.key, each.name]));
  columns.forEach(([key, label]) => {
    const cell = element("th");
    cell.scope = "col";
    if (!key) cell.textContent = label;
    else {
      const button = element("button", label + (sorting.column === key ? (sorting.down ? " ▼" : " ▲") : ""));
      button.type = "button";
      cell.setAttribute("aria-sort", sorting.column === key ? (sorting.down ? "descending" : "ascending") : "none");
      button.addEventListener("click", () => {
        sorting.down = sorting.column === key && !sorting.down;
        sorting.column = key;
        draw();
      });
      cell.append(button);
    }
    head.append(cell);
  });
  const lines = picked.slice(0, shown).map(i => {
    const line = element("tr"), prompt = prompts[i];
    const asked = element("td", prompt[4] || "no needle");
    asked.dir = "auto";  // a needle of any script
    asked.append(element("br"), element("span", prompt[5], "soft"), element("br"), element("code", prompt[8], "soft"));
    line.append(element("td", number(prompt[0])), element("td", `${prompt[1]}${prompt[3] === null ? "" : ` (${prompt[3]})`}`), element("td", prompt[2]), asked, element("td", prompt[6]));
    answersOf(i).filter(each => !hidden.has(each.series.key)).forEach(each => line.append(cellOf(each.answer, prompt)));
    columns.forEach(([, label], k) => { line.cells[k].dataset.label = label; });  // where a line is a card, on a narrow screen
    return line;
  });
  const table = $("prompts").querySelector("table");
  const scrolled = table.parentNode.scrollLeft;
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...lines);
  table.parentNode.scrollLeft = scrolled;
  $("count").textContent = `${number(picked.length)} prompts` + (prompts.length < task().asked ? " on this page" : "") + (picked.length > shown ? `, the first ${number(shown)} shown` : "");
  $("more").hidden = picked.length <= shown;
}
function options(select, values, label) {
  const chosen = select.value;
  select.replaceChildren(new Option(label, ""), ...values.map(value => new Option(number(value), value)));
  if ([...select.options].some(option => option.value === chosen)) select.value = chosen;
}
function refill() {
  const values = place => [...new Set(task().prompts.map(prompt => prompt[place]))].sort((a, b) => a - b);
  options(filters.length, values(0), "all lengths");
  options(filters.depth, values(1), "all depths");
}
if (data.tasks.length) {
  for (const name of ["task", "length", "depth", "result", "text"]) filters[name] = $("filter-" + name);
  filters.text.addEventListener("input", () => { shown = PAGE; draw(); });
  Object.values(filters).forEach(select => select.addEventListener("change", () => {
    if (select === filters.task) refill();
    shown = PAGE;
    draw();
  }));
  $("more").addEventListener("click", () => { shown += PAGE; draw(); });
  $("csv").addEventListener("click", () => {
    const quote = value => {
      const text = value === null || value === undefined ? "" : Array.isArray(value) ? value.join(" ") : String(value);
      const safe = /^[=+\-@\t\r]/.test(text) && isNaN(+text) ? "'" + text : text;  // a spreadsheet must not run a model's output
      return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    const names = "task series context_length depth_percent trial realised_depth_percent expected predicted correct result answer_nll answer_ranks cause prompt_sha256 error".split(" ");
    const lines = [names.join(",")];
    data.tasks.forEach(each => each.series.forEach(series => each.prompts.forEach((prompt, i) => {
      const answer = unpack(prompt, series.answers[i]);
      if (answer) lines.push([each.heading, series.name, prompt[0], prompt[1], prompt[2], prompt[3], prompt[6], answer.predicted, answer.state === 3 ? null : answer.state === 0, result(answer), answer.nll, answer.ranks, answer.cause, prompt[8], answer.error].map(quote).join(","));
    })));
    save("prompts.csv", [lines.join("\n") + "\n"], "text/csv");
  });
  const cells = [...document.querySelectorAll("button[data-length]")];
  const addressOf = ({dataset}) => `#cell/${dataset.task}/${dataset.length}/${dataset.depth}`;  // a link to a cell opens it
  cells.forEach(button => button.addEventListener("click", () => {
    location.hash = addressOf(button);
    document.querySelectorAll("button[data-length][aria-pressed=true]").forEach(other => other.setAttribute("aria-pressed", "false"));
    button.setAttribute("aria-pressed", "true");
    filters.task.value = button.dataset.task;
    refill();
    for (const name of ["length", "depth"])  // as numbers: the two are written in two languages
      filters[name].value = [...filters[name].options].find(option => option.value !== "" && +option.value === +button.dataset[name])?.value ?? "";
    filters.result.value = "all";
    filters.text.value = "";
    shown = PAGE;
    draw();
    $("all-prompts").open = true;
    $("prompts").scrollIntoView({block: "start"});
    $("prompts").focus({preventScroll: true});
  }));
  refill();
  draw();
  cells.find(button => addressOf(button) === location.hash)?.click();
}
// what is wider than its box says so
const wide = new ResizeObserver(entries => entries.forEach(({target}) => target.classList.toggle("wide", target.scrollWidth > target.clientWidth + 4)));
document.querySelectorAll(".paper, .scroll, .card").forEach(box => wide.observe(box));

// a printed page shows what is folded away, each thing once
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.raw, .again)").forEach(each => { each.open = true; }));
