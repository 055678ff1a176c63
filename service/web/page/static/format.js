// Numbers, spans of time and instants as text.

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const clock = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const minutes = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", ...clock });
const seconds = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const count = (value) => plain.format(value);

// A measured value to four digits, as short as that allows. A null was measured, and is no number.
export function measure(value) {
  if (value === undefined) return "–";
  if (value === null) return "not finite";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return plain.format(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return size >= 1000 ? plain.format(value) : String(Number(value.toPrecision(4)));
}

// The labels of an axis whose marks are `step` apart: as many digits as tell neighbours apart.
export function ticks(values, step) {
  const largest = Math.max(...values.map(Math.abs));
  if (largest === 0 || !(step > 0)) return values.map(measure);
  const power = (value) => Math.floor(Math.log10(value) + 1e-9);
  const lead = step / 10 ** power(step); // 1, 2, 5, or 2.5, which takes one more digit
  const more = Math.abs(lead - Math.round(lead)) > 1e-6 ? 2 : 1;
  const digits = Math.min(15, Math.max(1, power(largest) - power(step) + more));
  const form = new Intl.NumberFormat("en", {
    notation: largest < 1e-3 ? "scientific" : largest >= 1e4 ? "compact" : "standard",
    maximumSignificantDigits: digits, useGrouping: false,
  });
  return values.map((value) => (value === 0 ? "0" : form.format(value)));
}

export const rate = (value) => (value === null ? "" : `${value >= 100 ? count(value) : tenths.format(value)}/s`);

// How far, cut and not rounded: 100% means the end.
export function percent(progress) {
  if (!progress.total) return "";
  return `${Math.floor((100 * progress.done) / progress.total)}%`;
}

export function counts(progress) {
  const total = progress.total === null ? "" : ` / ${count(progress.total)}`;
  return `${count(progress.done)}${total} ${progress.unit}`;
}

// A span of time in one or two units: 8 s, 9 min, 3 h 20 min, 5 d.
export function span(length) {
  if (length < 100) return `${Math.round(length)} s`;
  const whole = Math.round(length / 60);
  if (whole < 100) return `${whole} min`;
  const hours = Math.floor(whole / 60);
  return hours < 48 ? `${hours} h ${whole % 60} min` : `${Math.floor(hours / 24)} d`;
}

// An instant in the reader's own time zone: to the minute, or in full.
export const instant = (text) => minutes.format(new Date(text));
export const fullInstant = (text) => seconds.format(new Date(text));

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (value >= 1000 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${power === 0 ? value : value.toPrecision(3)} ${units[power]}`;
}

// The names of metrics as a reader says them.
const labels = {
  loss: "loss", ce: "cross-entropy", kd: "distillation", lr: "learning rate",
  top1: "top-1", top5: "top-5", ema_top1: "top-1 (EMA)", ema_top5: "top-5 (EMA)",
};
export const label = (name) =>
  labels[name] ?? name.replace(/_per_s$/, "/s").replaceAll("_", " ");
