"""Renders our kustomizations: the part of kustomize that they use, and an error for anything else.

`kubectl kustomize` is the real thing. Where it is installed, the check compares what both make of every kustomization,
so that this one cannot drift from it; where it is not, this one alone stands in.
"""

import copy
import re
import subprocess
from pathlib import Path

import yaml

# By which key the entries of a list are told apart in a strategic merge. Other lists are replaced.
MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "labels", "images"}


class RenderError(Exception):
    """A kustomization that cannot be rendered. Nothing of it is checked then."""


def kustomization(folder):
    """The objects of a kustomization, in no special order."""
    return _apply(Path(folder), [])


def by_kubectl(folder):
    """The same from kubectl; FileNotFoundError where there is none."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RenderError(f"kubectl kustomize {folder}: {done.stderr.strip()}")
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def comparable(objects):
    """The same value for the same objects, in whatever order."""
    return sorted((_sorted_by_key(item) for item in objects), key=name_of)


def name_of(item):
    """Kind and name, for messages."""
    return f"{item.get('kind')}/{item.get('metadata', {}).get('name')}"


def _apply(folder, objects):
    """What a kustomization or a component makes of the objects that are there before it."""
    file = folder / "kustomization.yaml"
    spec = yaml.safe_load(file.read_text())
    if unknown := set(spec) - KNOWN:
        raise RenderError(f"{file}: not known here: {sorted(unknown)}")
    objects = list(objects)
    for resource in spec.get("resources", []):
        path = folder / resource
        added = kustomization(path) if path.is_dir() else [x for x in yaml.safe_load_all(path.read_text()) if x]
        for item in added:
            if any(name_of(item) == name_of(other) for other in objects):
                raise RenderError(f"{file}: {name_of(item)} is there twice")
            objects.append(item)
    for component in spec.get("components", []):
        objects = _apply(folder / component, objects)
    for patch in spec.get("patches", []):
        objects = _patch(folder, patch, objects)
    for label in spec.get("labels", []):
        if set(label) != {"pairs"}:
            raise RenderError(f"{file}: labels: only pairs are known here")
        for item in objects:
            item["metadata"].setdefault("labels", {}).update(label["pairs"])
    for image in spec.get("images", []):
        for item in objects:
            _set_image(item, image)
    return objects


def _patch(folder, patch, objects):
    content = yaml.safe_load((folder / patch["path"]).read_text())
    target = patch["target"]
    hit = False
    result = []
    for item in objects:
        if re.fullmatch(target["kind"], item["kind"]) and re.fullmatch(target["name"], item["metadata"]["name"]):
            hit = True
            item = copy.deepcopy(item)
            if isinstance(content, list):
                for operation in content:
                    _operate(item, operation)
            else:
                # The target says which object it is, not what the patch calls itself.
                body = {key: value for key, value in content.items() if key not in ("apiVersion", "kind")}
                body["metadata"] = {k: v for k, v in body["metadata"].items() if k != "name"}
                _merge(item, body)
        result.append(item)
    if not hit:
        raise RenderError(f"{folder / patch['path']}: meets no object")
    return result


def _operate(item, operation):
    """One operation of RFC 6902 on a member of an object."""
    *way, last = operation["path"].strip("/").replace("~1", "/").replace("~0", "~").split("/")
    for step in way:
        item = item[step]
    if not isinstance(item, dict) or (operation["op"] != "add" and last not in item):
        raise RenderError(f"{operation['op']} {operation['path']}: nothing there")
    match operation["op"]:
        case "add" | "replace":
            item[last] = operation["value"]
        case "remove":
            del item[last]
        case other:
            raise RenderError(f"{other}: not known here")


def _merge(base, patch):
    """A strategic merge, in place."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        elif isinstance(value, list) and key in MERGE_KEYS:
            base[key] = _merge_lists(base.get(key, []), value, MERGE_KEYS[key])
        else:
            base[key] = value


def _merge_lists(base, patch, name):
    result = list(base)
    for entry in patch:
        place = next((i for i, old in enumerate(result) if old[name] == entry[name]), None)
        if entry.get("$patch") == "delete":
            if place is None:
                raise RenderError(f"nothing to delete with {name}: {entry[name]}")
            del result[place]
        elif place is None:
            result.append(entry)
        else:
            _merge(result[place], entry)
    return result


def _set_image(item, image):
    containers = item.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    for container in containers:
        if container["image"].split(":")[0] == image["name"]:
            container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"


def _sorted_by_key(value, key=None):
    if isinstance(value, dict):
        return {name: _sorted_by_key(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        value = [_sorted_by_key(inner) for inner in value]
        if key in MERGE_KEYS:
            value.sort(key=lambda entry: str(entry.get(MERGE_KEYS[key])))
    return value
