"""A JuiceFSVolume's spec: defaults, derived mount options, and the contradictions that only we can see."""

from decimal import Decimal
from typing import Any

import pytest
from jfs_api.conditions import Condition, find, merge, summarize, transitions
from jfs_api.quantity import parse_quantity
from jfs_api.volume import SpecError, parse_volume_spec

REF = {"secretRef": {"name": "demo"}}


def test_defaults() -> None:
    spec = parse_volume_spec(REF)
    assert (spec.capacity, spec.access_modes, spec.reclaim_policy, spec.directory) == (
        "10Pi",
        ["ReadWriteMany"],
        "Retain",
        "/",
    )
    assert spec.secret_ref is not None
    assert spec.secret_ref.kind == "Secret"
    assert spec.persistent_volume_options() == []
    assert spec.sidecar_annotation() == {}


def test_the_directory_and_read_only_become_mount_options() -> None:
    spec = parse_volume_spec(
        {**REF, "subPath": "a/b/", "mountOptions": ["prefetch=2"], "accessModes": ["ReadOnlyMany"]}
    )
    assert spec.persistent_volume_options() == ["prefetch=2", "subdir=/a/b", "ro"]
    assert parse_volume_spec({**REF, "mountOptions": ["subdir=x"]}).directory == "/x"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"secretRef": None}, "exactly one of secretRef and fileSystem"),
        (
            {"fileSystem": {"name": {"value": "abc"}, "metaURL": {"value": "redis://r"}}},
            "exactly one of secretRef and fileSystem",
        ),
        ({"mountOptions": ["nonsense"]}, "unknown mount option"),
        ({"formatOptions": {"nonsense": "1"}}, "unknown format option"),
        ({"formatOptions": {"secret-key": "1"}}, "key of its own in the Secret"),
        ({"subPath": "a", "mountOptions": ["subdir=b"]}, "contradict each other"),
        ({"subPath": "a", "mountOptions": ["subdir=/a"]}, "give the directory once"),
        ({"subPath": "../a"}, "'..'"),
        ({"accessModes": ["ReadOnlyMany"], "mountOptions": ["rw"]}, "contradicts accessModes"),
        ({"capacity": "much"}, "not a quantity"),
        ({"capacity": "0"}, "more than nothing"),
        ({"reclaimPolicy": "Burn"}, "reclaimPolicy"),
    ],
)
def test_contradictions_are_one_sentence(change: dict[str, Any], sentence: str) -> None:
    spec = {key: value for key, value in {**REF, **change}.items() if value is not None}
    with pytest.raises(SpecError, match=sentence):
        parse_volume_spec(spec)


def test_mode_and_cache_reach_the_webhook_and_the_mount() -> None:
    spec = parse_volume_spec(
        {
            **REF,
            "sidecar": {"mode": "restricted"},
            "cache": {"emptyDir": {"sizeLimit": "1Gi"}},
            "mountOptions": ["cache-size=1G"],
        }
    )
    assert spec.sidecar_annotation() == {"mode": "restricted", "cache": {"emptyDir": {"sizeLimit": "1Gi"}}}
    assert spec.persistent_volume_options() == ["cache-size=1G", "cache-dir=/var/jfsCache"]
    chosen = parse_volume_spec({**REF, "cache": {"hostPath": {}}, "mountOptions": ["cache-dir=/data/c"]})
    assert chosen.persistent_volume_options() == ["cache-dir=/data/c"]
    assert chosen.sidecar_annotation() == {"cache": {"hostPath": {}}}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sidecar": {"mode": "root"}}, "sidecar.mode"),
        ({"cache": {}}, "exactly one of emptyDir"),
        ({"cache": {"emptyDir": {}, "hostPath": {}}}, "exactly one of emptyDir"),
        ({"cache": {"persistentVolumeClaim": {}}}, "claimName"),
    ],
)
def test_bad_modes_and_caches(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        parse_volume_spec({**REF, **fields})


def test_quantities_compare_by_value() -> None:
    assert parse_quantity("1Gi") == parse_quantity("1024Mi") == Decimal(1 << 30)
    assert parse_quantity("1e3") == parse_quantity("1k") == parse_quantity(1000)
    assert parse_quantity("500m") == Decimal("0.5")
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity("1 GB")


def test_conditions_keep_their_time_until_the_status_changes() -> None:
    ready = Condition("Ready", "True", "Bound", "usable")
    first = merge([], [ready], generation=1, now="T1")
    second = merge(first, [Condition("Ready", "True", "Bound", "still usable")], generation=2, now="T2")
    assert (second[0]["lastTransitionTime"], second[0]["observedGeneration"], second[0]["message"]) == (
        "T1",
        2,
        "still usable",
    )
    third = merge(second, [Condition("Ready", "False", "SecretNotFound", "x" * 5000)], generation=2, now="T3")
    assert third[0]["lastTransitionTime"] == "T3"
    assert len(third[0]["message"]) == 1024
    assert find(first, "Ready") == ready
    assert find(first, "Bound") is None
    assert transitions(first, [ready]) == []
    assert transitions(first, [Condition("Ready", "True", "Other", "")]) == [Condition("Ready", "True", "Other", "")]


def test_the_summary_is_the_first_part_that_is_not_true() -> None:
    good, bad = Condition("A", "True", "Fine", ""), Condition("B", "Unknown", "NotYet", "wait")
    assert summarize("Ready", [good, bad], reason="Usable", message="m") == Condition(
        "Ready", "False", "NotYet", "wait"
    )
    assert summarize("Ready", [good], reason="Usable", message="m") == Condition("Ready", "True", "Usable", "m")
