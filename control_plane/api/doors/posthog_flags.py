"""What PostHog's clients ask of a whole project: keys to experiment on, whether anything is reported, its pace."""

from control_plane.api.doors.mapping import Answered, Call, one_of, take
from control_plane.api.doors.posthog_reading import (
    ACTIVE,
    HIDDEN,
    flag,
    ordered_by,
    refuse_unasked,
    told,
    window,
)
from control_plane.domain import requests
from control_plane.services import arrivals, foreign, survey
from control_plane.services.work import Work
from control_plane.store.searches import Wanted
from shared.moment import SECOND, to_rfc3339

_DAY = 86_400 * SECOND
_FLAG_ORDERS = {"created_at": "created", "updated_at": "updated", "key": "key", "name": "name"}


def eligible_flags(work: Work, call: Call) -> Answered:
    """Keys that an experiment can stand on: two variants and more, the first of them `control`."""
    refuse_unasked(call)
    query = take(
        call,
        (
            "limit", "offset", "search", "active", "created_by", "order", "evaluation_runtime",
            "has_evaluation_tags",
        ),
    )  # fmt: skip
    limit, offset = window(query, default=20)
    order, descending = ordered_by(query, _FLAG_ORDERS)
    runtime = one_of(query, "evaluation_runtime", ("all", "server", "client"))
    active, tagged = flag(query, "active"), flag(query, "has_evaluation_tags")
    wanted = Wanted(
        project_id=work.project_id,
        archived=False,
        statuses=() if active is None else ACTIVE if active else ("draft", "reverted"),
        search=query.get("search", ""),
        creator=query.get("created_by", ""),
        hidden=HIDDEN,
        flags=True,
    )
    if runtime == "client" or tagged:  # nothing here is evaluated in a browser, and nothing is tagged
        return Answered(about="", body={"results": [], "count": 0})
    found = foreign.search(
        work,
        wanted,
        order=order,
        descending=descending,
        offset=offset,
        limit=limit,
    )
    flags = [told(work, view)["feature_flag"] for view in found.views]
    return Answered(about="", body={"results": flags, "count": found.total})


def needs_reports(work: Work, call: Call) -> Answered:
    """Whether nothing at all was reported in the last 7 days."""
    take(call, ())
    asked = {"limit": 1, "fromAt": to_rfc3339(max(0, work.now - 7 * _DAY))}
    found = arrivals.list_page(work, requests.parse(arrivals.ListEvents, asked))
    return Answered(about="", body={"result": not found.items})


def stats(work: Work, call: Call) -> Answered:
    """The pace of the project."""
    take(call, ())
    found = survey.get_velocity(work, requests.Nothing())
    body = {
        "launched_last_30d": found.launched.current,
        "launched_previous_30d": found.launched.previous,
        "percent_change": found.launched.percent_change,
        "active_experiments": found.running,
        "completed_last_30d": found.completed.current,
    }
    return Answered(about="", body=body)
