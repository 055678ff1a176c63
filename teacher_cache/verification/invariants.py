"""What a record must be whoever wrote it: the mathematics of a teacher's answer.

A SHA-256 tells that bytes are those that were committed, not that they make sense. This module
refuses what no teacher can have said: class ids that do not exist, probabilities that do not sum to
one, tails that belong to other temperatures. It refuses no true record, and that can be proved.

N rows, K kept classes, C classes, m = C - K, T temperatures; p_1 >= ... >= p_K are the kept
probabilities, x_i the logarithms of the m others, and the tail at tau is, with s = 1 / tau,

    t(tau) = A(s) = log sum_i exp(s x_i).

Every stored number stands for a range: the numbers that the encoding rounds to it
(`encodings.ranges_of_halves`, `ranges_of_logp`). The true numbers lie in their ranges, so where a
relation holds between true numbers, it holds between the ends of ranges that favour it. Checked is
just that, with these relations:

1.  The kept probabilities and exp(t(1)) sum to 1. Where no tail at tau = 1 is stored, this is what
    defines its range, and the kept ones sum to at most 1.
2.  No other class is likelier than the last kept one, x_i <= log p_K, hence
    t(tau) <= log(p_K) / tau + log m.
3.  For tau < tau', s > s', in neighbours of the sorted temperatures, tau = 1 among them:
    a.  t(tau') >= t(tau) tau / tau', since A(s) / s is the logarithm of the s-norm of exp(x), and
        norms fall with s.
    b.  t(tau') <= t(tau) tau / tau' + (1 - tau / tau') log m, since A is convex and A(0) = log m.
    c.  t(tau') >= t(tau) + (s - s') (-log p_K): in A(s) = log sum exp(s' x_i) exp((s - s') x_i)
        the last factor is at most exp((s - s') log p_K). So tails grow with tau.
    All three are transitive, so neighbours suffice.
4.  A sum over no classes is -inf, so the tail is -inf where K = C, and nowhere else.

From tau = 1 (3a, 3b) follow the bounds t(1) / tau and t(1) / tau + (1 - 1 / tau) log m, and the
other way round below 1. Equal float16 log-probabilities may have their ids in any order: the
teacher's order is that of the logits before rounding.

Not found: rows that were exchanged whole, ids that were exchanged within a row where it still is in
order, and numbers that were changed by no more than rounding. The ledger's SHA-256 finds them, and
`audit-cache` asks the teacher.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from teacher_cache.format.encodings import ranges_of_halves, ranges_of_logp
from teacher_cache.record import ROWS_PER_CHECK, Encoding, checked_rows

_PIECE = 4096
"""How many rows are looked at together: what they need stays in a processor's cache."""
_NEGATIVE = 0x8000
"""float16's sign. Non-positive numbers fall as their bits grow."""
_LOWEST_BITS = 0xFBFF

