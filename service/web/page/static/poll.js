// Asks again and again while the page is looked at, and says whether the service answers.

import { Problem } from "./api.js";
import { find, say, showText } from "./element.js";

const AWAY_S = 5;
const FOR_GOOD = new Set([404, 422]); // asked for what is not there: asking again changes nothing

// `look` fetches and draws, and returns the seconds to the next look, null for never.
export function poll(look) {
  let timer = null;
  let busy = false;
  let wanted = false;

  async function now() {
    if (busy) {
      wanted = true;
      return;
    }
    clearTimeout(timer);
    busy = true;
    const wait = await attempt(look).finally(() => {
      busy = false;
    });
    if (wanted) {
      wanted = false;
      now();
    } else if (wait !== null && !document.hidden) {
      timer = setTimeout(now, wait * 1000);
    }
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) now();
  });
  now();
  return now;
}

async function attempt(look) {
  try {
    const wait = await look();
    answered(wait !== null);
    return wait;
  } catch (fault) {
    document.body.dataset.away = "";
    if (fault instanceof Problem && FOR_GOOD.has(fault.status)) {
      showText(find("problem"), fault.message);
      say(find("link"), "stopped");
      return null;
    }
    if (!(fault instanceof Problem) && !(fault instanceof TypeError)) {
      say(find("link"), "the page has failed: reload it");
      throw fault;
    }
    const why = fault instanceof Problem ? fault.message : "the service does not answer";
    say(find("link"), `${why}; trying again`);
    return AWAY_S;
  }
}

function answered(goesOn) {
  showText(find("problem"), "");
  delete document.body.dataset.away;
  say(find("link"), goesOn ? "live" : "");
}
