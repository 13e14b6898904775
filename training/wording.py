"""Words of messages that more than one job says."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2,500 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
