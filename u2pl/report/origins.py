"""Where the numbers of a table come from, as its reader must know it: ours, and those beside them."""

from collections.abc import Iterable

QUOTED, COPIED, RECONSTRUCTED = "†", "‡", "§"
_QUOTED = "Quoted by the paper from other work, not trained here."
_RECONSTRUCTED = (
    "Reconstructed: the method has no public code and was built after the abstract of its paper; "
    "what the abstract leaves open was chosen here."
)


def remark(source: str, copied_from: str) -> str:
    """What a cell needs saying beside its numbers; nothing for a measured one beside the authors' own."""
    parts = [_RECONSTRUCTED] if source == "reconstructed" else [_QUOTED] if source == "quoted" else []
    if copied_from:
        parts.append(f"The paper copied its number from {copied_from}" + _comparison(source) + ".")
    return " ".join(parts)


def notes(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """The same for a table's rows (title, source, copied from), as sentences of its caption with their marks."""
    listed = list(rows)
    found = []
    if any(source == "quoted" for _, source, _ in listed):
        found.append(f"{QUOTED} {_QUOTED}")
    copied: dict[str, list[str]] = {}
    for title, _, origin in listed:
        if origin:
            copied.setdefault(origin, []).append(title)
    if copied:
        own = ", ".join(title for title, _, origin in listed if not origin)
        origins = "; ".join(f"{', '.join(titles)} from {origin}" for origin, titles in copied.items())
        found.append(f"The paper's authors measured {own} themselves.")
        found.append(f"{COPIED} They copied {origins}: a verdict on these compares protocols as well as methods.")
    if any(source == "reconstructed" for _, source, _ in listed):
        found.append(f"{RECONSTRUCTED} {_RECONSTRUCTED}")
    return found


def _comparison(source: str) -> str:
    return "" if source == "quoted" else ": the difference compares protocols as well as methods"
