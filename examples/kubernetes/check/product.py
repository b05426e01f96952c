"""What the manifests rely on, as the sources of roomcast and of the chat example say it."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

# Written in the manifests already, not yet in the sources. To be empty: whatever is in both is named as a note.
PLANNED = set()


class Product:
    """Facts read from the sources, once."""

    def __init__(self, root=ROOT):
        sources = _read(root, "src", "examples/chat")
        status = _read(root, "src/status")
        # Paths of the status endpoint.
        self.routes = set(re.findall(r'\.route\(\s*"(/[^"]*)"', status))
        # Paths and variables that are not there yet.
        self.planned = PLANNED
        # Names of environment variables in the sources, whole. Those of settings are made from the names of the fields; a
        # test of the crate compares the document with them.
        sources += (root / "docs/operations.md").read_text()
        self.variables = set(re.findall(r"\b(?:ROOMCAST|POD)_[A-Z0-9_]*[A-Z0-9]\b", sources))
        # Flags of the chat example.
        self.flags = set(re.findall(r'"(--[a-z-]+)"', _read(root, "examples/chat")))
        # Seconds that stopping may take: closing the clients, then draining.
        self.stop_seconds = self._stop_seconds(root)

    def _stop_seconds(self, root):
        config = (root / "src/config.rs").read_text() + (root / "src/core/slices.rs").read_text()
        drains = re.findall(r"\b(?:drain|clients)_timeout:\s*Duration::from_secs\((\d+)\)", config)
        closes = re.findall(
            r"const CLOSE_\w+:\s*Duration\s*=\s*Duration::from_secs\((\d+)\)", _read(root, "examples/chat")
        )
        if len(drains) != 2:
            raise SystemExit("no defaults of drain_timeout and clients_timeout are found; mend check/product.py")
        return sum(map(int, drains + closes))

    def notes(self):
        """What is planned and there: to be taken out of PLANNED."""
        return sorted(self.planned & (self.routes | self.variables))


def _read(root, *folders):
    files = [file for folder in folders for file in sorted((root / folder).rglob("*.rs"))]
    return "\n".join(file.read_text() for file in files)
