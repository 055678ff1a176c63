// One job.

import { Problem, ask, tell } from "./api.js";
import { Chart, figuresOf } from "./chart.js";
import { element, fillBar, find, say, showStatus, showText } from "./element.js";
import { bytes, count, counts, fullInstant, instant, percent, rate, span } from "./format.js";
import { poll } from "./poll.js";
import { Ranks } from "./ranks.js";

const GIVEN = location.pathname.split("/").at(-1);
const METRICS_S = 5;
const IDLE_S = 120;
const POINTS = 160; // a figure is some 500 pixels wide
const BROKEN = new Set(["failed", "crashed"]);
const AT_ONCE = 8; // names in one question for metrics

const charts = new Map(); // title -> Chart
const ranks = new Ranks(find("ranks"));
let API = GIVEN.length === 32 ? pathOf(GIVEN) : null;
let job = null;
let seenAt = 0;
let metricsAt = -Infinity;
let lastEvent = null;
const due = { events: true, log: true, metrics: true }; // until they are drawn, whatever failed meanwhile

const isFinal = () => job.ended !== null;
const elapsed = () => (isFinal() ? 0 : (performance.now() - seenAt) / 1000);

function pathOf(id) {
  return `/api/v1/jobs/${id}`;
}

// The one job whose id begins so.
async function whole(beginning) {
  const { body: { jobs } } = await ask(`/api/v1/jobs?id=${beginning}&limit=2`);
  if (jobs.length === 1) return jobs[0].id;
  const some = jobs.length ? "several jobs have" : "no job has";
  throw new Problem(404, `${some} an id that begins with ${beginning}`);
}

async function look() {
  API ??= pathOf(await whole(GIVEN));
  const { body, isNew } = await ask(API);
  if (isNew || job === null) {
    job = body;
    seenAt = performance.now();
    due.events = due.log = due.metrics = true;
    draw();
  }
  if (due.events) await drawEvents();
  if (due.log) await drawLog();
  if (due.metrics && (isFinal() || performance.now() - metricsAt > METRICS_S * 1000)) {
    await drawMetrics();
    due.metrics = false;
    metricsAt = performance.now();
  }
  if (job.ranks > 1) ranks.draw((await ask(`${API}/ranks`)).body.ranks, job.progress.unit);
  return job.poll_after_s;
}

function draw() {
  find("job").hidden = false;
  const far = percent(job.progress);
  document.title = `${far || job.status} ${job.kind} · Retort`;
  say(find("kind"), job.kind);
  showStatus(find("status"), job.status);
  say(find("id"), job.id);
  say(find("where"), `${job.host}, pid ${job.pid}`);
  fillBar(find("bar"), job.progress, `${far} ${counts(job.progress)}`);
  find("bar").dataset.status = job.status;
  find("cancel").hidden = isFinal() || job.status === "cancelling";
  drawTimes();
  pairs(find("config"), job.config);
  pairs(find("environment"), job.environment);
  drawArtifacts();
}

// What changes with time alone.
function drawTimes() {
  const server = Date.parse(job.heartbeat) + (job.heartbeat_age_s + elapsed()) * 1000;
  const until = isFinal() ? Date.parse(job.ended) : server;
  const facts = [
    ["Done", percent(job.progress), counts(job.progress)],
    ["Rate", rate(job.rate), job.progress.resumed ? `${count(job.progress.resumed)} were done before` : ""],
    ["Left", job.eta_s === null ? "" : span(Math.max(0, job.eta_s - elapsed())), ""],
    [isFinal() ? "Took" : "Running for", job.started ? span((until - Date.parse(job.started)) / 1000) : "", job.started ? `since ${instant(job.started)}` : ""],
    ["Heartbeat", isFinal() ? "" : `${span(job.heartbeat_age_s + elapsed())} ago`, ""],
    ["Progress", isFinal() || job.progress_age_s === null ? "" : `${span(job.progress_age_s + elapsed())} ago`, ""],
    ["Written", job.bytes ? bytes(job.bytes) : "", ""],
    ["Restarts", job.attempt ? String(job.attempt) : "", "by torchrun"],
  ];
  figures(facts.filter(([, value]) => value));
  showNote();
}

const cells = new Map(); // name -> [dt, dd, b, span]

function figures(facts) {
  const list = find("figures");
  const names = new Set(facts.map(([name]) => name));
  for (const [name, { node }] of cells) {
    if (!names.has(name)) {
      node.remove();
      cells.delete(name);
    }
  }
  for (const [name, value, more] of facts) {
    if (!cells.has(name)) {
      const [strong, small] = [element("b"), element("small")];
      const node = element("div", {}, element("dt", {}, name), element("dd", {}, strong, small));
      cells.set(name, { node, strong, small });
      list.append(node);
    }
    say(cells.get(name).strong, value);
    say(cells.get(name).small, more);
  }
}

