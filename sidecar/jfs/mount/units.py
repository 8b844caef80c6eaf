"""Sizes and durations as the real client writes them (format §10): `300M`, `10s`, `1h30m`, plain numbers."""

import re

from jfs.errors import ConfigError

_SIZES = {"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([BKMGTPE]?)(?:i?B)?$", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def size(option: str, text: str, unit: str = "B") -> int:
    """Bytes of *text*; a number without a unit counts in *unit*. ConfigError names *option*."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ConfigError(f"option {option}: {text!r} is not a size; write it like 300M")
    number, given = match.groups()
    return int(float(number) * (1 << _SIZES[given.upper() or unit]))


_MEGABITS = {"": 1.0, "M": 1.0, "G": 1e3, "T": 1e6, "P": 1e9}
_RATE = re.compile(r"^(\d+(?:\.\d+)?)\s*([MGTP]?)(?:bps)?$", re.IGNORECASE)


def megabits(option: str, text: str) -> float:
    """Mbit/s of *text*: a plain number, or one with M, G, T, P in steps of 1000. ConfigError names *option*."""
    match = _RATE.match(text.strip())
    if match is None:
        raise ConfigError(f"option {option}: {text!r} is not a rate in Mbit/s; write it like 100 or 1.5G")
    number, unit = match.groups()
    return float(number) * _MEGABITS[unit.upper()]


def duration(option: str, text: str) -> float:
    """Seconds of *text*; a plain number is seconds. ConfigError names *option*."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"option {option}: {text!r} is not a duration; write it like 10s or 1h30m")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))
