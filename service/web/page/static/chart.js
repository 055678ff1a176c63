// One figure: lines over steps, a legend that reads the values out, and a table behind it.

import { element, say } from "./element.js";
import { label, measure, ticks } from "./format.js";

const HEIGHT = 190;
const DASHES = [[], [], [5, 4], [2, 3]];
const dark = matchMedia("(prefers-color-scheme: dark)");

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The columns of uPlot, after the steps of all series: for each its line, min, max, and last value.
// Where points were put into buckets, the line is the middle of each and the band its extent.
// A null is a value that was not finite, and breaks its line; undefined, a step of another line, does not.
const COLUMNS = 4;
function joined(series) {
  return uPlot.join(series.map((each) => [each.steps, each.steps.map((_, at) => middle(each, at)), each.min, each.max, each.last]));
}
function middle({ min, max, last }, at) {
  return min[at] === null || max[at] === null ? last[at] : (min[at] + max[at]) / 2;
}

export class Chart {
  constructor({ title, names, isShare = false, fromZero = false }) {
    this.title = title;
    this.names = names;
    this.isShare = isShare;
    this.fromZero = fromZero;
    this.range = [0, 1];
    this.plot = null;
    this.data = null;
    this.values = names.map(() => element("b"));
    const legend = names.map((name, line) =>
      element("li", { class: `line-${line}` }, element("span", {}, label(name)), " ", this.values[line]));
    this.at = element("span", { class: "at" });
    this.canvas = element("div", { class: "plot", role: "img" });
    this.table = element("table");
    this.details = element("details", {}, element("summary", {}, "Table"),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, as a table` }, this.table));
    this.details.addEventListener("toggle", () => this.drawTable());
    this.node = element("figure", { class: "chart" },
      element("figcaption", {}, element("h2", {}, title), this.at, element("ul", { class: "legend" }, ...legend)),
      this.canvas, this.details);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    dark.addEventListener("change", () => this.rebuild());
  }

  update(series, range) {
    this.series = series;
    this.range = range;
    this.data = joined(series);
    if (this.plot) this.plot.setData(this.data);
    else this.rebuild();
    this.readOut(null);
    const words = series.map((each) => `${label(each.name)} ${measure(each.last.at(-1))}`);
    this.canvas.setAttribute("aria-label", `${this.title} by step; last: ${words.join(", ")}`);
    this.drawTable();
  }

  rebuild() {
    if (!this.data) return;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(), this.data, this.canvas);
  }

  resize() {
    const width = this.canvas.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  options() {
    const font = `11px ${style("--sans")}`;
    const axis = { stroke: style("--soft"), font, ticks: { show: false }, grid: { stroke: style("--line"), width: 1 } };
    const series = [{}];
    const bands = [];
    this.names.forEach((name, line) => {
      const stroke = style(`--line-${line}`);
      const place = series.length;
      series.push(
        { label: name, stroke, width: line === 0 ? 1.75 : 1.5, dash: DASHES[line] },
        ...["min", "max", "last"].map(() => ({ stroke: "transparent", points: { show: false } })),
      );
      bands.push({ series: [place + 2, place + 1], fill: `${stroke}30` });
    });
    return {
      width: this.canvas.clientWidth, height: HEIGHT, series, bands,
      legend: { show: false },
      padding: [8, 14, 0, 0],
      cursor: { drag: { x: false, y: false }, y: false, sync: { key: "job" }, points: { size: 7 } },
      scales: {
        x: { time: false, range: () => (this.range[0] < this.range[1] ? this.range : [this.range[0] - 1, this.range[1] + 1]) },
        y: this.isShare ? { range: [0, 1] } : this.fromZero ? { range: (_, low, high) => [Math.min(0, low), high * 1.1 || 1] } : {},
      },
      axes: [
        { ...axis, size: 26, gap: 6, space: 60, values: (_, splits, __, ___, step) => ticks(splits, step).map((text, at) => (Number.isInteger(splits[at]) ? text : "")) },
        { ...axis, gap: 6, space: 32, size: (_, texts) => 46 + 6 * Math.max(0, ...(texts ?? []).map((text) => text.length - 6)),
          values: (_, splits, __, ___, step) => (this.isShare ? splits.map((v) => this.spell(v)) : ticks(splits, step)) },
      ],
      hooks: { setCursor: [(plot) => this.readOut(plot.cursor.idx)] },
    };
  }

  spell(value) {
    return this.isShare && typeof value === "number" ? `${Math.round(100 * value)}%` : measure(value);
  }

  // The values at the cursor, or the last ones.
  readOut(index) {
    this.names.forEach((name, line) => {
      const column = this.data[COLUMNS * (line + 1)];
      const value = index === null || index === undefined
        ? column.findLast((each) => each !== undefined) : column[index];
      say(this.values[line], this.spell(value));
    });
    const step = index === null || index === undefined ? null : this.data[0][index];
    say(this.at, step === null ? "" : `step ${step.toLocaleString("en")}`);
  }

  isBucketed() {
    return this.series.some((each) => each.raw_points > each.steps.length);
  }

  drawTable() {
    if (!this.details.open || !this.data) return;
    const head = ["step", ...this.names.map(label)].map((name) => element("th", { scope: "col" }, name));
    const rows = [];
    for (let at = this.data[0].length - 1; at >= 0; at -= 1) {
      const cells = this.names.map((_, line) => element("td", {}, this.spell(this.data[COLUMNS * (line + 1)][at])));
      rows.push(element("tr", {}, element("th", { scope: "row" }, this.data[0][at].toLocaleString("en")), ...cells));
    }
    this.table.replaceChildren(
      element("caption", {}, `${this.title}, newest first${this.isBucketed() ? "; the last value of each bucket" : ""}`),
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  }
}

// Which metrics are drawn together, in this order; each of the others has a figure of its own.
const SHARES = ["data_wait_share", "compute_share", "teacher_share", "copy_share", "write_share"];
const EPOCH_SHARES = ["evaluation_share", "checkpoint_share"];
const LINES = 4; // in one figure; what is more goes into a further one
const PLACES = new Set(["step", "epoch", "waiting_for_view"]);

export function figuresOf(names) {
  const left = new Set(names.filter((name) => !PLACES.has(name)));
  const take = (wanted) => {
    const taken = wanted.filter((name) => left.delete(name));
    return taken;
  };
  const groups = [
    { title: "Loss", names: take(["loss", "ce", "kd"]) },
    { title: "Top-1", names: take(["ema_top1", "top1"]) },
    { title: "Speed", fromZero: true, names: take([...left].filter((name) => name.endsWith("_per_s"))) },
    { title: "Shares of an epoch", isShare: true, names: take(EPOCH_SHARES) },
    { title: "Shares of time", isShare: true, names: take([...SHARES, ...[...left].filter((name) => name.endsWith("_share"))]) },
    { title: "Top-5", names: take(["ema_top5", "top5"]) },
    { title: "Learning rate", names: take(["lr"]) },
  ];
  for (const name of left) groups.push({ title: label(name), names: [name] });
  return groups.flatMap(inFigures);
}

function inFigures(group) {
  const figures = [];
  for (let at = 0; at < group.names.length; at += LINES) {
    figures.push({ ...group, title: at ? `${group.title}, further` : group.title, names: group.names.slice(at, at + LINES) });
  }
  return figures;
}
