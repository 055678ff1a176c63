"""Jobs as text: a table of many, a page of one."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.console.terminal import clock, spell

Json = Mapping[str, Any]
IDLE_S = 120.0
"""A running job whose progress stands still for so long is said to."""
_LINES = 10
_WORDS = 3
"""The first columns of the table hold words, the others figures."""
_SHORTEST_ID = 12
"""The first 12 digits of an id are its millisecond."""


def job_table(rows: Sequence[Json]) -> str:
    """Return one line a job, in columns; ids are as short as tells them apart."""
    if not rows:
        return ""
    digits = id_digits([row["id"] for row in rows])
    cells = [("ID", "KIND", "STATE", "DONE", "", "RATE", "LEFT", "HEARTBEAT")]
    for row in rows:
        alive = row["ended"] is None
        cells.append(
            (
                row["id"][:digits],
                row["kind"],
                row["status"],
                percent(row["progress"]),
                counts(row["progress"]),
                f"{row['rate']:,.1f}/s" if alive and row["rate"] is not None else "",
                "" if row["eta_s"] is None else clock(row["eta_s"]),
                f"{span(row['heartbeat_age_s'])} ago",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if column < _WORDS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def no_jobs(where: str, *, filtered: bool) -> str:
    """Return that there are none, and where: another database may hold them."""
    which = "no job matches" if filtered else "no jobs"
    if where.startswith(("http://", "https://")):
        return f"{which} at {where}"
    return f"{which} in the database {where} (RETORT_DB names another)"


def job_page(job: Json, ranks: Sequence[Json], events: Json, log: Json) -> str:
    """Return everything of one job, in sections; of the log of one that is well, the last lines."""
    facts = {
        "job": job["id"],
        "kind": job["kind"],
        "state": state_words(job),
        "progress": f"{percent(job['progress'])}  {counts(job['progress'])}".strip(),
        "rate": None if job["rate"] is None else f"{job['rate']:,.1f} {job['progress']['unit']}/s",
        "left": None if job["eta_s"] is None else clock(job["eta_s"]),
        "metrics": spell(job["metrics"]),
        "heartbeat": f"{span(job['heartbeat_age_s'])} ago",
        "created": job["created"],
        "started": job["started"],
        "ended": job["ended"],
        "resumed from": job["resumed_from"],
        "host": f"{job['host']}, pid {job['pid']}",
        "attempt": job["attempt"],
    }
    parts = [_pairs({name: value for name, value in facts.items() if value})]
    if len(ranks) > 1:
        parts.append("ranks\n" + "\n".join(f"  {rank_line(rank)}" for rank in ranks))
    if events["events"]:
        lines = ["  ... earlier ones are left out"] if events["more"] else []
        lines += [
            f"  {each['time']}  {each['kind']:<10}  {each['text']}" for each in events["events"]
        ]
        parts.append("events\n" + "\n".join(lines))
    parts += _log_parts(log, is_well=job["status"] not in ("failed", "crashed"))
    parts += [
        f"{section}\n" + _pairs(job[section], indent="  ")
        for section in ("config", "environment")
        if job[section]
    ]
    if job["artifacts"]:
        lines = [
            f"  {each['name']}  {each['size']:,} bytes  {each['sha256'] or ''}"
            for each in job["artifacts"]
        ]
        parts.append("artifacts\n" + "\n".join(line.rstrip() for line in lines))
    return "\n\n".join(parts)


def _log_parts(log: Json, *, is_well: bool) -> list[str]:
    lines = log["lines"][-_LINES:] if is_well else log["lines"]
    sections = {"log": lines, "traceback": (log["traceback"] or "").splitlines()}
    return [
        f"{name}\n" + "\n".join(f"  {line}" for line in said)
        for name, said in sections.items()
        if said
    ]


def state_words(job: Json) -> str:
    """Return a job's status and why, or what it has not done for how long."""
    status = str(job["status"])
    if status in ("stale", "crashed"):
        return f"{status}: no heartbeat for {span(job['heartbeat_age_s'])}"
    idle_s = job["progress_age_s"]
    if status == "running" and idle_s is not None and idle_s > IDLE_S:
        return f"{status}: alive, no progress for {span(idle_s)}"
    return f"{status}: {job['reason']}" if job["reason"] else status


def rank_line(rank: Json) -> str:
    """Return one rank's line."""
    age = span(rank["heartbeat_age_s"])
    return (
        f"{rank['rank']:>3}  {rank['status']:<10}  {rank['done']:>12,}  "
        f"{rank['host']}, pid {rank['pid']}  heartbeat {age} ago"
    )


def percent(progress: Json) -> str:
    """Return how far, cut so that 100% means the end; nothing where the total is not known."""
    total = progress["total"]
    return f"{100 * progress['done'] // total}%" if total else ""


def counts(progress: Json) -> str:
    """Return `done/total unit`."""
    total = f"/{progress['total']:,}" if progress["total"] is not None else ""
    return f"{progress['done']:,}{total} {progress['unit']}"


def span(seconds: float) -> str:
    """Return an age in one or two units: 8 s, 9 min, 3 h 20 min, 5 d."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d"


def id_digits(ids: Sequence[str]) -> int:
    """Return how many leading digits tell these ids apart."""
    digits = _SHORTEST_ID
    while digits < 32 and len({each[:digits] for each in ids}) < len(set(ids)):
        digits += 4
    return digits


def _pairs(facts: Json, indent: str = "") -> str:
    width = max(map(len, facts))
    return "\n".join(f"{indent}{name.ljust(width)}  {value}" for name, value in facts.items())
