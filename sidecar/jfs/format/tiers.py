"""Storage tiers of the setting record (format §2.2): which class and tags new objects of a file get by the tier of the file. Pure."""

from typing import Any, Final, NamedTuple

LAST: Final = 3  # tiers are 0 … 3
MIN_VERSION: Final = "1.4.0-A"  # what a volume with tiers demands of its clients (format §2.6)


class Tier(NamedTuple):
    """The storage's name of a class, and tags as in a URL's query (`a=b&c=d`); each may be empty."""

    storage_class: str = ""
    tag: str = ""


def read_tiers(member: Any) -> dict[int, Tier]:
    """The member `Tiers` of a setting; what is malformed is left out."""
    found: dict[int, Tier] = {}
    if isinstance(member, dict):
        for number, tier in member.items():
            if isinstance(tier, dict) and str(number) in _NUMBERS:
                values = (tier.get(name) for name in ("StorageClass", "Tag"))
                found[int(number)] = Tier(*(value if isinstance(value, str) else "" for value in values))
    return found


def with_tier(member: Any, number: int, tier: Tier) -> dict[str, Any]:
    """*member* with one tier set, in the form and order of the real client."""
    tiers = dict(member) if isinstance(member, dict) else {}
    tiers[str(number)] = {"ID": number, "StorageClass": tier.storage_class, "Tag": tier.tag}
    return dict(sorted(tiers.items()))


_NUMBERS: Final = frozenset(map(str, range(LAST + 1)))
