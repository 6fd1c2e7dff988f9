"""What the pictures and the page of a round's fidelity call things."""

from __future__ import annotations

OUTCOMES = {
    "fresh": "target on a fresh buffer",
    "train": "target on the training buffer",
    "returns": "environment return",
}