function showNote() {
  const note = find("reason");
  const beat = span(job.heartbeat_age_s + elapsed());
  const words = {
    stale: `No heartbeat for ${beat}: suspended, cut off, or gone. A late heartbeat heals this.`,
    crashed: `No heartbeat for ${beat}: the process is gone. The same command continues it.`,
    cancelling: "Asked to stop: it finishes its step or block, and saves.",
  };
  const idle = (job.progress_age_s ?? 0) + elapsed();
  const idling = job.status === "running" && idle > IDLE_S ? `Alive, but no progress for ${span(idle)}.` : "";
  // what a silent job said before it fell silent tells less than its silence
  const said = job.status === "stale" || job.status === "crashed" ? null : job.reason;
  showText(note, said ?? words[job.status] ?? idling);
  note.dataset.status = job.status;
}

async function drawMetrics() {
  const { names } = (await ask(`${API}/metrics`)).body;
  const groups = figuresOf(names.map((each) => each.name));
  const wanted = groups.flatMap((group) => group.names);
  const found = new Map();
  for (let at = 0; at < wanted.length; at += AT_ONCE) {
    const query = new URLSearchParams(wanted.slice(at, at + AT_ONCE).map((name) => ["name", name]));
    query.set("points", String(POINTS));
    for (const each of (await ask(`${API}/metrics?${query}`)).body.series) found.set(each.name, each);
  }
  const steps = [...found.values()].flatMap((each) => [each.steps[0], each.steps.at(-1)]);
  const range = [Math.min(...steps), Math.max(...steps)];
  for (const group of groups) {
    const series = group.names.map((name) => found.get(name)).filter(Boolean);
    if (series.length === group.names.length) chartOf(group).update(series, range);
  }
}

// A metric may appear later (top-1, after the first epoch): its figure is made anew.
function chartOf(group) {
  const before = charts.get(group.title);
  if (before && before.names.join() === group.names.join()) return before;
  const chart = new Chart(group);
  if (before) before.node.replaceWith(chart.node);
  else find("charts").append(chart.node);
  charts.set(group.title, chart);
  return chart;
}

async function drawEvents() {
  const list = find("events").querySelector("ol");
  for (;;) {
    const place = lastEvent === null ? "newest=true" : `after=${lastEvent}`;
    const { events, last_id: last, more } = (await ask(`${API}/events?${place}`)).body;
    if (lastEvent === null && more) {
      list.append(element("li", {}, element("span"), element("span"), element("span", {}, "Earlier events are left out; the API has them.")));
    }
    for (const event of events) {
      list.prepend(element("li", { "data-kind": event.kind },
        element("time", { datetime: event.time }, fullInstant(event.time)),
        element("span", { class: "kind" }, event.kind), element("span", {}, event.text)));
      find("events").hidden = false;
    }
    const isFirst = lastEvent === null;
    lastEvent = last;
    if (isFirst || !more) break;
  }
  due.events = false;
}

async function drawLog() {
  const { lines, traceback } = (await ask(`${API}/log`)).body;
  const [why, log] = [find("why"), find("log")];
  why.hidden = !traceback;
  say(why.querySelector("pre"), traceback ?? "");
  if (log.hidden && lines.length > 0) log.open = BROKEN.has(job.status);
  log.hidden = lines.length === 0;
  const text = log.querySelector("pre");
  const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
  say(text, lines.join("\n"));
  if (atEnd || !log.open) text.scrollTop = text.scrollHeight;
  due.log = false;
}

function pairs(section, facts) {
  const entries = Object.entries(facts ?? {}).filter(([, value]) => value !== null);
  section.hidden = entries.length === 0;
  const text = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  const key = JSON.stringify(entries);
  if (section.dataset.key === key) return;
  section.dataset.key = key;
  section.querySelector("dl").replaceChildren(...entries.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, text(value)))));
}

function drawArtifacts() {
  const section = find("artifacts");
  const artifacts = job.artifacts ?? [];
  section.hidden = artifacts.length === 0;
  section.querySelector("tbody").replaceChildren(...artifacts.map((each) =>
    element("tr", {}, element("th", { scope: "row" }, each.name),
      element("td", { class: "number" }, count(each.size)),
      element("td", {}, element("code", {}, each.sha256 ?? "")))));
}

// the end is what is looked for
find("log").addEventListener("toggle", () => {
  const text = find("log").querySelector("pre");
  text.scrollTop = text.scrollHeight;
});

const now = poll(look);
find("cancel").addEventListener("click", () => find("stop").showModal());
find("stop").addEventListener("close", async () => {
  if (find("stop").returnValue !== "stop") return;
  find("stop").returnValue = "";
  try {
    showText(find("refused"), "");
    await tell(`${API}/cancel`);
  } catch (fault) {
    showText(find("refused"), fault instanceof Problem ? fault.message : "the service does not answer: the job was not asked");
  }
  now();
});
setInterval(() => {
  if (job !== null && !isFinal()) drawTimes();
}, 1000);
