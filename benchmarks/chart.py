"""The main results as an SVG bar chart, with colours for light and dark pages."""

import statistics
from html import escape
from typing import Any

from benchmarks import report
from benchmarks.programs import LOADS, PEERS

WIDTH, LABEL, BAR, GAP, TOP = 760, 90, 13, 12, 104
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9ecae9")
MAX_RATIO = 10  # a longer bar is cut off; the number next to it is the value

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.even { stroke: #24292f; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .even { stroke: #e6edf3 } }
"""


def headline(results: dict[str, Any]) -> str:
    """Return an SVG with the ratio of requests per second to each peer, for every load that it supports."""
    parts, top = [], TOP
    scale = (WIDTH - LABEL - 70) / MAX_RATIO
    for column, (peer, colour) in enumerate(zip(PEERS, COLOURS, strict=True)):
        x, y = 8 + column % 2 * 300, 38 + column // 2 * 18
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="{y + 9}">{escape(peer.title)}</text>')
    for load, title in LOADS.items():
        ratios = [(report.core(results, load, peer), colour) for peer, colour in zip(PEERS, COLOURS, strict=True)]
        bars = [(statistics.median(values), colour) for values, colour in ratios if values]
        parts.append(f'<text x="8" y="{top + len(bars) * BAR / 2 + 4}">{title}</text>')
        for value, colour in bars:
            length = min(value, MAX_RATIO) * scale
            parts.append(f'<rect x="{LABEL}" y="{top}" width="{length:.0f}" height="{BAR - 2}" fill="{colour}"/>')
            parts.append(f'<text x="{LABEL + length + 5:.0f}" y="{top + 10}">{report.number(value)}</text>')
            top += BAR
        top += GAP
    equal = LABEL + scale
    parts.append(f'<line class="even" x1="{equal:.0f}" x2="{equal:.0f}" y1="{TOP - 4}" y2="{top - GAP + 4}"/>')
    parts.append(f'<text x="{equal - 3:.0f}" y="{top + 6}">1 = as many as the peer</text>')
    title = f"Requests a second of this service, as a multiple of each peer's (bars end at {MAX_RATIO})"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 16}" role="img" aria-label="{title}">'
        f'<style>{STYLE}</style><text class="title" x="8" y="22">{title}</text>{"".join(parts)}</svg>\n'
    )
