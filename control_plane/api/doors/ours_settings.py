"""The settings record of Ours Privacy's clients: the one a project has, and what is kept of it."""

from control_plane.api import resources
from control_plane.api.doors.mapping import Answered, Call, take
from control_plane.api.doors.ours_fields import NAME, SETTINGS, named, own
from control_plane.domain import requests
from control_plane.domain.settings import UpdateSettings
from control_plane.services import foreign, settings
from control_plane.services.work import Work
from control_plane.store.kept import Kept
from control_plane.store.searches import Wanted
from shared.errors import AlreadyExists, FailedPrecondition, NotFound
from shared.ids import show_id
from shared.moment import to_rfc3339


def _record(work: Work) -> Kept | None:
    return work.store.kept.get(work.project_id, NAME, "settings", work.project_id)


def _settings(work: Work) -> Answered:
    found = _record(work)
    native = {
        **resources.settings(work, settings.get(work, requests.Nothing())),
        "projectId": show_id(work.project_id),
        "createdAt": None if found is None else to_rfc3339(found.created_at),
        "updatedAt": None if found is None else to_rfc3339(found.updated_at),
        "updatedByUserId": None if found is None else found.updated_by,
    }
    return Answered(about="settings", body=SETTINGS.show(native, {} if found is None else found.fields))


def _that_settings(work: Work, call: Call) -> None:
    if named(call.id) not in (show_id(work.project_id), work.project_id.hex()):
        raise NotFound(f"there is no settings record {call.id!r}")


def list_settings(work: Work, call: Call) -> Answered:
    """The one record, in a list."""
    take(call, ())
    return Answered(about="", body={"entities": [_settings(work).body]})


def get_settings(work: Work, call: Call) -> Answered:
    """The one record."""
    _that_settings(work, call)
    return _settings(work)


def create_settings(work: Work, call: Call) -> Answered:
    """The record is written for the first time. Raises AlreadyExists where it was."""
    if _record(work) is not None:
        there = own("settings", show_id(work.project_id))
        raise AlreadyExists(f"a project has one settings record, {there}; change that")
    return _write_settings(work, call, verb="create")


def update_settings(work: Work, call: Call) -> Answered:
    """The record is as sent; what was not sent stays."""
    _that_settings(work, call)
    return _write_settings(work, call, verb="update")


def _write_settings(work: Work, call: Call, *, verb: str) -> Answered:
    sent, found = SETTINGS.read(call.body, verb=verb), _record(work)
    if sent.values:
        with SETTINGS.told():
            settings.update(work, requests.parse(UpdateSettings, sent.values))
    fields = {**({} if found is None else found.fields), **sent.kept}
    work.store.kept.put(
        work.project_id, NAME, "settings", work.project_id, fields, actor=work.caller.actor, now=work.now
    )
    return _settings(work)


def delete_settings(work: Work, call: Call) -> Answered:
    """What was kept of the record is gone. Raises FailedPrecondition while there are experiments."""
    _that_settings(work, call)
    held = foreign.search(work, Wanted(project_id=work.project_id, archived=False), limit=1)
    if held.total:
        raise FailedPrecondition(
            "experiments would be deleted with their settings record; delete them first", reason="WRONG_STATE"
        )
    answer = _settings(work)
    work.store.kept.drop(work.project_id, NAME, "settings", work.project_id)
    return answer
