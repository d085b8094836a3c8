"""`evertrain config`: what a job file means."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pipeline.cli.options import add_job_options, add_output_option, load_job, print_json

_TOPICS = ("features", "labels")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `config show` and `config validate`."""
    parser = subparsers.add_parser("config", help="shows or checks a job file")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="prints every key with the value it has in the end")
    validate = actions.add_parser("validate", help="says whether the job file is right, or what is wrong where")
    for action, run in ((show, _show), (validate, _validate)):
        add_job_options(action)
        add_output_option(action)
        action.set_defaults(run=run)


def _show(args: argparse.Namespace) -> int:
    from pipeline.jobfile import is_secret

    document = load_job(args).model_dump(mode="json", exclude_none=True)
    for table in (document["kafka"], *(document.get(topic, {}).get("schema_registry", {}) for topic in _TOPICS)):
        table |= {key: "***" for key in table if is_secret(key)}
    if args.output == "json":
        print_json(document)
        return 0
    for table, keys in document.items():
        print(f"[{table}]")
        for key, value in keys.items():
            print(f"{_key(key)} = {_toml(value)}")
        print()
    return 0


def _validate(args: argparse.Namespace) -> int:
    job = load_job(args)
    if args.output == "json":
        print_json({"valid": True, "name": job.job.name, "sha256": job.sha256()})
    else:
        print(f"{args.config}: ok")
    return 0


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _toml(value: Any) -> str:
    """A value as TOML. JSON strings, numbers and booleans are TOML already."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(below)}" for key, below in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(below) for below in value) + "]"
    return json.dumps(value, ensure_ascii=False)
