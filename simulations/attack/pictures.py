"""What an attack page shows: curves as SVG, and pictures as PNG within the page.

Shapes: C channels, H height, W width.
"""

import base64
import io

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from PIL import Image

from common.privacy.odds import most_hits
from simulations.attack.attack import Attacked, Findings
from simulations.attack.inversion import GREY, Picture, PixelRange
from simulations.attack.roc import Curve, Hits
from simulations.report_charts import ACCENT, INK, OTHER, RATES, STYLE, axes_of, svg

SIZE = (8.4, 4.2)  # inches
LEAST = RATES[0]  # of the axes, where both begin
NUDGE = 1.04  # so that two intervals at one rate do not hide each other


def curves(findings: Findings, *, label: str) -> str:
    """Draw what the attacks recognise over what they accuse wrongly, both on a logarithmic scale."""
    private = findings.private
    without = "noise left out" if private else "no privacy"
    with rc_context(STYLE | {"svg.hashsalt": "attack"}):
        figure, axes = axes_of(SIZE)
        if findings.limit is not None:
            most = [most_hits(findings.limit.pairs, rate) for rate in RATES]
            axes.plot(RATES, most, color=INK, linewidth=1.2, label="limit at the run's ε and δ")
        _draw(axes, findings.unprotected, colour=OTHER, words=without, nudge=NUDGE)
        if private is not None:
            _draw(axes, private, colour=ACCENT, words="private", nudge=1 / NUDGE)
        axes.plot(RATES, RATES, ":", color=INK, linewidth=1, label="guessing blindly")
        axes.set(xscale="log", yscale="log", xlim=(0.88 * LEAST, 1), ylim=(LEAST, 1.15))
        axes.set(xlabel="wrongly accused, of those not in the data", ylabel="recognised, of those in it")
        axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
        axes.yaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return svg(figure, "attack", label)


def _draw(axes: Axes, found: Attacked, *, colour: str, words: str, nudge: float) -> None:
    """Two curves, and the intervals of the better attack."""
    _line(axes, found.likelihood_ratio, "-", colour, f"likelihood ratio, {words}")
    _line(axes, found.loss, "--", colour, f"loss threshold, {words}")
    for hits in found.likelihood_ratio_hits:
        _interval(axes, hits, colour, hits.rate * nudge)


def _line(axes: Axes, curve: Curve, dash: str, colour: str, label: str) -> None:
    axes.plot(RATES, [curve.hits(rate) for rate in RATES], dash, color=colour, label=label, drawstyle="steps-post")


def _interval(axes: Axes, hits: Hits, colour: str, rate: float) -> None:
    low, high = max(hits.low, LEAST), max(hits.high, LEAST)
    axes.plot([rate, rate], [low, high], color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")


def png(picture_CHW: Picture, pixels: PixelRange) -> str:
    """Return a picture as a data address that a page can show: grey, or in colours where it has three channels."""
    shade_CHW = (picture_CHW.astype(np.float64) - pixels.low) / (pixels.high - pixels.low)
    byte_CHW = np.clip(np.rint(255 * shade_CHW), 0, 255).astype(np.uint8)
    image = Image.fromarray(byte_CHW[0] if len(byte_CHW) == GREY else np.moveaxis(byte_CHW, 0, -1))
    file = io.BytesIO()
    image.save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
