"""Checks every manifest of this folder: `just kubernetes`, or `python examples/kubernetes/check` with what
requirements.txt names.

Renders each kustomization, validates each object against the published schemas of the oldest and the newest version of
Kubernetes, and the objects together against the rules. Then breaks them in every way of mutations.py: each has to be
found. Ends with 1 on the first kustomization that has errors, all of which are printed.
"""

import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

import alerts
import crds
import mutations
import render
import rules
from product import ROOT, Product

HERE = Path(__file__).resolve().parent.parent
# The oldest that has all fields that we set, and the newest that there are schemas of.
VERSIONS = ["1.30", "1.37"]


def main():
    product = Product()
    compare = shutil.which("kubectl") is not None
    if not compare:
        print("kubectl is not here: rendered by our own renderer alone")
    rendered, failed = {}, False
    with tempfile.TemporaryDirectory(dir=_scratch()) as together:
        folders = {folder.name: folder for folder in sorted((HERE / "overlays").iterdir())}
        folders = {"(top)": HERE, **folders, "(all together)": _all_together(Path(together))}
        for name, folder in folders.items():
            objects = render.kustomization(folder)
            errors = find_errors(objects, product)
            if compare and render.comparable(objects) != render.comparable(render.by_kubectl(folder)):
                errors.append("kubectl renders it in another way: compare with `kubectl kustomize`; mend render.py")
            rendered[name] = objects
            failed |= report(name, objects, errors)
    failed |= mutations.survive(rendered, lambda objects: find_errors(objects, product))
    failed |= alerts.fail()
    for name in product.notes():
        print(f"note: {name} is in the sources now: take it out of PLANNED in check/product.py")
    for name in sorted(product.planned - product.routes - product.variables):
        print(f"note: {name} is relied on and not yet in the sources")
    return 1 if failed else 0


def find_errors(objects, product):
    """What is wrong with the objects: each by itself for every version, then all together."""
    errors = []
    for item in objects:
        errors += schema_errors(yaml.safe_dump(item))
    return errors or rules.check(objects, product)


@cache
def schema_errors(text):
    """What is wrong with one object by its schema. Takes text, so that an object is looked at once."""
    item = yaml.safe_load(text)
    who = render.name_of(item)
    schema = crds.SCHEMAS.get((item.get("apiVersion"), item.get("kind")))
    if schema:
        found = jsonschema.Draft202012Validator(schema).iter_errors(item)
        return tuple(f"{who}: {error.json_path}: {error.message}" for error in found)
    errors = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(str(step) for step in error.path)
            errors.append(f"{who}, Kubernetes {version}: {path}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            errors.append(f"{who}: no schema for {item.get('apiVersion')} in Kubernetes {version} or in crds.py")
    return tuple(errors)


def report(name, objects, errors):
    """Prints one line, or what is wrong. Whether anything is."""
    if not errors:
        print(f"ok      {name}: {len(objects)} objects, Kubernetes {' and '.join(VERSIONS)}")
        return False
    print(f"FAILED  {name}:")
    for error in errors:
        print(f"        {error}")
    return True


def _scratch():
    folder = ROOT / "target" / "kubernetes"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _all_together(folder):
    """A kustomization of the base with every component at once, as a user may want it."""
    inside = os.path.relpath(HERE, folder.resolve())
    components = [f"{inside}/components/{item.name}" for item in sorted((HERE / "components").iterdir())]
    spec = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{inside}/base"],
        "components": components,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(spec))
    return folder


if __name__ == "__main__":
    sys.exit(main())