Finding = tuple[np.ndarray, Callable[[int], str]]
"""What is wrong, bool [N] or [N, some width], and what to say of a row."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the manifest says of every record."""

    class_count: int
    temperatures: tuple[float, ...]
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that cannot be."""

    row: int
    """Counted from the first row that was given."""
    what: str
    """In words that continue 'row 17 has '."""


def fault_in_records(
    ids_NK: np.ndarray,
    logp_NK: np.ndarray,
    tail_NT: np.ndarray,
    absent_N: np.ndarray,
    rules: Rules,
) -> Fault | None:
    """The first record that no teacher can have given, and why not.

    Args:
        ids_NK: uint16 or uint32.
        logp_NK: float16, as read from the rules' encoding.
        tail_NT: float16.
        absent_N: bool: rows that must hold fill values, and are the only ones that may.
        rules: classes, temperatures, encoding.
    """
    for start in range(0, len(ids_NK), _PIECE):
        rows = slice(start, start + _PIECE)
        records = (ids_NK[rows], logp_NK[rows].view(np.uint16), tail_NT[rows].view(np.uint16))
        with np.errstate(all="ignore"):  # of numbers that are refused anyhow
            fault = _fault_in_piece(*records, absent_N[rows], rules)
        if fault:
            return Fault(start + fault.row, fault.what)
    return None


def fault_in_checks(check: np.ndarray, view: int, absent_N: np.ndarray) -> Fault | None:
    """The first pixel checksum of a row that has no pixels: absent, or past the end.

    Args:
        check: uint32 [ceil(N / 32)] or more, entry j of row 32 j + (view mod 32).
        view: the block's view.
        absent_N: bool, which of the block's rows are absent.
    """
    rows = checked_rows(view, range(len(check) * ROWS_PER_CHECK))
    has_pixels = np.zeros(len(check), bool)
    inside = rows < len(absent_N)
    has_pixels[inside] = ~absent_N[rows[inside]]
    wrong = np.flatnonzero((check != 0) & ~has_pixels)
    if not len(wrong):
        return None
    return Fault(int(rows[wrong[0]]), "a checksum of pixels, but no image")


def _always(words: str) -> Callable[[int], str]:
    return lambda _: words


def _fault_in_piece(
    ids: np.ndarray, logp: np.ndarray, tail: np.ndarray, absent: np.ndarray, rules: Rules
) -> Fault | None:
    if not absent.any():
        return _first(_in_records(ids, logp, tail, rules), np.arange(len(ids)))
    rows, others = np.flatnonzero(absent), np.flatnonzero(~absent)
    faults = (
        _first(_in_absent(ids[rows], logp[rows], tail[rows]), rows),
        _first(_in_records(ids[others], logp[others], tail[others], rules), others),
    )
    return min((fault for fault in faults if fault), key=lambda fault: fault.row, default=None)


def _first(findings: Iterator[Finding], rows: np.ndarray) -> Fault | None:
    """The fault of the lowest row; of several in one row the first that was looked for."""
    first: Fault | None = None
    for wrong, words in findings:
        if wrong.any():
            at = int(wrong.reshape(len(wrong), -1).any(axis=1).argmax())
            if first is None or int(rows[at]) < first.row:
                first = Fault(int(rows[at]), words(at))
    return first


def _in_absent(ids: np.ndarray, logp: np.ndarray, tail: np.ndarray) -> Iterator[Finding]:
    filled = (ids == np.iinfo(ids.dtype).max).all(axis=1)
    for bits in (logp, tail):
        filled &= np.isnan(bits.view(np.float16)).all(axis=1)
    yield ~filled, _always("a record, where fill values are expected")


def _in_records(
    ids: np.ndarray, logp: np.ndarray, tail: np.ndarray, rules: Rules
) -> Iterator[Finding]:
    yield from _in_ids(ids, rules.class_count)
    yield from _in_logp(logp)
    yield from _in_infinities(tail, is_all_kept=ids.shape[1] == rules.class_count)
    yield from _in_sums(logp, tail, rules)


def _in_ids(ids: np.ndarray, class_count: int) -> Iterator[Finding]:
    yield (
        np.greater_equal(ids, class_count),
        lambda row: f"the class id {ids[row].max()}, and classes are 0 to {class_count - 1}",
    )
    in_order = np.sort(ids, axis=1)
    twice = in_order[:, 1:] == in_order[:, :-1]
    yield (
        twice,
        lambda row: f"the class id {in_order[row, twice[row].argmax()]} twice",
    )


def _in_logp(logp: np.ndarray) -> Iterator[Finding]:
    wrong: np.ndarray = (logp != 0) & ((logp < _NEGATIVE) | (logp > _LOWEST_BITS))
    yield (
        wrong,
        lambda row: (
            f"the log-probability {_half(logp[row, wrong[row].argmax()]):.6g}, "
            "expected a finite number of at most 0"
        ),
    )
    fall = logp | _NEGATIVE
    rises = fall[:, 1:] < fall[:, :-1]
    yield (
        rises,
        lambda row: f"a rank {rises[row].argmax() + 2} that is likelier than the rank before it",
    )


def _in_infinities(tail: np.ndarray, *, is_all_kept: bool) -> Iterator[Finding]:
    if is_all_kept:
        wrong, expected = tail != 0xFC00, "-inf, since all classes are kept"
    else:
        wrong, expected = (tail & 0x7C00) == 0x7C00, "a finite number"
    yield (
        wrong,
        lambda row: f"the tail {_half(tail[row, wrong[row].argmax()]):.6g}, expected {expected}",
    )


def _in_sums(logp: np.ndarray, tail: np.ndarray, rules: Rules) -> Iterator[Finding]:
    """Relations 1 to 3 of the module's docstring."""
    others = rules.class_count - logp.shape[1]
    least, most = _kept_sums(logp, rules.encoding)
    ranges = {tau: _range(tail[:, t]) for t, tau in enumerate(rules.temperatures)}
    rest = ranges.get(1.0, (np.float64(-np.inf), np.float64(-np.inf if others == 0 else np.inf)))
    wrong = ~((least + np.exp(rest[0]) <= 1) & (most + np.exp(rest[1]) >= 1))
    yield (
        wrong,
        lambda row: f"probabilities that sum to {_total(logp[row], tail[row], rules):.6g}, not 1",
    )
    if others == 0:
        return
    if 1.0 not in ranges:
        ranges[1.0] = (np.log(np.maximum(1 - most, 0)), np.log(np.maximum(1 - least, 0)))
    last = ranges_of_logp(rules.encoding)[1][logp[:, -1]]
    for tau in sorted(ranges):
        yield (
            ~(ranges[tau][0] <= last / tau + np.log(others)),
            _always(f"a tail at temperature {tau:g} with classes above the last kept"),
        )
    for tau, later in zip(sorted(ranges)[:-1], sorted(ranges)[1:], strict=True):
        yield (
            ~_agree(ranges[tau], ranges[later], tau, later, last, np.log(others)),
            _always(f"tails at temperatures {tau:g} and {later:g} that no teacher gives together"),
        )


