"""Where the store at an MLflow address keeps its files."""

from __future__ import annotations

from pathlib import Path


def database(tracking_uri: str) -> Path | None:
    """The file of a SQLite store."""
    prefix = "sqlite:///"
    return Path(tracking_uri.removeprefix(prefix)).resolve() if tracking_uri.startswith(prefix) else None


def artifact_root(tracking_uri: str, configured: str | None) -> str | None:
    """Where a new experiment keeps its files, as an absolute URI; None: the server decides."""
    if configured:
        return configured if "://" in configured else Path(configured).resolve().as_uri()
    path = database(tracking_uri)
    return (path.parent / "mlartifacts").as_uri() if path else None
