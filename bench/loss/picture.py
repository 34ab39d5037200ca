"""A picture of the first event of a run: requests that wait, and those in each engine, over time."""

from __future__ import annotations

from collections.abc import Iterator

from bench.loss.run import Result
from bench.picture import WIDTH, frame

_LEFT, _RIGHT, _TOP, _LANE = 96, 16, 48, 64
_WAITING, _ENGINES = "#b4501b", ("#4477aa", "#228833", "#66ccee", "#aa3377")
_SMALL = 'font-size="11"'


def picture(result: Result, seconds: float = 40.0) -> str:
    """The first `seconds` of a run."""
    engines = sorted({engine for engine, moment, _, _ in result.notes if moment < result.begun_at + seconds})
    lanes = [("waiting", _WAITING, [(at - result.begun_at, count) for at, count in result.waiting])]
    for number, engine in enumerate(engines):
        lanes.append((f"engine {number + 1}", _ENGINES[number % len(_ENGINES)], _running(result, engine)))
    verdict = "none lost, none executed twice" if result.good else "requests were lost or executed twice"
    title = f"Requests of {result.clients} clients while a model is {result.event}: {verdict}"
    height = _TOP + len(lanes) * _LANE + 28
    return frame(title, height, _body(lanes, seconds))


def _running(result: Result, engine: str) -> list[tuple[float, int]]:
    """(second, requests in the engine) after each begin and end."""
    points, count = [(0.0, 0)], 0
    changes = sorted((moment, what) for name, moment, what, _ in result.notes if name == engine)
    for moment, what in changes:
        count += 1 if what == "begin" else -1
        points.append((moment - result.begun_at, count))
    return points


def _body(lanes: list[tuple[str, str, list[tuple[float, int]]]], seconds: float) -> Iterator[str]:
    scale = (WIDTH - _LEFT - _RIGHT) / seconds
    bottom = _TOP + len(lanes) * _LANE
    for second in range(0, int(seconds) + 1, 5):
        x = _LEFT + second * scale
        yield f'<path d="M{x:.1f} {_TOP - 8}V{bottom}" stroke="#6e7781" stroke-opacity="0.25"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" {_SMALL}>{second} s</text>'
    for number, (name, colour, points) in enumerate(lanes):
        base = _TOP + (number + 1) * _LANE - 12
        most = max((count for at, count in points if at <= seconds), default=0)
        yield f'<text x="{_LEFT - 10}" y="{base - 14}" text-anchor="end">{name}</text>'
        yield f'<text x="{_LEFT - 10}" y="{base}" text-anchor="end" {_SMALL}>at most {most}</text>'
        yield f'<path d="{_steps(points, seconds, scale, base, most)}" fill="{colour}" fill-opacity="0.8"/>'


def _steps(points: list[tuple[float, int]], seconds: float, scale: float, base: int, most: int) -> str:
    """The outline of the number over time, one value for each tenth of a second."""
    unit = (_LANE - 20) / max(1, most)
    values: dict[int, int] = {}
    for at, count in points:
        if 0 <= at <= seconds:
            values[int(at * 10)] = count
    path, last = [f"M{_LEFT} {base}"], 0
    for tenth in range(int(seconds * 10) + 1):
        last = values.get(tenth, last)
        path.append(f"L{_LEFT + tenth / 10 * scale:.1f} {base - last * unit:.1f}")
    return "".join([*path, f"L{_LEFT + seconds * scale:.1f} {base}Z"])
