"""How what PostHog's clients send becomes ours: variants, weights, metrics, settings of the analysis."""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.api.doors import posthog_metrics as typed
from control_plane.api.doors.mapping import Json, Sent, wrong
from control_plane.api.doors.posthog_fields import DEFAULT_VARIANTS, EXPERIMENT, VARIANT, slug
from control_plane.domain import requests
from control_plane.domain.experiment import Experiment, Variant
from control_plane.domain.lifecycle import Status
from control_plane.services import experiments, foreign, phases
from control_plane.services.work import Work
from shared.ids import show_id
from shared.model import digest

NAME = "PostHog"
ORDERS = {
    "metrics": "primary_metrics_ordered_uuids",
    "metrics_secondary": "secondary_metrics_ordered_uuids",
}


def kept_of(experiment: Experiment) -> Json:
    """What this door keeps of an experiment."""
    return dict(experiment.kept.get(NAME, {}))


# -- variants


def variants(body: Json, *, new: bool) -> list[Sent] | None:
    """What is sent of each variant; the usual two where nothing is said of a new one, None where nothing changes."""
    parameters = body.get("parameters") or {}
    listed = parameters.get("feature_flag_variants")
    if listed is None:
        if not new:
            return None
        listed = DEFAULT_VARIANTS
    at = "parameters.feature_flag_variants"
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise wrong(at, "is not a list of variants", "send [{key, split_percent}, …]")
    if not 2 <= len(listed) <= 20:
        raise wrong(at, f"has {len(listed)} variants", "send 2 to 20")
    payloads = parameters.get("feature_flag_payloads") or {}
    found = [_variant(item, payloads, f"{at}.{index}") for index, item in enumerate(listed)]
    keys = [item.values["key"] for item in found]
    if len(set(map(str, keys))) != len(keys):
        raise wrong(at, "two variants have the same key", "give each its own")
    weights = [item.values.get("weight") for item in found]
    numbers = [
        weight for weight in weights if isinstance(weight, int | float) and not isinstance(weight, bool)
    ]
    if len(numbers) == len(weights) and sum(numbers) != 100:
        raise wrong(at, f"percentages sum to {sum(numbers)}, not to 100", "change them")
    return found


def _variant(item: Json, payloads: Json, at: str) -> Sent:
    said, key = dict(item), item.get("key")
    if isinstance(key, str) and key in payloads and "payload" not in item:
        said["payload"] = payloads[key]
    sent = VARIANT.read(said, verb="create", at=f"{at}.")
    if "weight" not in sent.values:
        raise wrong(f"{at}.split_percent", "is required", "send it")
    if sent.values["key"] != said["key"]:
        sent.kept["key"] = said["key"]
    return sent


def with_name(item: Sent) -> Json:
    """What is sent of a variant, under its key where it has no name."""
    return {"name": item.kept.get("key", item.values["key"]), **item.values}


def baseline(keys: Sequence[str], body: Json, present: str | None = None) -> str:
    """The key of the control: the one named, the one there is, `control`, or the first."""
    named = _baseline_named(body)
    if named is not None:
        if slug(named) not in keys:
            raise wrong(_BASELINE, f"there is no variant {named!r}", "name a variant")
        return str(slug(named))
    if present in keys:
        return str(present)
    return next((key for key in keys if key == "control"), keys[0])


_BASELINE = "stats_config.baseline_variant_key"


def _baseline_named(body: Json) -> Any:
    return (body.get("stats_config") or {}).get("baseline_variant_key")


def write_baseline(work: Work, experiment: Experiment, body: Json) -> None:
    """The control is the variant that is named as the baseline; of what is launched it cannot be another."""
    control = experiment.control.key if experiment.control else None
    if _baseline_named(body) is None:
        return
    wanted = baseline([variant.key for variant in experiment.variants], body)
    if wanted == control:
        return
    if not is_draft(experiment):
        raise wrong(_BASELINE, f"the baseline is {control}, for good once it is launched", "leave it out")
    for variant in experiment.variants:
        if variant.is_control or variant.key == wanted:
            asked = {"id": show_id(experiment.id), "variantId": show_id(variant.id)}
            changed = requests.parse(requests.UpdateVariant, {**asked, "isControl": variant.key == wanted})
            experiments.update_variant(work, changed)


def write_variants(work: Work, experiment: Experiment, found: Sequence[Sent], body: Json) -> None:
    """The draft has these variants, by their keys."""
    at = {"id": show_id(experiment.id)}
    keys = [item.values["key"] for item in found]
    control = baseline(keys, body, experiment.control.key if experiment.control else None)
    there = {variant.key for variant in experiment.variants}
    for key in there - set(keys):
        experiments.delete_variant(work, requests.OfVariant(id=at["id"], variantId=key))
    for item in found:
        values = {**with_name(item), "isControl": item.values["key"] == control}
        if item.values["key"] in there:
            asked = {**at, "variantId": values.pop("key"), **values}
            _, changed = experiments.update_variant(work, requests.parse(requests.UpdateVariant, asked))
        else:
            _, changed = experiments.add_variant(work, requests.parse(requests.AddVariant, {**at, **values}))
        foreign.keep_of_variant(work, changed, NAME, item.kept)


