"""SVG without a dependency, readable on light and dark pages: the frame of a picture, and a chart of GPU memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

# These colours differ for any colour vision, and white numbers on them are readable. Grey is not for the model.
PARTS = (("weights", "#4477aa"), ("KV cache", "#b4501b"), ("reserve", "#6e7781"))
WIDTH = 900
_LABEL = 300
_RIGHT = 150
_BAR = 20
_STEP = 34
_TOP = 64


@dataclass(frozen=True, slots=True)
class Bar:
    """One GPU: GiB of weights, of KV cache, and of the rest (context, activations, graphs, margin)."""

    label: str
    note: str
    weights: float
    kv: float
    reserve: float

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.reserve


def svg(title: str, bars: Sequence[Bar]) -> str:
    """A chart of GPU memory. One scale for all bars; the largest GPU fills the width."""
    height = _TOP + _STEP * len(bars) + 12
    scale = (WIDTH - _LABEL - _RIGHT) / max(bar.total for bar in bars)
    body = [*legend(8, 36)]
    for index, bar in enumerate(bars):
        body += _bar(bar, _TOP + index * _STEP, scale)
    return frame(title, height, body)


def frame(title: str, height: int, body: Iterable[str]) -> str:
    """A picture of WIDTH x `height` with its title and a background; `body` holds SVG elements."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title" font-family="system-ui, sans-serif" font-size="13">',
        f'<title id="title">{escape(title)}</title>',
        # The picture has its own background, because it follows the reader's colour scheme and the page may not.
        "<style>.page{fill:#fff}text{fill:#1f2328}text.in{fill:#fff}"
        "@media(prefers-color-scheme:dark){.page{fill:#0d1117}text{fill:#e6edf3}}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text x="8" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    return "\n".join([*lines, *body, "</svg>", ""])


def legend(x: int, y: int) -> Iterator[str]:
    """The parts of a GPU's memory and their colours, from left to right."""
    for name, colour in PARTS:
        yield f'<rect x="{x}" y="{y}" width="12" height="12" rx="2" fill="{colour}"/>'
        yield f'<text x="{x + 18}" y="{y + 11}">{name}, GiB per GPU</text>'
        x += 190


def _bar(bar: Bar, top: int, scale: float) -> Iterator[str]:
    middle = top + _BAR - 6
    yield f'<text x="{_LABEL - 10}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>'
    x = float(_LABEL)
    for (_, colour), value in zip(PARTS, (bar.weights, bar.kv, bar.reserve), strict=True):
        width = value * scale
        yield f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
        if width > 34:
            yield f'<text class="in" x="{x + width / 2:.1f}" y="{middle}" text-anchor="middle">{value:.1f}</text>'
        x += width
    yield f'<text x="{x + 8:.1f}" y="{middle}">{escape(bar.note)}</text>'
