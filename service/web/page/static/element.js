// Elements as expressions, and texts that change only when they differ.

export const find = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Setting the same text again would make a screen reader say it again.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function showText(node, text) {
  say(node, text ?? "");
  node.hidden = !text;
}

export function fillBar(bar, progress, words) {
  if (progress.total) {
    bar.max = progress.total;
    bar.value = Math.min(progress.done, progress.total);
  } else {
    bar.removeAttribute("value");
  }
  bar.setAttribute("aria-valuetext", words);
}

// `status` of a job as a word with a mark of its own: never by colour alone.
const marks = {
  pending: "○", running: "●", cancelling: "◐", succeeded: "✓",
  failed: "✕", cancelled: "–", stale: "?", crashed: "✕",
};
export function showStatus(node, status) {
  say(node, `${marks[status] ?? ""} ${status}`);
  node.dataset.status = status;
}
