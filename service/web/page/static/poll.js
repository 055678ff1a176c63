// Asks again and again while the page is looked at, and says whether the service answers.

import { Problem } from "./api.js";
import { find, say, showText } from "./element.js";

const AWAY_S = 5;

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
    const wait = await attempt(look);
    busy = false;
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
    if (fault instanceof Problem && fault.status < 500) {
      showText(find("problem"), fault.message);
      return null;
    }
    if (!(fault instanceof Problem) && !(fault instanceof TypeError)) throw fault;
    const why = fault instanceof Problem ? fault.message : "the service does not answer";
    document.body.dataset.away = "";
    say(find("link"), `${why}; trying again`);
    return AWAY_S;
  }
}

function answered(goesOn) {
  showText(find("problem"), "");
  delete document.body.dataset.away;
  say(find("link"), goesOn ? "live" : "");
}
