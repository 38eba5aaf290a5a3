"""Render a kustomization as ``kubectl kustomize`` does, with what this project's files use of it and nothing else.

For where there is no kubectl; tests/cluster/test_kustomize.py holds it against kubectl where there is one.
"""

import base64
import copy
import re
from pathlib import Path

import yaml

Node = dict[str, object]

MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
    "ports": "containerPort",
}
"""Key of a pod's lists that are merged; every other list is replaced."""

LOCAL = "config.kubernetes.io/local-config"

KEYS = {
    "apiVersion", "kind", "resources", "components", "configMapGenerator", "secretGenerator", "generatorOptions",
    "patches", "labels", "images", "replacements",
}  # fmt: skip


def render(folder):
    """Render a folder; return the objects by kind and name."""
    nodes = [node for node in _build(Path(folder), []) if LOCAL not in node["metadata"].get("annotations", {})]
    named = {(node["kind"], node["metadata"]["name"]): node for node in nodes}
    assert len(named) == len(nodes), "two objects of one kind and name"
    return named


def _build(folder, nodes):
    """Add a folder's objects to those that are there, and change them all as its kustomization says."""
    config = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(config) <= KEYS, f"{folder}: this renderer does not know {set(config) - KEYS}"
    for name in config.get("resources", []):
        path = folder / name
        nodes = [*nodes, *(_build(path, []) if path.is_dir() else yaml.safe_load_all(path.read_text()))]
    for name in config.get("components", []):
        nodes = _build(folder / name, nodes)
    nodes += _generate(folder, config)
    for patch in config.get("patches", []):
        change = yaml.safe_load((folder / patch["path"]).read_text())
        del change["metadata"]
        selected = [index for index, node in enumerate(nodes) if _matches(patch["target"], node)]
        assert selected, f"{folder}: {patch['target']} selects nothing"
        for index in selected:
            nodes[index] = _merge(nodes[index], change, by_key=nodes[index]["kind"] == "PodTemplate")
    for entry in config.get("labels", []):
        for node in nodes:
            node["metadata"].setdefault("labels", {}).update(entry["pairs"])
    for image in config.get("images", []):
        for node in nodes:
            _set_image(node, image)
    for replacement in config.get("replacements", []):
        _replace(nodes, **replacement)
    return nodes


def _generate(folder, config):
    options = config.get("generatorOptions", {})
    for kind, field in (("ConfigMap", "configMapGenerator"), ("Secret", "secretGenerator")):
        for entry in config.get(field, []):
            assert options["disableNameSuffixHash"], "names with a hash are not known here"
            data = {name: (folder / name).read_text() for name in entry.get("files", [])}
            lines = [line for name in entry.get("envs", []) for line in (folder / name).read_text().splitlines()]
            for line in [*lines, *entry.get("literals", [])]:
                if line.strip() and not line.startswith("#"):
                    name, _, data_value = line.partition("=")
                    data[name] = data_value
            metadata = {"name": entry["name"], "labels": dict(options.get("labels", {}))}
            node = {"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": data}
            if kind == "Secret":
                node["data"] = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
                node["type"] = "Opaque"
            yield node


def _matches(target, node):
    """Whether a target selects an object; a name is a regular expression."""
    return target["kind"] == node["kind"] and bool(re.fullmatch(target.get("name", ".*"), node["metadata"]["name"]))


def _merge(base, change, *, by_key, field=""):
    if isinstance(base, dict) and isinstance(change, dict):
        merged = dict(base)
        for name, part in change.items():
            merged[name] = _merge(base[name], part, by_key=by_key, field=name) if name in base else copy.deepcopy(part)
        return merged
    key = MERGE_KEYS.get(field) if by_key else None
    if isinstance(base, list) and key:
        changes = {part[key]: part for part in change}
        known = {part[key] for part in base}
        merged = [_merge(part, changes.get(part[key], {}), by_key=by_key) for part in base]
        return [*(copy.deepcopy(part) for part in change if part[key] not in known), *merged]
    return copy.deepcopy(change)


def _set_image(node, image):
    """Set name and tag in every ``containers``, however deep."""
    if isinstance(node, list):
        for part in node:
            _set_image(part, image)
    elif isinstance(node, dict):
        for name, part in node.items():
            if name == "containers" and isinstance(part, list):
                for box in part:
                    if box.get("image", "").partition(":")[0] == image["name"]:
                        box["image"] = f"{image['newName']}:{image['newTag']}"
            _set_image(part, image)


def _replace(nodes, source, targets):
    (origin,) = [node for node in nodes if (node["kind"], node["metadata"]["name"]) == (source["kind"], source["name"])]
    value = origin
    for name in source["fieldPath"].split("."):
        value = value[name]
    for target in targets:
        options = target.get("options", {})
        for node in nodes:
            if _matches(target["select"], node):
                for path in target["fieldPaths"]:
                    _set_at(node, path.split("."), value, options)


def _set_at(node, path, value, options):
    name, *rest = path
    if name == "*":
        for part in node:
            _set_at(part, rest, value, options)
    elif rest:
        _set_at(node.setdefault(name, {}) if options.get("create") else node[name], rest, value, options)
    elif "delimiter" in options:
        parts = node[name].split(options["delimiter"])
        if options["index"] < 0:
            parts.insert(0, value)
        else:
            parts[options["index"]] = value
        node[name] = options["delimiter"].join(parts)
    else:
        node[name] = copy.deepcopy(value)
