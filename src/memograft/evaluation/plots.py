"""Plot the gain of each method where documents contradict the model, against its loss on other sets; what each method
makes of the three contexts of CUB; and a training's loss.

Needs matplotlib, which is imported when a plot is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memograft.errors import MissingExtraError, SettingsError
from memograft.evaluation.metrics import Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COSTS", "GAIN", "Dot", "bars", "check", "check_picture", "curve", "dots", "draw"]

GAIN, COSTS = "contradicts", ("agrees", "unseen", "elsewhere", "beside", "irrelevant")
_UNDRAWN = {"plain", "no document"}  # the origin, and the method without documents
_OUTSIDE = 12.0  # points of loss beyond which a dot is drawn at the edge, so that the others are not squeezed together
# Okabe and Ito's colours, which are safe for colour-blind readers; the shapes differ too.
_STYLES = {"others": ("#6B6B6B", "D", 44), "ours": ("#0072B2", "o", 62), "default": ("#D55E00", "*", 300)}
_LABELS = {"others": "other ways", "ours": "memorized, other settings", "default": "memorized, the default"}
_COLOURS = ("#6B6B6B", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # plain first; also theirs
_USED = "follows the page; if it is irrelevant, keeps the answer without a page"
_NO_WORSE = "of the questions that plain answers right with the page: also right"

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Dot:
    """One method, in points of accuracy relative to plain answering of the same questions.

    Attributes:
        name: the method.
        style: "default", "ours" (other settings of FastMem) or "others".
        gain: on the set that contradicts; `gain_interval` is its 95% interval (low, high).
        loss: on the other set with the largest loss; `loss_interval` likewise.
    """

    name: str
    style: str
    gain: float
    gain_interval: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]


def check(methods: Collection[str], sets: Collection[str], path: Path) -> None:
    """Check before a run that these methods and sets can be plotted.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SettingsError: the file is not a PNG, or the sets it compares, or "plain", are missing.
    """
    check_picture(path)
    if GAIN not in sets or not set(COSTS) & set(sets) or "plain" not in methods or not set(methods) - _UNDRAWN:
        raise SettingsError(
            f"a picture compares methods with plain on the set {GAIN!r} and one at least of {COSTS}, got the methods "
            f"{list(methods)} and the sets {list(sets)}; ask those too, or leave the picture out"
        )


def check_picture(path: Path) -> None:
    """Check before a run that a picture can be drawn into this file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SettingsError: the file is not a PNG.
    """
    if path.suffix.lower() != ".png":
        raise SettingsError(f"a picture must be a .png file, got {path.name!r}; rename it")
    _needs_matplotlib()


def _needs_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            'a picture needs matplotlib, which is not installed; run pip install "memograft[eval]"'
        ) from error


def curve(losses: Sequence[float], path: str | Path, title: str) -> Path:
    """Draw the loss of each step of a training run as a PNG, with a running mean over a fiftieth of the steps.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _needs_matplotlib()
    figure = _figure(10, 5)
    axes = figure.add_axes((0.075, 0.11, 0.9, 0.79))
    steps, width = range(1, len(losses) + 1), max(1, len(losses) // 50)
    means = [sum(losses[max(0, n - width) : n]) / min(n, width) for n in steps]
    axes.plot(steps, losses, color=_STYLES["ours"][0], alpha=0.25, linewidth=0.8)
    axes.plot(steps, means, color=_STYLES["ours"][0], linewidth=1.8)
    axes.set_xlabel("step", fontsize=11)
    axes.set_ylabel("cross-entropy of the answers, nats a token", fontsize=11)
    axes.grid(color="#ECECEC", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left", color="#202020")
    return _saved(figure, Path(path))


def bars(found: Mapping[str, Mapping[str, Numbers]], path: str | Path, title: str) -> Path:
    """Draw `utilisation.utilisation` as a PNG: for each context, a bar for each method, with its interval.

    On the left the answers that are as they should be, on the right those that are right, of plain's right ones.
    """
    figure = _figure(13, 5.2)
    contexts, width = [name for name in next(iter(found.values())) if name != "total"], 0.8 / len(found)
    for side, name, said in ((0.05, "share", _USED), (0.54, "no_worse", _NO_WORSE)):
        axes = figure.add_axes((side, 0.2, 0.45, 0.62))
        for n, (method, cells) in enumerate(found.items()):
            if name == "no_worse" and method == "plain":
                continue  # it is 1 by definition
            drawn = [(place, cells[c]) for place, c in enumerate(contexts) if cells[c][name] is not None]
            heights = [cell[name] for _, cell in drawn]
            spans = [cell["interval" if name == "share" else f"{name}_interval"] for _, cell in drawn]
            ends = [[h - low for h, (low, _) in zip(heights, spans, strict=True)]]
            ends += [[high - h for h, (_, high) in zip(heights, spans, strict=True)]]
            places = [place + (n - (len(found) - 1) / 2) * width for place, _ in drawn]
            axes.bar(
                places,
                heights,
                0.9 * width,
                yerr=ends,
                color=_COLOURS[n % len(_COLOURS)],
                label=method,
                error_kw={"linewidth": 1, "ecolor": "#202020"},
            )
        axes.set_xticks(range(len(contexts)), contexts, fontsize=11)
        axes.set_ylim(0, 1)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#ECECEC", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(said, fontsize=11, loc="left", color="#404040")
    figure.text(0.05, 0.93, title, fontsize=13, fontweight="bold", color="#202020")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="lower center", ncols=min(5, len(found)), frameon=False
    )
    return _saved(figure, Path(path))


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches, at 120 pixels each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dots(results: Mapping[str, Mapping[str, Numbers]], ours: Sequence[str], default: str = "memorized") -> list[Dot]:
    """A dot for each method of `metrics.summary`, except "plain", which is the origin, and "no document"; see `check`.

    Args:
        results: the summary.
        ours: methods that are settings of FastMem.
        default: the highlighted method.
    """
    found = []
    for name, cells in results.items():
        if name in _UNDRAWN:
            continue
        worst = min((cells[c] for c in COSTS if c in cells), key=lambda cell: float(cell["minus_plain"]))
        low, high = worst["minus_plain_interval"]
        style = "default" if name == default else "ours" if name in ours else "others"
        gain, gains = 100 * cells[GAIN]["minus_plain"], cells[GAIN]["minus_plain_interval"]
        interval = (100 * gains[0], 100 * gains[1])
        found.append(Dot(name, style, gain, interval, -100 * worst["minus_plain"], (-100 * high, -100 * low)))
    return found


def draw(found: Sequence[Dot], path: str | Path, title: str, costs: Sequence[str] = COSTS) -> Path:
    """Draw a PNG of 1600 by 1120 pixels. A dot beyond the right edge is drawn on it, with its value.

    `costs` are the sets that losses were taken from.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(10, 7), dpi=160, facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.105, 0.885, 0.765))
    inside = [max(dot.loss, 0.0) for dot in found if not _outside(dot)]
    right = max([2.0, *inside]) * 1.25 + 0.6
    for style, (colour, marker, size) in _STYLES.items():
        chosen = [dot for dot in found if dot.style == style]
        for dot in chosen:
            _bars(axes, dot, right, colour)
            shape, area = (">", 90) if _outside(dot) else (marker, size)
            axes.scatter(
                _x(dot, right), dot.gain, s=area, c=colour, marker=shape, edgecolors="white", zorder=4, clip_on=False
            )
        if chosen:
            axes.scatter([], [], s=size, c=colour, marker=marker, label=_LABELS[style])
    axes.scatter([0], [0], s=60, facecolors="white", edgecolors="black", linewidths=1.4, zorder=3, label="plain")
    axes.set_xlabel(f"points lost on the worst of: {', '.join(costs)}", fontsize=11.5, labelpad=8)
    axes.set_ylabel(f"points gained on: {GAIN}", fontsize=11.5, labelpad=8)
    _frame(axes, figure, found, right, title)
    canvas.draw()
    _label(axes, canvas.get_renderer(), found, right)
    return _saved(figure, Path(path))


def _saved(figure: Figure, path: Path) -> Path:
    """Write a PNG under another name first, so that the file is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    part.replace(path)
    return path


def _outside(dot: Dot) -> bool:
    return dot.loss > _OUTSIDE


def _x(dot: Dot, right: float) -> float:
    return right if _outside(dot) else dot.loss


def _lines(dot: Dot, right: float) -> list[Box]:
    """The intervals of a dot as (x0, y0, x1, y1), clipped to the plot."""
    x = _x(dot, right)
    upright = (x, dot.gain_interval[0], x, dot.gain_interval[1])
    level = (dot.loss_interval[0], dot.gain, min(dot.loss_interval[1], right), dot.gain)
    return [upright] if _outside(dot) else [upright, level]


def _bars(axes: Axes, dot: Dot, right: float, colour: str) -> None:
    for x0, y0, x1, y1 in _lines(dot, right):
        axes.plot([x0, x1], [y0, y1], color=colour, alpha=0.38, linewidth=1.1, zorder=2, solid_capstyle="round")


def _frame(axes: Axes, figure: Figure, found: Sequence[Dot], right: float, title: str) -> None:
    """Draw axes, texts and lines around the dots."""
    left = min([0.0, *(dot.loss_interval[0] for dot in found if not _outside(dot))])
    low, high = min([0.0, *(d.gain_interval[0] for d in found)]), max(d.gain_interval[1] for d in found)
    room = max(high - low, 4.0)
    axes.set_xlim(left - 0.06 * (right - left), right + 0.02 * (right - left))
    axes.set_ylim(low - 0.09 * room, high + 0.12 * room)
    axes.axhline(0, color="#B0B0B0", linewidth=0.9, zorder=1)
    axes.axvline(0, color="#B0B0B0", linewidth=0.9, zorder=1)
    axes.grid(color="#ECECEC", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#808080")
    axes.tick_params(colors="#404040", labelsize=10.5, length=3)
    figure.text(0.085, 0.945, title, fontsize=14.5, fontweight="bold", color="#202020")
    said = "Against plain answering, on the same questions; thin lines are 95% intervals. Up and to the left is better."
    figure.text(0.085, 0.905, said, fontsize=10.5, color="#505050")
    axes.legend(loc="lower right", frameon=True, framealpha=0.95, edgecolor="#DDDDDD", fontsize=10.5, borderpad=0.7)


def _label(axes: Any, renderer: Any, found: Sequence[Dot], right: float) -> None:
    """Write every dot's name beside it without overlaps; if necessary farther away, with a line."""
    from matplotlib.patheffects import withStroke

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = axes.transData.transform((x, y))
        return float(across), float(up)

    spots = [(place(_x(dot, right), dot.gain), dot) for dot in found]
    reach = 0.09 * renderer.dpi  # radius of a dot in pixels
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in [place(0, 0), *(s for s, _ in spots)]]
    taken.append(tuple(axes.get_legend().get_window_extent(renderer).extents))
    bars = [(*place(x0, y0), *place(x1, y1)) for dot in found for x0, y0, x1, y1 in _lines(dot, right)]
    thick = [(x0 - 1, y0 - 1, x1 + 1, y1 + 1) for x0, y0, x1, y1 in bars]
    inside = tuple(axes.get_window_extent(renderer).extents)
    # The default first, because it is the most important one, then from top to bottom.
    for spot, dot in sorted(spots, key=lambda s: (s[1].style != "default", -s[1].gain)):
        bold = dot.style == "default"
        text = axes.annotate(
            dot.name + (f"  ({dot.loss:.0f} points lost)" if _outside(dot) else ""),
            xy=spot,
            xycoords="figure pixels",
            xytext=spot,
            textcoords="figure pixels",
            va="bottom",
            fontsize=11.5 if bold else 9.5,
            fontweight="bold" if bold else "normal",
            color=_STYLES["default"][0] if bold else "#303030",
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": "#A0A0A0", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5},
            path_effects=[withStroke(linewidth=2.6, foreground="white")],
        )
        text.arrow_patch.set_visible(False)
        size = text.get_window_extent(renderer)
        best, near, chosen = math.inf, True, (0.0, 0.0, 0.0, 0.0)
        for distance in (0, 14, 28, 44, 62, 84, 110, 140, 180, 230):
            for n, box in enumerate(_boxes(spot, size.width, size.height, reach + distance)):
                outside = size.width * size.height - _shared(box, [inside])
                # Overlaps with names and dots cost most; a larger distance is better than crossing an interval.
                cost = 100 * (_shared(box, taken) + outside) + 0.05 * _shared(box, thick) + 1.5 * distance + n
                if cost < best:
                    best, near, chosen = cost, distance == 0, box
        text.set_position(chosen[:2])
        text.arrow_patch.set_visible(not near)
        taken.append(chosen)


def _boxes(spot: tuple[float, float], width: float, height: float, away: float) -> list[Box]:
    """Positions for a text beside a dot: right, left, the four corners, above and below."""
    x, y = spot
    across = {1: x + away, 0: x - width / 2, -1: x - away - width}
    up = {1: y + away, 0: y - height / 2, -1: y - away - height}
    sides = [(1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1)]
    return [(across[h], up[v], across[h] + width, up[v] + height) for h, v in sides]


def _shared(box: Box, others: Sequence[Box]) -> float:
    """Area in square pixels that the box shares with others."""
    x0, y0, x1, y1 = box
    return sum(max(0.0, min(x1, b[2]) - max(x0, b[0])) * max(0.0, min(y1, b[3]) - max(y0, b[1])) for b in others)