def write_split(
    work: Work, experiment: Experiment, found: Sequence[Sent] | None, share: Any, *, allowed: bool
) -> None:
    """Of what is launched, weights and share are as sent, as a phase, and names besides.

    Raises Invalid where keys or payloads differ.
    """
    at = "parameters.feature_flag_variants"
    weights: dict[str, Any] = {}
    if found is not None:
        present = {variant.key: variant for variant in experiment.variants}
        if {item.values["key"] for item in found} != set(present):
            raise wrong(at, "variants cannot come or go once it is launched", "send the keys that there are")
        for place, item in enumerate(found):
            if _differs(experiment, present[item.values["key"]], item.values):
                raise wrong(
                    f"{at}.{place}.payload",
                    "what variants write, and what else their payloads say, cannot change once it is launched",
                    "leave payloads as they are",
                )
        _rename(work, experiment, found)
        now = {
            variant.key: _weight(experiment, variant.id, variant.weight) for variant in experiment.variants
        }
        sent = {item.values["key"]: item.values["weight"] for item in found}
        weights = sent if sent != now else {}
    allocation = experiment.phase.traffic_allocation if experiment.phase else None
    other = {} if share is None or share == allocation else {"trafficAllocation": share}
    if not weights and not other:
        return
    if not allowed:
        raise wrong(
            at if weights else "parameters.rollout_percentage",
            "it is launched; a change takes effect only with update_feature_flag_params",
            "send update_feature_flag_params: true",
        )
    asked = {"id": show_id(experiment.id), **({"weights": weights} if weights else {}), **other}
    phases.open_phase(work, requests.parse(requests.OpenPhase, asked))


def _weight(experiment: Experiment, variant_id: bytes, weight: int) -> int:
    return experiment.phase.weights.get(variant_id, weight) if experiment.phase else weight


def _differs(experiment: Experiment, variant: Variant, sent: Json) -> bool:
    """Whether what is sent of a variant would write, or configure, something else."""
    if "config" in sent and (sent["config"] or None) != (variant.config or None):
        return True
    listed = sent.get("files", [])
    if "content" in sent:
        listed = [*listed, {"path": experiment.target_file, "content": sent["content"]}]
    if not listed:
        return False
    digests = {file.path: file.digest for file in variant.files}
    paths = [item.get("path") if isinstance(item, dict) else None for item in listed]
    return sorted(map(str, paths)) != sorted(digests) or any(
        _digest(item) not in (None, digests[item["path"]]) for item in listed
    )


def _digest(file: Json) -> bytes | None:
    """Of what is sent of a file; None where only its path is, as whoever may not read contents was told it."""
    if file.get("contentBase64") is not None:
        try:
            return digest(b64decode(file["contentBase64"], validate=True))
        except (ValueError, TypeError):
            return b""
    return None if file.get("content") is None else digest(str(file["content"]).encode())


def _rename(work: Work, experiment: Experiment, found: Sequence[Sent]) -> None:
    present = {variant.key: variant for variant in experiment.variants}
    for item in found:
        variant, name = present[item.values["key"]], item.values.get("name")
        if name not in (None, variant.name):
            asked = {"id": show_id(experiment.id), "variantId": show_id(variant.id), "name": name}
            experiments.update_variant(work, requests.parse(requests.UpdateVariant, asked))


# -- metrics


def metrics(work: Work, body: Json, before: Json) -> tuple[Json | None, Json]:
    """Our metrics of what is sent and was told `before`, None where nothing is sent; and what is to be kept."""
    names = (*typed.LISTS, *ORDERS.values(), "saved_metrics_ids")
    if not any(name in body for name in names):
        return None, {}
    lists = {name: typed.with_uuids(work, body.get(name, before.get(name)), name) for name in typed.LISTS}
    keep: Json = dict(lists)
    for name, order in ORDERS.items():
        keep[order] = typed.ordered(body.get(order), lists[name], before.get(order) or [], order)
    saved = _saved(work, body.get("saved_metrics_ids", before.get("saved_metrics_ids")))
    own = {
        name: [typed.native(item, f"{name}.{index}") for index, item in enumerate(listed)]
        for name, listed in lists.items()
    }
    first = [*own["metrics"], *saved["primary"]]
    rest = [*first[1:], *own["metrics_secondary"], *saved["secondary"]]
    keep["saved_metrics_ids"] = body.get("saved_metrics_ids", before.get("saved_metrics_ids")) or []
    return {**({"primary": first[0]} if first else {}), "secondary": rest}, keep


