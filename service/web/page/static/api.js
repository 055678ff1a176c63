// Questions to the service: with the tab's token, and with the ETag of the answer before.

import { find, say } from "./element.js";

const kept = new Map(); // path -> { etag, body }
const KEY = "retort-token";
const ROOT = new URL("..", import.meta.url); // wherever a proxy publishes the service

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

// Returns { body, isNew, link }; throws a Problem, or a TypeError where nobody answers.
export async function ask(path) {
  const before = kept.get(path);
  const answer = await send(path, { headers: before ? { "If-None-Match": before.etag } : {} });
  if (answer.status === 304) return { body: before.body, isNew: false };
  const body = await read(answer);
  const etag = answer.headers.get("ETag");
  if (etag) kept.set(path, { etag, body });
  return { body, isNew: true };
}

// The list of jobs: after the first answer the service says what has changed since, which is put
// into what is here. Each job gets `seenAt`, the milliseconds at which its ages were true.
export async function askForJobs(path) {
  const before = kept.get(path);
  const since = before ? `&${new URLSearchParams({ since: before.etag })}` : "";
  const answer = await send(path + since, { headers: before ? { "If-None-Match": before.etag } : {} });
  if (answer.status === 304) return { body: before.body, isNew: false };
  const body = await read(answer);
  for (const job of body.jobs) job.seenAt = Date.now();
  if (body.partial) {
    const changed = new Map(body.jobs.map((job) => [job.id, job]));
    body.jobs = before.body.jobs.map((job) => changed.get(job.id) ?? job);
  }
  kept.set(path, { etag: answer.headers.get("ETag"), body });
  return { body, isNew: true };
}

export async function tell(path) {
  return read(await send(path, { method: "POST" }));
}

// What lies between may answer in the service's place with a page of its own, such as a sign-in.
async function read(answer) {
  try {
    return await answer.json();
  } catch {
    throw new Problem(502, "something else answers in the service's place: sign in again, then reload");
  }
}

async function send(path, { method = "GET", headers = {} }) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const all = token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
    // no-store: the ETags are kept here, so that a 304 is seen as one
    const answer = await fetch(new URL(path.slice(1), ROOT), { method, headers: all, cache: "no-store" });
    if (answer.ok || answer.status === 304) return answer;
    if (answer.status !== 401) throw await problem(answer);
    // several questions may be under way: the first refused one asks, the others wait for it
    if (token === sessionStorage.getItem(KEY)) await askForToken(token !== null);
  }
}

async function problem(answer) {
  try {
    const { detail } = await answer.json();
    return new Problem(answer.status, detail);
  } catch {
    return new Problem(answer.status, `the service answers ${answer.status}`);
  }
}

let asking = null;

function askForToken(wasRefused) {
  asking ??= new Promise((resolve) => {
    const [dialog, form, field] = [find("token"), find("token-form"), find("token-field")];
    say(find("token-fault"), wasRefused ? "That token was refused." : "");
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, field.value.trim());
      field.value = "";
      dialog.close();
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}
