// One row a process: how far it is beside the others, and which one holds them up.

import { element, fillBar, say, showStatus } from "./element.js";
import { count, span } from "./format.js";

const BEHIND = 0.9; // of the median: the ranks of one job do the same work

export class Ranks {
  constructor(section) {
    this.section = section;
    this.body = section.querySelector("tbody");
    this.rows = new Map();
  }

  draw(ranks, unit) {
    this.section.hidden = ranks.length < 2;
    const most = Math.max(1, ...ranks.map((rank) => rank.done));
    const slowest = straggler(ranks);
    for (const rank of ranks) {
      const row = this.row(rank.rank);
      row.node.classList.toggle("straggler", rank.rank === slowest);
      showStatus(row.status, rank.status);
      fillBar(row.bar, { done: rank.done, total: most }, `${count(rank.done)} ${unit}`);
      row.bar.dataset.status = rank.status;
      say(row.done, `${count(rank.done)} ${unit}`);
      say(row.mark, rank.rank === slowest ? "straggler" : "");
      say(row.beat, span(rank.heartbeat_age_s));
      say(row.moved, rank.progress_age_s === null ? "" : span(rank.progress_age_s));
      say(row.process, `${rank.host}, pid ${rank.pid}`);
    }
  }

  row(number) {
    if (this.rows.has(number)) return this.rows.get(number);
    const row = {
      status: element("span", { class: "status" }),
      bar: element("progress", { "aria-label": `Rank ${number}` }),
      done: element("span"),
      mark: element("b", { class: "mark" }),
      beat: element("td", { class: "number", "data-title": "beat" }),
      moved: element("td", { class: "number", "data-title": "moved" }),
      process: element("td", { class: "process" }),
    };
    row.node = element("tr", {},
      element("th", { class: "number", scope: "row" }, String(number)), element("td", {}, row.status),
      element("td", { class: "far" }, row.bar, element("span", { class: "counts" }, row.done, " ", row.mark)),
      row.beat, row.moved, row.process);
    this.body.append(row.node);
    this.rows.set(number, row);
    return row;
  }
}

// The rank that is furthest behind, if it is behind at all; null where all go along.
export function straggler(ranks) {
  if (ranks.length < 2) return null;
  const sorted = ranks.map((rank) => rank.done).sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)];
  const last = ranks.reduce((least, rank) => (rank.done < least.done ? rank : least));
  return last.done < BEHIND * median ? last.rank : null;
}