def _agree(
    tail: tuple[np.ndarray, np.ndarray],
    later_tail: tuple[np.ndarray, np.ndarray],
    tau: float,
    later: float,
    last: np.ndarray,
    log_others: float,
) -> np.ndarray:
    """Relation 3: whether tails at tau and at a later, higher temperature may be of one row."""
    ratio = tau / later
    is_high_enough = later_tail[1] >= np.maximum(
        tail[0] * ratio, tail[0] - (1 / tau - 1 / later) * last
    )
    agree: np.ndarray = is_high_enough & (
        later_tail[0] <= tail[1] * ratio + (1 - ratio) * log_others
    )
    return agree


def _kept_sums(logp: np.ndarray, encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Between which numbers the kept probabilities' sum lies."""
    table, sums = _probabilities(encoding), np.zeros(len(logp), np.complex128)
    for rank in range(logp.shape[1]):
        sums += table[logp[:, rank]]
    return sums.real, sums.imag


@cache
def _probabilities(encoding: Encoding) -> np.ndarray:
    """Lowest and highest of every stored log-probability, as one complex number."""
    lowest, highest = ranges_of_logp(encoding)
    table = np.empty(len(lowest), np.complex128)
    table.real, table.imag = np.exp(lowest), np.exp(highest)
    return table


def _range(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lowest, highest = ranges_of_halves()
    return lowest[bits], highest[bits]


def _half(bits: np.uint16) -> float:
    return float(np.array(bits, np.uint16).view(np.float16))


def _total(logp: np.ndarray, tail: np.ndarray, rules: Rules) -> float:
    kept = float(np.exp(logp.view(np.float16).astype(np.float64)).sum())
    if 1.0 not in rules.temperatures:
        return kept
    return kept + float(np.exp(_half(tail[rules.temperatures.index(1.0)])))
