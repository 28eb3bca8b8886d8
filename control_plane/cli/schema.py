"""The JSON Schema of a manifest: what an editor completes and a pipeline checks without a control plane.

It refuses nothing that `apply` accepts, except moments that are written in another form of ISO 8601 than RFC 3339.
What takes more than one part of the manifest, such as names that are there twice, `apply` alone sees.
"""

import json
from typing import Any

from control_plane.cli.document import Document
from control_plane.cli.session import Session


def schema(session: Session) -> None:
    """Print the JSON Schema of a manifest, for editors and for checks without a control plane."""
    print(text(), end="", file=session.out.file)


def text() -> str:
    """The schema as it is published."""
    return json.dumps(manifest_schema(), indent=2) + "\n"


def manifest_schema() -> dict[str, Any]:
    """The schema of the document that a manifest is."""
    made = Document.model_json_schema(by_alias=True)
    parts = made.pop("$defs")
    for part in (made, *parts.values()):
        for field in part["properties"].values():
            _without_noise(field)
    # Where a manifest does not say these, the project does.
    del parts["Exposure"]["properties"]["settleSeconds"]["default"]
    del parts["Analysis"]["properties"]["alpha"]["default"]
    named = {"description": "Who is asked to take part, by name.", **parts["Selector"]["properties"]["ids"]}
    made["properties"]["participants"] = {"anyOf": [named, made["properties"]["participants"]]}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Manifest of an experiment"}
    return {**head, **{name: value for name, value in made.items() if name != "title"}, "$defs": parts}


def _without_noise(field: dict[str, Any]) -> None:
    """Titles that repeat the name, and defaults that say no more than that nothing is there, are gone."""
    field.pop("title", None)
    if not isinstance(field.get("default", ""), str | int | float):
        del field["default"]
