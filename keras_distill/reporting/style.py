"""How pictures look: one colour a model, figures, thumbnails, and PNGs for light and for dark."""

import io
import warnings
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_distill._types import PathLike

# Okabe and Ito's colours, told apart by colour-blind eyes too, then Tol's "muted" ones.
ROLES = {"teacher": "#0072B2", "alone": "#E69F00", "distilled": "#009E73"}
OTHERS = (
    "#D55E00", "#CC79A7", "#56B4E9", "#555555",
    "#882255", "#999933", "#332288", "#AA4499", "#117733",
)  # fmt: skip
GREY = "#666666"
WIDTH = 3.9  # inches: so narrow that the text is readable on a phone
DOTS = 170  # an inch
TEXT = 8  # points
PHOTO = "photograph"  # marks what keeps its colours in the dark
# Paper and ink of the page in the dark, as `page.STYLE` has them.
DARK_PAPER, DARK_INK = (13, 17, 23), (230, 237, 243)


def colours(names: Iterable[str], roles: Mapping[str, str] | None = None) -> dict[str, str]:
    """A colour for each model, the same in all pictures of a report.

    Args:
        names: The models' names.
        roles: A dict of name -> "teacher", "alone" or "distilled". Defaults to these three,
            in the order of the names.

    Returns:
        A dict of name -> "#RRGGBB".
    """
    names = list(dict.fromkeys(names))
    roles = dict(zip(names, ROLES)) if roles is None else roles
    chosen, taken = {}, set()
    for name in names:
        role = roles.get(name)
        if role in ROLES and role not in taken:
            chosen[name] = ROLES[role]
            taken.add(role)
    others = [name for name in names if name not in chosen]
    return chosen | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def figure(width=WIDTH, height=3.0):
    """An empty matplotlib figure, sides in inches.

    Raises:
        ImportError: If matplotlib is missing; it names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: pip install "keras-distill[plots]"') from error
    # Not through pyplot: no global state, no window, nothing to close.
    drawn = Figure(figsize=(width, height), layout="constrained")
    drawn.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return drawn


def single(width=WIDTH, height=3.0):
    """`(figure, axes)` of one panel."""
    drawn = figure(width, height)
    axis = drawn.add_subplot()
    tidy(axis)
    return drawn, axis


def grid(count, columns, width, height, more=0.6):
    """`(figure, list of axes)` of so many panels, each `width` by `height` inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    drawn = figure(max(width * columns, 3.2), height * rows + more)
    axes = [drawn.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axis in axes:
        tidy(axis)
    return drawn, axes


def tidy(axis):
    """Small figures on the axes, and no frame where nothing is read off."""
    axis.tick_params(labelsize=TEXT - 0.5, length=2, color=GREY)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)


def blank(axis):
    """Takes ticks and frame away: a panel for pictures and words."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def photograph(axis, image, left, top, side=1.0):
    """Draws an image into a square of the axes, whose y grows downwards.

    Args:
        axis: Axes with data coordinates of equal scale.
        image: Array (height, width, channels), uint8 or in 0..1.
        left, top: Its corner.
        side: Its longer side; the shorter one is in proportion.
    """
    image = np.asarray(image)
    height, width = (side * n / max(image.shape[:2]) for n in image.shape[:2])
    options = {}
    if image.shape[-1] < 3:
        image = image[..., 0]
        options = {"cmap": "gray", "vmin": 0, "vmax": 255 if image.dtype.kind == "u" else 1}
    elif image.dtype.kind == "f":
        image = np.clip(np.nan_to_num(image), 0.0, 1.0)
    if image.ndim == 3:
        image = image[..., :3]
    left, top = left + (side - width) / 2, top + (side - height) / 2
    axis.imshow(image, extent=(left, left + width, top + height, top), gid=PHOTO, **options)


def line(colour, style="-"):
    """A line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style)


def label(text, most=28):
    """A name as matplotlib shows it unchanged: cut, no mathematics, no hidden legend entry."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    text = text if len(text) <= most else text[: most - 1] + "…"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def png(drawn):
    """A figure as PNG, in black on white and as it is shown in the dark.

    In the dark each pixel's lightness is turned round and its hue kept, but for photographs:
    a model has the same colour in both.

    Args:
        drawn: A figure of this module.

    Returns:
        Two `bytes`: for light and for dark pages.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn.set_dpi(DOTS)
    drawn.set_facecolor("white")
    canvas = FigureCanvasAgg(drawn)
    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        canvas.draw()
    light = np.array(canvas.buffer_rgba())[..., :3]
    height = len(light)
    dark = _turned(light)
    for axis in drawn.axes:
        for image in axis.images:
            if image.get_gid() != PHOTO:
                continue
            box = image.get_window_extent(canvas.get_renderer())
            left, right = (max(0, round(x)) for x in (box.x0, box.x1))
            top, bottom = (max(0, round(height - y)) for y in (box.y1, box.y0))
            dark[top:bottom, left:right] = light[top:bottom, left:right]
    return _encoded(light), _encoded(dark)


def save(drawn: Any, path: PathLike) -> None:
    """Writes a figure as PNG, black on white."""
    with open(path, "wb") as file:
        file.write(png(drawn)[0])


def _turned(light):
    """The same hues with the lightness turned round, from the dark page's paper to its ink."""
    wide = light.astype("int16")
    turned = wide + (255 - wide.max(-1, keepdims=True) - wide.min(-1, keepdims=True))
    paper, ink = np.array(DARK_PAPER, "float32"), np.array(DARK_INK, "float32")
    return (paper + turned * (ink - paper) / 255).round().astype("uint8")


def _encoded(pixels):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", compress_level=6)
    return file.getvalue()
