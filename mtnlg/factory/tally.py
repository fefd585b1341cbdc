"""What a stage counted and what of it a person should see; those of parts add up to those of the whole."""

from collections import Counter
from collections.abc import Iterable

from mtnlg.factory import documents

MAX_SAMPLES = 5  # of each kind
MAX_QUARANTINED = 1000  # of a part, named one by one; all are counted
MAX_KEYS = 20_000  # of a table: beyond, the rarest are OTHERS
MAX_KEY_CHARS = 200
OTHERS = "(others)"
FAILED = "failed: "  # how the reason begins of what a step could not digest


class Tally:
    """counts {table: {key: number}}, samples {kind: [{...}]} and quarantine [{where, reason, begins}].

    Tables that every stage of documents has: `documents read`, `bytes read`, `documents written`, `bytes written` by source,
    `dropped` and `unreadable` by reason. Sums are right however many keys there are; long keys and values of samples are cut.
    """

    def __init__(self, counts: dict | None = None, samples: dict | None = None, quarantine: list | None = None):
        self.counts = {table: Counter(keys) for table, keys in (counts or {}).items()}
        self.samples: dict[str, list] = dict(samples or {})
        self.quarantine: list[dict] = list(quarantine or [])

    def count(self, table: str, key: str, number: int = 1) -> None:
        self.counts.setdefault(table, Counter())[_key(key)] += number

    def count_all(self, table: str, keys: Iterable[str]) -> None:
        """Each of the keys as often as it comes."""
        self.counts.setdefault(table, Counter()).update(map(_key, keys))

    def sample(self, kind: str, shown: dict) -> None:
        """Keeps the first few of each kind."""
        kept = self.samples.setdefault(kind, [])
        if len(kept) < MAX_SAMPLES:
            kept.append({name: documents.shown(value) if isinstance(value, str) else value for name, value in shown.items()})

    def set_aside(self, where: str, reason: str, begins: str) -> None:
        """Counts a record that cannot be read, and names it."""
        self.count("unreadable", reason)
        if len(self.quarantine) < MAX_QUARANTINED:
            self.quarantine.append({"where": where, "reason": documents.shown(reason), "begins": documents.shown(begins)})

    @property
    def num_failed(self) -> int:
        """Records over which a step failed; others that were set aside could not be read."""
        return sum(number for reason, number in self.counts.get("unreadable", {}).items() if reason.startswith(FAILED))

    def add(self, other: "Tally") -> None:
        for table, keys in other.counts.items():
            mine = self.counts.setdefault(table, Counter())
            mine.update(keys)
            if len(mine) > 2 * MAX_KEYS:
                self.counts[table] = _largest(mine)
        for kind, shown in other.samples.items():
            mine = self.samples.setdefault(kind, [])
            mine += shown[: MAX_SAMPLES - len(mine)]
        self.quarantine += other.quarantine[: MAX_QUARANTINED - len(self.quarantine)]

    def as_json(self) -> dict:
        counts = {table: dict(sorted(keys.items())) for table, keys in sorted(self.counts.items())}
        return {"counts": counts, "samples": self.samples, "quarantine": self.quarantine}


def _key(key: str) -> str:
    return key if len(key) <= MAX_KEY_CHARS else key[:MAX_KEY_CHARS] + "…"


def _largest(keys: Counter) -> Counter:
    """Of a table the largest MAX_KEYS, equal ones by name, and the sum of the rest as OTHERS."""
    forgotten = sorted((key for key in keys if key != OTHERS), key=lambda key: (-keys[key], key))[MAX_KEYS:]
    found = Counter(keys)
    found[OTHERS] += sum(found.pop(key) for key in forgotten)
    return found
