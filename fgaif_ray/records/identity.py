"""Identities of rows and fingerprints of settings."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def sample_identity(image_sha256: str, prompt: str, model: str, sampling: Mapping[str, Any]) -> str:
    """Return the sample id: sha256 over image bytes (by their hash), prompt, model and sampling settings, in hex."""
    canonical = json.dumps([image_sha256, prompt, model, dict(sampling)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return a short hex digest of JSON-serialisable parts; equal parts give equal fingerprints on every machine."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
