"""Results as text for a person."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results import Figure, Goal, Result, Spread


def render(results: Sequence[Result]) -> str:
    """A table with a line for every case, and below it how the goals were kept."""
    lines = _table([result for result in results if not result.skipped])
    lines += [f"skipped {result.case}: {result.skipped}" for result in results if result.skipped]
    lines += [_goal(goal) for result in results for goal in result.goals]
    return "\n".join(lines)


def _table(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    columns = list(dict.fromkeys(name for result in results for name in result.figures))
    rows = [["case", *columns]]
    rows += [
        [result.case, *(_figure(result.figures.get(name, "")) for name in columns)]
        for result in results
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def _goal(goal: Goal) -> str:
    word = "at least" if goal.at_least else "at most"
    verdict = "kept  " if goal.met else "MISSED"
    return (
        f"{verdict}  {goal.what}: {_figure(goal.value)} {goal.unit}, "
        f"{word} {goal.bound:g} ({goal.value.count} measured)"
    )


def _figure(figure: Figure) -> str:
    if isinstance(figure, Spread):
        middle = _number(figure.median)
        if figure.count == 1:
            return middle
        return f"{middle} ({_number(figure.low)} to {_number(figure.high)})"
    return figure if isinstance(figure, str) else _number(figure)


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
