"""The chart's values: documented, checked by their schema, and none of them without effect."""

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jfs_api import names

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "juicefs-sidecar"
TEMPLATES = {path.name: path.read_text() for path in sorted(CHART.glob("templates/**/*")) if path.is_file()}
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
FULL: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("chart_values_full.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found += leaves(value, (*path, key))
        else:
            found.append((*path, key))
    return found


def test_schema_accepts_the_defaults_and_everything_turned_on() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for values in (VALUES, FULL):
        jsonschema.validate(values, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("path", [path[:-1] for path in leaves(VALUES) if path[0] != "global"])
def test_schema_refuses_misspelt_values(path: tuple[str, ...]) -> None:
    free = {("node", "updateStrategy"), ("node", "updateStrategy", "rollingUpdate")}
    values = copy.deepcopy(VALUES)
    holder = values
    for step in path:
        holder = holder[step]
    holder["mispelt"] = {}
    if path in free:
        jsonschema.validate(values, SCHEMA)
        return
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("images", "operator", "digest"), "sha256:1"),
        (("images", "operator", "repository"), ""),
        (("images", "sidecar", "pullPolicy"), "Sometimes"),
        (("kubeletDir",), "relative"),
        (("kubeletDir",), "/var/lib/kubelet/"),
        (("driverName",), "Not_A_Driver"),
        (("injection", "namespaceLabel", "key"), "a b"),
        (("injection", "defaultResources"), {"limits": {"memory": "much"}}),
        (("webhook", "replicas"), 0),
        (("webhook", "failurePolicy"), "Maybe"),
        (("webhook", "timeoutSeconds"), 31),
        (("storageClasses",), [{"reclaimPolicy": "Retain"}]),
        (("imagePullSecrets",), ["registry"]),
        (("operator", "logLevel"), "loud"),
    ],
)
def test_schema_refuses_impossible_values(path: tuple[str, ...], value: Any) -> None:
    values = copy.deepcopy(VALUES)
    holder = values
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_every_value_is_documented_in_the_schema_and_used() -> None:
    text = "\n".join(TEMPLATES.values())
    # What helper templates get as their argument and read from it.
    passed = {"images.operator", "images.sidecar", "operator", "webhook", "node"}
    for path in leaves(VALUES):
        used = any(
            f".Values.{'.'.join(path[:length])}" in text and ".".join(path[:length]) not in passed
            for length in range(1, len(path) + 1)
            if ".".join(path[:length]) not in ("images", "injection", "csiDriver", "rbac")
        )
        by_helper = ".".join(path[:-1]) in passed and re.search(rf"\.{path[-1]}\b", TEMPLATES["_helpers.tpl"])
        by_account = path[-2:] == ("serviceAccount", "annotations") and "serviceAccount.annotations" in text
        assert used or by_helper or by_account, f"no template uses {'.'.join(path)}"


def test_chart_and_project_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_names_are_those_of_the_code() -> None:
    assert VALUES["driverName"] == names.DRIVER
    assert VALUES["injection"]["namespaceLabel"] == {"key": names.INJECT_LABEL, "value": names.INJECT_ENABLED}
    configuration = TEMPLATES["webhook-configuration.yaml"]
    assert names.CSI_INJECT_LABEL in configuration
    assert f'key: {names.INJECT_LABEL}, operator: NotIn, values: ["{names.INJECT_DISABLED}"]' in configuration
    for plural in (names.VOLUME_PLURAL, names.SECRET_PLURAL):
        assert plural in TEMPLATES["operator-rbac.yaml"]
        assert f"crd-{plural}.yaml" in TEMPLATES
    assert f"resourceNames: [{names.OPERATOR}]" in TEMPLATES["operator-rbac.yaml"]


def test_no_credentials_are_asked_for() -> None:
    words = {"metaurl", "accesskey", "secretkey", "access-key", "secret-key", "password", "token"}
    assert not [path for path in leaves(VALUES) if path[-1].lower() in words]
