"""What every door adds to what its clients know: which file, whose, and with which content.

Experiments on web pages, flows and flags name none of these. Without them an experiment is kept and cannot start.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from control_plane.api.doors.mapping import Field, Json, Sent, ours, wrong

AUDIENCE = "audience"
"""The label that says which audience a participant belongs to."""


def whole_file(name: str = "targetFile") -> Field:
    """Which file the variants write."""
    return ours(
        name,
        "an addition: the file that the variants write, relative to each participant's root",
        native="targetFile",
        kind=str,
        example="config/soul.md",
    )


def participants(ids: str = "participantIds", chosen: str = "participants") -> tuple[Field, Field]:
    """Who takes part."""
    return (
        ours(
            ids,
            "an addition: who takes part, by id; in answers it is in `participants`",
            native="participantIds",
            example=["bot-1", "bot-2"],
            unshown=True,
        ),
        ours(
            chosen,
            "an addition: who takes part, as `{ids}` or `{labels}`; nobody unless it is said, or an audience is",
            native="participants",
            example={"labels": {"role": "support"}},
        ),
    )


def own_labels() -> Field:
    """What the experiment is labelled with."""
    return ours(
        "labels",
        "an addition: the experiment's own labels; one made with a key that is limited to labels carries those",
        example={"team": "growth"},
    )


def share(name: str, says: str, **more: Any) -> Field:
    """A variant's weight: participants are dealt out in whole per cent."""

    def into(value: Any) -> Json:
        if isinstance(value, float) and not value.is_integer():
            raise wrong(
                name,
                f"{value} is no whole number of per cent, in which participants are dealt out",
                "round it, so that all together are 100",
            )
        return {"weight": value}

    return ours(name, says, native="weight", into=into, **more)


def contents(native: Callable[[Json], Any] | None = None) -> tuple[Field, Field]:
    """What a variant writes."""
    return (
        ours(
            "content",
            "an addition: what the variant writes into the target file",
            example="You are friendly.",
        ),
        ours(
            "files",
            "an addition: what the variant writes, file by file, instead of `content`",
            into=lambda value: {
                "files": [bare(item) for item in value] if isinstance(value, list) else value
            },
            show=native or shown_files,
            example=[{"path": "config/soul.md", "content": "You are friendly."}],
        ),
    )


def shown_files(variant: Json) -> Any:
    """The files of a variant as they can be sent again, and with their digests."""
    return variant["files"]


def bare(item: Any) -> Any:
    """A file as it is sent, of one that was answered or is sent."""
    if not isinstance(item, Mapping):
        return item
    return {
        name: value for name, value in item.items() if name not in ("digest", "size") and value is not None
    }


_WRITTEN = ("content", "files", "targetFile")


def configured(value: Json, at: str) -> Json:
    """What a variant writes, out of its free configuration `at` that field; the rest stays configuration.

    Raises Invalid where a file is no text, or files are no list: callers compare them before anybody else looks.
    """
    said = {name: value[name] for name in _WRITTEN if value.get(name) is not None}
    if not isinstance(said.get("targetFile", ""), str):
        raise wrong(f"{at}.targetFile", "is not a text", "send a path such as config/soul.md")
    if "files" in said:
        if not isinstance(said["files"], list):
            raise wrong(f"{at}.files", "is not a list of files", "send [{path, content}, …]")
        said["files"] = [bare(item) for item in said["files"]]
    rest = {name: item for name, item in value.items() if name not in _WRITTEN}
    return {**said, "config": rest or None}


def configuration(variant: Json) -> Json:
    """The configuration with what the variant writes in it."""
    found, files = dict(variant["config"] or {}), variant["files"]
    if len(files) == 1 and files[0]["contentBase64"] is None:
        return {**found, "targetFile": files[0]["path"], "content": files[0]["content"]}
    return {**found, "files": files} if files else found


def one_target(variants: Sequence[Sent], values: Json, field: str) -> None:
    """The one file that configurations name is the experiment's. Raises Invalid for two."""
    named = {item.values.pop("targetFile") for item in variants if "targetFile" in item.values}
    named |= {values["targetFile"]} if values.get("targetFile") else set()
    if len(named) > 1:
        listed = ", ".join(sorted(map(str, named)))
        raise wrong(field, f"name several target files: {listed}", "name one, or send files")
    if named:
        values["targetFile"] = named.pop()


def audience_rule(value: Any) -> Json:
    """Only participants with this audience's label are eligible."""
    if value is None:
        return {}
    return {"targetingRules": {"labels": [{"key": AUDIENCE, "operator": "equals", "value": value}]}}


def audience_of(experiment: Json) -> str | None:
    """The audience that an experiment asks for."""
    return next((rule.get("value") for rule in _rules(experiment) if _is_audience(rule)), None)


def other_rules(experiment: Json) -> list[Json]:
    """What else it asks of labels."""
    return [rule for rule in _rules(experiment) if not _is_audience(rule)]


def _rules(experiment: Json) -> Sequence[Any]:
    return (experiment.get("targetingRules") or {}).get("labels") or []


def _is_audience(rule: Any) -> bool:
    return isinstance(rule, dict) and bool(rule.get("key") == AUDIENCE and rule.get("operator") == "equals")


def choose_audience(sent: Sent) -> None:
    """Where nobody else is named, the audience takes part: whoever carries its label."""
    asked = audience_of(sent.values)
    if asked is not None and not {"participants", "participantIds"} & set(sent.values):
        sent.values["participants"] = {"labels": {AUDIENCE: asked}}


def follow_audience(sent: Sent, *, rules: Any, selector: Mapping[str, Any]) -> None:
    """A changed audience takes part where the former one did, or nobody was named; without one nobody does."""
    chosen = selector.get("labels") or {}
    former = audience_of({"targetingRules": rules})
    same = audience_of(sent.values) == former
    if same or selector.get("ids") or chosen not in ({}, {AUDIENCE: former}):
        return
    choose_audience(sent)
    if chosen and not {"participants", "participantIds"} & set(sent.values):
        sent.values["participants"] = {}
