"""A picture of a window: its load, and for each rule the wanted size, the pods, and the requests that were missed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from bench.autoscaling.fleet import Case, Result, Story
from bench.picture import WIDTH, frame

_LEFT, _RIGHT, _TOP, _LANE, _GAP = 190, 16, 56, 84, 12
_POINTS = 480
_LOAD, _PODS, _READY, _WANTED, _MISSED = "#6e7781", "#4477aa", "#4477aa", "#b4501b", "#cc3311"
_SMALL = 'font-size="11"'
Lane = tuple[str, Result, Story]


def picture(title: str, case: Case, lanes: Sequence[Lane]) -> str:
    """One lane for the load and one for each rule."""
    end = case.requests[-1].arrival if case.requests else 1.0
    height = _TOP + (1 + len(lanes)) * (_LANE + _GAP) + 24
    return frame(title, height, _body(case, lanes, max(end, 1.0)))


def _body(case: Case, lanes: Sequence[Lane], end: float) -> Iterator[str]:
    scale = (WIDTH - _LEFT - _RIGHT) / end
    yield from _legend()
    yield from _axis(end, scale, _TOP + (1 + len(lanes)) * (_LANE + _GAP))
    load = _per_point([request.arrival for request in case.requests], end)
    base = _TOP + _LANE
    yield from _label("requests per second", f"at most {max(load):.1f}", base)
    yield f'<path d="{_area(load, max(load), base, end, scale)}" fill="{_LOAD}" fill-opacity="0.7"/>'
    for number, (name, result, story) in enumerate(lanes, 1):
        yield from _rule((name, result, story), _TOP + number * (_LANE + _GAP) + _LANE, end, scale)
    yield from _unscored(case, scale, _TOP + (1 + len(lanes)) * (_LANE + _GAP) - _GAP)


def _rule(lane: Lane, base: float, end: float, scale: float) -> Iterator[str]:
    name, result, story = lane
    most = max((max(moment.pods, moment.wanted) for moment in story.moments), default=1)
    yield from _label(name, f"{result.kept:.2%} kept, {result.gpu_hours:.1f} GPU-hours, at most {most}", base)
    for values, colour, opacity in (
        ([(moment.at, moment.pods) for moment in story.moments], _PODS, 0.3),
        ([(moment.at, moment.ready) for moment in story.moments], _READY, 0.6),
    ):
        area = f"{_steps(values, most, base, scale)}V{base}H{_LEFT}Z"
        yield f'<path d="{area}" fill="{colour}" fill-opacity="{opacity}"/>'
    wanted = _steps([(moment.at, moment.wanted) for moment in story.moments], most, base, scale)
    yield f'<path d="{wanted}" fill="none" stroke="{_WANTED}" stroke-width="1.2"/>'
    missed = _per_point(story.missed, end)
    largest = max(missed) or 1.0
    for point, rate in enumerate(missed):
        if rate:
            x, tall = _LEFT + (point + 0.5) * end / _POINTS * scale, 3 + 9 * rate / largest
            yield f'<path d="M{x:.1f} {base + 1}v{-tall:.1f}" stroke="{_MISSED}" stroke-width="1.3"/>'


def _per_point(times: Sequence[float], end: float) -> list[float]:
    """How many per second, for each point of the picture."""
    counts = [0] * _POINTS
    for at in times:
        counts[min(_POINTS - 1, int(at / end * _POINTS))] += 1
    return [count * _POINTS / end for count in counts]


def _area(values: Sequence[float], most: float, base: float, end: float, scale: float) -> str:
    unit, step = (_LANE - 16) / (most or 1.0), end / _POINTS * scale
    points = "".join(f"L{_LEFT + point * step:.1f} {base - value * unit:.1f}" for point, value in enumerate(values))
    return f"M{_LEFT} {base}{points}V{base}Z"


def _steps(values: Sequence[tuple[float, int]], most: int, base: float, scale: float) -> str:
    """A line of steps. Moments in which nothing changes are left out."""
    unit, path, last = (_LANE - 16) / max(1, most), [f"M{_LEFT} {base}"], -1
    for at, value in values:
        if value != last:
            path.append(f"H{_LEFT + at * scale:.1f}V{base - value * unit:.1f}")
            last = value
    at = values[-1][0] if values else 0.0
    return "".join([*path, f"H{_LEFT + at * scale:.1f}"])


def _label(name: str, note: str, base: float) -> Iterator[str]:
    yield f'<text x="8" y="{base - 40}">{escape(name)}</text>'
    first, _, rest = note.partition(", ")
    yield f'<text x="8" y="{base - 24}" {_SMALL}>{escape(first)}</text>'
    yield f'<text x="8" y="{base - 10}" {_SMALL}>{escape(rest)}</text>'


def _legend() -> Iterator[str]:
    x = _LEFT
    for text, colour, opacity in (
        ("pods", _PODS, 0.3),
        ("pods that answer", _READY, 0.9),
        ("wanted", _WANTED, 1),
        ("requests missed", _MISSED, 1),
    ):
        yield f'<rect x="{x}" y="32" width="12" height="12" rx="2" fill="{colour}" fill-opacity="{opacity}"/>'
        yield f'<text x="{x + 18}" y="43">{text}</text>'
        x += 40 + 8 * len(text)


def _axis(end: float, scale: float, bottom: float) -> Iterator[str]:
    step = next((each for each in (300, 600, 1800, 3600, 7200) if end / each <= 12), 14400)
    for at in range(0, int(end) + 1, step):
        x = _LEFT + at * scale
        yield f'<path d="M{x:.1f} {_TOP}V{bottom - _GAP}" stroke="#6e7781" stroke-opacity="0.25"/>'
        shown = f"{at / 3600:g} h" if step >= 3600 else f"{at // 60} min"
        yield f'<text x="{x:.1f}" y="{bottom + 6}" text-anchor="middle" {_SMALL}>{shown}</text>'


def _unscored(case: Case, scale: float, bottom: float) -> Iterator[str]:
    if case.unscored:
        size = f'width="{case.unscored * scale:.1f}" height="{bottom - _TOP}"'
        yield f'<rect x="{_LEFT}" y="{_TOP}" {size} fill="#6e7781" fill-opacity="0.15"/>'
        yield f'<text x="{_LEFT + 4}" y="{_TOP + 12}" {_SMALL}>not scored</text>'
