// The list of jobs.

import { askForJobs } from "./api.js";
import { element, fillBar, find, say, showStatus } from "./element.js";
import { counts, fullInstant, instant, label, measure, percent, rate, span } from "./format.js";
import { poll } from "./poll.js";

const ALIVE = new Set(["pending", "running", "cancelling", "stale"]);
const rows = new Map(); // id -> Row
const asked = new URLSearchParams(location.search);
let drawn = ""; // the query whose answer is on the page

class Row {
  constructor(id) {
    const cell = (name, title, ...children) =>
      element("td", { class: name, role: "cell", "data-title": title }, ...children);
    this.link = element("a", { href: `jobs/${id}` });
    this.id = element("code", {}, id.slice(0, 12));
    this.begun = element("time");
    this.status = element("span", { class: "status" });
    this.bar = element("progress", { "aria-label": "Progress" });
    this.percent = element("b");
    this.counts = element("span");
    this.rate = cell("number", "Rate");
    this.left = cell("number", "Left");
    this.figures = cell("metrics", "Figures");
    this.age = cell("number", "Heartbeat");
    this.node = element("tr", { role: "row" },
      cell("name", "Job", this.link, element("span", { class: "under" }, this.id, this.begun)),
      cell("state", "State", this.status),
      cell("far", "Progress", this.bar, element("span", { class: "counts" }, this.percent, " ", this.counts)),
      this.rate, this.left, this.figures, this.age);
  }

  update(job) {
    if (this.job === job) return;
    this.job = job;
    say(this.link, job.kind);
    say(this.begun, instant(job.created));
    this.begun.dateTime = job.created;
    this.begun.title = fullInstant(job.created);
    showStatus(this.status, job.status);
    this.status.title = job.reason ?? "";
    fillBar(this.bar, job.progress, `${percent(job.progress)} ${counts(job.progress)}`);
    this.bar.dataset.status = job.status;
    say(this.percent, percent(job.progress));
    say(this.counts, counts(job.progress));
    this.node.toggleAttribute("data-ended", job.ended !== null);
    say(this.rate, job.ended === null ? rate(job.rate) : "");
    this.figures.replaceChildren(...figuresOf(job.metrics).map((name) =>
      element("span", {}, `${label(name)} `, element("b", {}, measure(job.metrics[name])))));
    this.tick();
  }

  // Ages grow between two answers.
  tick() {
    const job = this.job;
    const elapsed = (Date.now() - job.seenAt) / 1000;
    say(this.age, `${span(job.heartbeat_age_s + elapsed)} ago`);
    say(this.left, job.eta_s === null ? "" : span(Math.max(0, job.eta_s - elapsed)));
  }
}

// What a glance needs: the loss, and the best-known accuracy.
function figuresOf(metrics) {
  const top = ["ema_top1", "top1"].find((name) => name in metrics);
  return ["loss", top].filter((name) => name in metrics);
}

async function look() {
  const query = new URLSearchParams();
  for (const name of ["status", "kind", "cursor"]) {
    if (asked.get(name)) query.set(name, asked.get(name));
  }
  query.set("limit", "50");
  const { body, isNew } = await askForJobs(`/api/v1/jobs?${query}`);
  const view = query.toString();
  if (isNew || view !== drawn) draw(body);
  drawn = view;
  return body.jobs.some((job) => ALIVE.has(job.status)) ? 2 : 5;
}

function draw(page) {
  const body = find("jobs").tBodies[0];
  const ids = new Set(page.jobs.map((job) => job.id));
  for (const [id, row] of rows) {
    if (!ids.has(id)) {
      row.node.remove();
      rows.delete(id);
    }
  }
  page.jobs.forEach((job, place) => {
    if (!rows.has(job.id)) rows.set(job.id, new Row(job.id));
    const row = rows.get(job.id);
    row.update(job);
    // rows stay where they are, so that the focus does
    if (body.rows[place] !== row.node) body.insertBefore(row.node, body.rows[place] ?? null);
  });
  find("jobs").hidden = page.jobs.length === 0;
  find("empty").hidden = page.jobs.length > 0;
  if (page.jobs.length === 0) drawEmpty(page.database);
  drawPages(page.next_cursor);
}

function drawEmpty(database) {
  const filtered = asked.get("status") || asked.get("kind") || asked.get("cursor");
  const where = element("p", {}, "The database is ", element("code", {}, database), "; RETORT_DB names another.");
  const words = filtered
    ? [element("p", {}, "No job matches."), where]
    : [element("p", {}, "No job has recorded itself yet."), where,
       element("pre", {}, "cli.py cache-teacher RECIPE --data DIR --out CACHE")];
  find("empty").replaceChildren(...words);
}

function drawPages(next) {
  const to = (cursor) => {
    const query = new URLSearchParams(asked);
    query.delete("cursor");
    if (cursor) query.set("cursor", cursor);
    return `?${query}`;
  };
  find("older").hidden = next === null;
  if (next !== null) find("older").href = to(next);
  find("newest").hidden = !asked.get("cursor");
  find("newest").href = to(null);
}

const now = poll(look);
for (const field of find("filter").elements) {
  field.value = asked.get(field.name) ?? "";
  // no new page at a change: arrow keys change a select with every press
  field.addEventListener("change", () => {
    asked.delete("cursor");
    if (field.value) asked.set(field.name, field.value);
    else asked.delete(field.name);
    history.replaceState(null, "", `?${asked}`);
    now();
  });
}
setInterval(() => {
  for (const row of rows.values()) row.tick();
}, 1000);
