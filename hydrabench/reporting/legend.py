"""The text around a table: headings, caption, notes, protocols, sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hydrabench.evaluators import EVALUATORS
from hydrabench.evaluators.flags import flag_texts
from hydrabench.reporting.columns import OPEN, PUBLISHED, Column, Protocol, titles
from hydrabench.reporting.evaluations import IMPORTED
from hydrabench.reporting.leaderboard import Leaderboard
from hydrabench.reporting.published import published_notes, shortened_names

MISSING = "–"


def headings(board: Leaderboard) -> dict[Column, str]:
    """Return the heading of each column, see `columns.titles`."""
    return titles(board.columns, board.protocols)


def caption(board: Leaderboard) -> str:
    """Return the images and the unit: the one line that everything in the table shares."""
    images = list(dict.fromkeys(str(column.images) for column in board.columns))
    return f"{' · '.join(images)}. Accuracy in percent with 95 % intervals."


def notes(board: Leaderboard) -> list[str]:
    """Return how to read the table, as far as it concerns columns that are in it."""
    called = headings(board)
    ranked = "; ".join(f"{name} by {called[column]}" for name, column in board.score.items())
    return [
        *_of_claims({column.claims for column in board.columns}),
        *_of_evaluators(board),
        *_of_networks(board),
        "A rank is a range within the networks of one group: a network is ranked below those that are better on the "
        f"same images by more than chance, and above those that are worse ({ranked}).",
        "Density is the fraction of weights kept; nonzero counts the weights that are not 0.",
    ]


def _of_claims(claims: Collection[str]) -> Iterator[str]:
    """Yield what numbers say about the truth."""
    if "upper" in claims or "lower" in claims:
        yield (
            "At one radius, verified ≤ true ≤ attacked: accuracy under attack is an upper bound on the true robust "
            "accuracy (a stronger attack can only lower it), verified accuracy a lower bound (a tighter bound can only "
            "raise it)."
        )
    yield (
        "Intervals cover the sampling of images only: Wilson for clean and attacked accuracy, Clopper–Pearson for "
        "verified and certified accuracy, Student's t for mean radii (pixel units, L2; wrong or abstained counts 0)."
    )
    if "gap" in claims:
        yield (
            "Open: neither verified by any bound nor broken by any attack here, image by image. The true robust "
            "accuracy lies between the images that are verified and those that are verified or open."
        )


def _of_evaluators(board: Leaderboard) -> Iterator[str]:
    """Yield what evaluators say of their settings."""
    for kind in dict.fromkeys(column.kind for column in board.columns if column.kind not in (OPEN, PUBLISHED)):
        of_kind = [column for column in board.columns if column.kind == kind]
        read = [(protocol_of(board, column).read(), column.images.n) for column in of_kind]
        yield from EVALUATORS[kind].notes(read)


def _of_networks(board: Leaderboard) -> Iterator[str]:
    """Yield what sets some networks apart: flags, imports, and an epoch that the test images chose."""
    if flagged := _flagged(board):
        yield (
            f"Flagged, by checks of the attacks and of the network on its first images: {flagged}. Accuracy under "
            "attack may then be far above the truth; try an attack that is made for such networks."
        )
    if any(column.precision == IMPORTED for column in board.columns):
        names = shortened_names([r.label for r in board.rows if any(c.precision == IMPORTED for c in r.cells)])
        yield (
            f"Imported: {names}. Such tables hold no hashes of the pixels, so only labels were compared with the other "
            "ledgers; data set, σ and all else come from the options of the import, and a radius that is printed with "
            "few digits counts as the least that rounds to it."
        )
    yield from published_notes(board.external)
    if any(row.checkpoint.selection == "test" for row in board.rows):
        yield "† The test images chose the epoch of this network, which makes its numbers too good."


def _flagged(board: Leaderboard) -> str:
    """Name the flagged networks and protocols with their flags."""
    lines = {
        f"{one.checkpoint.name} under {one.protocol}: {', '.join(flag_texts(one.flags))}"
        for one in board.evaluations
        if one.flags
    }
    return "; ".join(sorted(lines))


def protocol_lines(board: Leaderboard) -> list[tuple[str, str]]:
    """The protocol ids in the order of the columns, each with what it means and its settings."""
    return [
        (protocol.id, "; ".join(filter(None, (protocol.meaning, _settings_text(protocol)))))
        for protocol in board.protocols
    ]


def protocol_of(board: Leaderboard, column: Column) -> Protocol:
    """Return the protocol of a column."""
    return next(one for one in board.protocols if one.id == column.protocol)


def _settings_text(protocol: Protocol) -> str:
    """Write {"steps": 50, "losses": ["ce", "margin"]} as "steps 50, losses ce + margin", without what is not in use."""
    unused = protocol.read().unused if protocol.settings else ()
    return ", ".join(
        key if value is True else f"{key} {' + '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for key, value in protocol.settings.items()
        if key not in unused and not (value is None or value is False or value in ([], ()))
    )


def size_text(count: int | None) -> str:
    """Write a number of bytes readably, in powers of 1000: "512 B", "39.1 kB", "14.7 MB"; a dash if not known."""
    if count is None:
        return MISSING
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