def _saved(work: Work, listed: Any) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {"primary": [], "secondary": []}
    if listed is None:
        return found
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise wrong("saved_metrics_ids", "is not a list of {id, metadata}", "send one")
    for index, item in enumerate(listed):
        said = item.get("metadata") or {}
        kind = said.get("type", "primary") if isinstance(said, dict) else said
        metric = work.store.metrics.find(work.project_id, str(item.get("id")))
        if metric is None or kind not in tuple(found):
            what = "there is no saved metric of this id" if metric is None else f"{kind!r} is no type"
            raise wrong(f"saved_metrics_ids.{index}", what, "name one, as primary or secondary")
        found[kind].append({"id": show_id(metric.id)})
    return found


# -- the rest


def analysis(experiment: Experiment | None, body: Json) -> tuple[Json | None, Json]:
    """Our analysis of what is sent, None where it is as it was; and what is to be kept."""
    keep: Json = {}
    present = {} if experiment is None else experiment.design.analysis.model_dump(mode="json", by_alias=True)
    wanted = dict(present)
    if "stats_config" in body:
        keep["stats_config"] = said = _object(body["stats_config"], "stats_config")
        method = said.get("method") or "bayesian"
        if method not in ("bayesian", "frequentist"):
            raise wrong("stats_config.method", f"{method!r} is no method", "choose bayesian or frequentist")
        level = _object(said.get(method), f"stats_config.{method}")
        if method == "bayesian" and level.get("ci_level") is not None:
            wanted["alpha"] = _number(1 - _float(level["ci_level"], "stats_config.bayesian.ci_level"))
        if method == "frequentist" and level.get("alpha") is not None:
            wanted["alpha"] = _float(level["alpha"], "stats_config.frequentist.alpha")
    parameters = body.get("parameters") or {}
    if "excluded_variants" in parameters:
        excluded = parameters["excluded_variants"] or []
        if not isinstance(excluded, list):
            raise wrong("parameters.excluded_variants", "is not a list of variant keys", "send one")
        wanted["excludedVariantIds"] = [slug(key) for key in excluded]
    return (None if wanted == present else wanted), keep


def _number(value: float) -> float:
    return round(value, 10)


def _float(value: Any, at: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong(at, "is no number", "send a number")
    return float(value)


def _object(value: Any, at: str) -> Json:
    if value is not None and not isinstance(value, dict):
        raise wrong(at, "is not an object", "send an object")
    return dict(value or {})


def exposure(experiment: Experiment | None, body: Json, sent: Json) -> tuple[Json | None, Json]:
    """Our exposure criteria of what is sent, None where they are as they were; and what is to be kept."""
    if "exposure_criteria" not in body:
        return None, {}
    wanted = sent.pop("exposureCriteria", None) or {}
    keep = {
        "exposure_criteria": {
            k: v for k, v in (body["exposure_criteria"] or {}).items() if k in _KEPT_CRITERIA
        }
    }
    present: Mapping[str, Any] = (
        {}
        if experiment is None
        else experiment.design.exposure_criteria.model_dump(mode="json", by_alias=True)
    )
    merged = {**present, **wanted}
    return (None if merged == present else merged), keep


_KEPT_CRITERIA = ("filterTestAccounts", "exposure_config")


def holdout(work: Work, experiment: Experiment | None, body: Json) -> Json:
    """Our holdout of what is sent; nothing where it is as it was."""
    if "holdout_id" not in body:
        return {}
    wanted = body["holdout_id"]
    found = None if wanted is None else work.store.holdouts.find(work.project_id, str(wanted))
    if wanted is not None and found is None:
        raise wrong("holdout_id", f"there is no holdout {wanted!r}", "name one, or send null")
    named = None if found is None else show_id(found.id)
    present = None if experiment is None else experiment.design.holdout_id
    return {} if named == present else {"holdoutId": named}


def is_draft(experiment: Experiment) -> bool:
    """Whether it was not launched yet."""
    return experiment.status is Status.DRAFT


def changes(experiment: Experiment, values: Json) -> Json:
    """What was sent and is not so already."""
    present = {
        "name": experiment.name,
        "description": experiment.description,
        "targetFile": experiment.target_file,
        "participants": experiment.selector,
    }
    return {name: value for name, value in values.items() if name not in present or present[name] != value}


def update(work: Work, experiment: Experiment, values: Json) -> None:
    """Our own fields are as given. Raises as our own API does, told of this door's fields."""
    wanted = changes(experiment, values)
    if wanted:
        with EXPERIMENT.told():
            asked = {"id": show_id(experiment.id), **wanted}
            experiments.update(work, requests.parse(requests.UpdateExperiment, asked))
