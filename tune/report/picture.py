"""`loss_curve.png`: the loss of a run as a picture, to be looked at or sent anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tune.checkpoints.writers import replacing
from tune.errors import TuneError
from tune.report.html import require_own

__all__ = ["draw_picture"]

_MARK = b"tune report"
Points = Sequence[tuple[float, float]]


def draw_picture(path: Path, title: str, loss: Points, val_loss: Points = ()) -> None:
    """Draw the loss over optimizer steps, and the validation loss where there is one, into a PNG file.

    Args:
        path: of the file.
        title: of the picture.
        loss, val_loss: steps and values.

    Raises:
        TuneError: it cannot be written, or a file of its name is none of ours.
    """
    # Half a second, and nothing of it is needed before.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    require_own(path, _MARK)
    figure = Figure(figsize=(8.0, 4.5), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.08, 0.11, 0.89, 0.81))
    for points, name, marker in (
        (loss, "loss, mean since the line before", ""),
        (val_loss, "validation loss", "o"),
    ):
        if points:
            steps, values = zip(*points)
            few = "o" if len(points) < 12 else marker
            axes.plot(steps, values, label=name, linewidth=1.5, marker=few, markersize=4)
    # No name is read as a formula, whatever signs are in it.
    axes.set_title(title[:80], parse_math=False)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if loss or val_loss:
        axes.legend(frameon=False)
    try:
        with replacing(path) as staged, staged.open("wb") as stream:
            canvas.print_png(stream, metadata={"Software": _MARK.decode()})
    except OSError as error:
        raise TuneError(f"{path} cannot be written: {error.strerror}") from error
