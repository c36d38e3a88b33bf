"""Tables of a run's results: means over seeds with their standard errors, and the gain."""

import dataclasses
import html
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_distill._checks import message

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, column heads and rows of strings; the first column is text, the rest numbers."""

    title: str
    columns: tuple
    rows: tuple

    def text(self, width: int | None = None) -> str:
        """The table drawn for a terminal; nothing in it is ever cut off.

        Args:
            width: Columns of the terminal. Where the table is wider, its heads are broken
                into words. None: as wide as it is.
        """
        drawn = self._draw(self.columns)
        if width is not None and max(map(len, drawn.splitlines())) > width:
            drawn = self._draw([column.replace(" ", "\n") for column in self.columns])
        return drawn

    def _draw(self, heads):
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, padding=0)
        for i, head in enumerate(heads):
            justify = "right" if i else "left"
            table.add_column(Text(head), justify=justify, vertical="bottom", no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))  # Text: brackets are no markup
        console = Console(width=10_000, color_system=None, legacy_windows=False)
        with console.capture() as capture:
            console.print(table)
        # The box has an empty column on the left.
        lines = [line[1:].rstrip() for line in capture.get().splitlines()]
        return "\n".join([self.title, *filter(None, lines)])

    def markdown(self) -> str:
        """The table in GitHub's Markdown, without its title."""

        def line(cells):
            escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
            return f"| {' | '.join(html.escape(cell, quote=False) for cell in escaped)} |"

        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        return "\n".join([line(self.columns), f"| {' | '.join(rule)} |", *map(line, self.rows)])

    def html(self) -> str:
        """The table as an HTML element; every text is escaped."""
        heads = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        rows = "".join(
            f'<tr><th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return (
            f'<div class="table"><table><caption>{html.escape(self.title)}</caption>'
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        )


@dataclasses.dataclass(frozen=True)
class Gain:
    """What one model gains over another with the same seeds, in shares (0.01 = one point).

    Attributes:
        mean: Mean over seeds of the difference.
        error: Its standard error; None for one seed.
        seeds: Number of seeds.
    """

    mean: float
    error: float | None
    seeds: int

    @property
    def exceeds(self) -> bool:
        """Whether the gain is above twice its standard error."""
        return self.error is not None and self.mean > 2 * self.error


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error of the mean (sample standard deviation / sqrt(count)).

    Args:
        values: One number or more.

    Returns:
        (mean, error); the error is None for a single value.
    """
    values = [float(value) for value in values]
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def paired_gain(baseline: Sequence[float], model: Sequence[float]) -> Gain:
    """The gain of `model` over `baseline`, paired by seed.

    Args:
        baseline: A number for each seed.
        model: A number for each seed, in the same order.

    Returns:
        A `Gain`.

    Raises:
        ValueError: If the numbers of seeds differ or are 0.
    """
    if len(baseline) != len(model) or not len(model):
        raise ValueError(
            message(
                f"as many seeds as the baseline's {len(baseline)}, one or more",
                "seeds",
                len(model),
            )
        )
    mean, error = mean_and_error([after - before for before, after in zip(baseline, model)])
    return Gain(mean, error, len(model))


def gain_sentence(results: Mapping[str, Any]) -> str:
    """Says in one sentence what the gain is and whether it exceeds twice its standard error.

    Args:
        results: As `report` describes; an empty string where it names no `gain`.
    """
    if not results.get("gain"):
        return ""
    names = results["gain"]["baseline"], results["gain"]["model"]
    accuracies = {model["name"]: model["accuracy"] for model in results["models"]}
    gain = paired_gain(accuracies[names[0]], accuracies[names[1]])
    start = f"{names[1]} against {names[0]}: {100 * gain.mean:+.1f}"
    if gain.error is None:
        return f"{start} points of accuracy with one seed, which tells nothing of its error."
    start += f" ± {100 * gain.error:.1f} points of accuracy over {gain.seeds} seeds"
    if gain.exceeds:
        return f"{start}: the gain exceeds twice its standard error."
    if gain.mean <= 0:
        return f"{start}: there is no gain."
    return f"{start}: the gain does not exceed twice its standard error, so none is shown."


def models_table(results: Mapping[str, Any]) -> Table:
    """Accuracy, agreement, calibration, size and speed of each model.

    Args:
        results: As `report` describes.

    Returns:
        A `Table`; columns for which no model has a value are left out.
    """
    columns = {
        "accuracy %": lambda model: percent(model.get("accuracy")),
        "agrees with teacher %": lambda model: percent(model.get("agreement")),
        "ECE %": lambda model: percent(model.get("calibration_error")),
        "seeds": lambda model: str(len(model["accuracy"])),
        "parameters": lambda model: whole(model.get("parameters")),
        "size": lambda model: size(model.get("bytes")),
        "ms an image": lambda model: milliseconds(model.get("latency_ms")),
    }
    title = "Models: mean ± standard error over seeds"
    table = _table(title, "model", results["models"], columns)
    if "ECE %" in table.columns:
        table = dataclasses.replace(table, title=f"{title}; ECE: expected calibration error")
    return table


def exports_table(results: Mapping[str, Any]) -> Table | None:
    """Size, speed and parity of each exported file.

    Args:
        results: As `report` describes.

    Returns:
        A `Table`, or None where nothing was exported.
    """
    exports = results.get("exports") or []
    if not exports:
        return None
    columns = {
        "numbers": lambda export: export.get("quantization") or "float32",
        "size": lambda export: size(export.get("bytes")),
        "ms an image": lambda export: milliseconds(export.get("latency_ms")),
        "accuracy %": lambda export: percent(export.get("accuracy")),
        "agrees with Keras %": lambda export: percent(export.get("agreement")),
        "largest difference": lambda export: scientific(export.get("largest_difference")),
    }
    named = [{**export, "name": export["file"]} for export in exports]
    return _table("Exported files", "file", named, columns)


def _table(title, first, entries, columns):
    rows = [(entry["name"], *(cell(entry) for cell in columns.values())) for entry in entries]
    kept = [0] + [i for i in range(1, len(columns) + 1) if any(row[i] != MISSING for row in rows)]
    heads = (first, *columns)
    return Table(
        title, tuple(heads[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows)
    )


def percent(values):
    """Shares as percent: `"92.4 ± 0.7"`, or `"92.4"` for a single one."""
    if values is None or values == []:
        return MISSING
    values = values if isinstance(values, (list, tuple)) else [values]
    if any(value is None for value in values):
        return MISSING
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f}" if error is None else f"{100 * mean:.1f} ± {100 * error:.1f}"


def whole(value):
    """A count with its thousands set apart."""
    return MISSING if value is None else f"{value:,}"


def size(count):
    """Bytes as kB or MB (powers of ten)."""
    if count is None:
        return MISSING
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def milliseconds(value):
    """Milliseconds with three significant digits."""
    return MISSING if value is None else f"{value:.3g}"


def scientific(value):
    """A small number with two significant digits."""
    return MISSING if value is None else f"{value:.1e}"
