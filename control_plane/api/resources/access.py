"""Enrollment tokens, API keys, the audit log and what a project settles."""

from control_plane.api.resources.shown import Json, at, page
from control_plane.services.access import NewKey, NewToken, token_text
from control_plane.services.work import Listing, Work
from control_plane.store.access import AuditEntry, StoredSettings
from shared.ids import show_id


def enrollment_token(work: Work, new: NewToken) -> Json:
    """A fresh enrollment token, with its text."""
    return {**_token(new), "token": token_text(new.secret, work.joining) if new.secret else None}


def enrollment_tokens(work: Work, listing: Listing) -> Json:
    """A page of enrollment tokens, without their secrets."""
    return page(listing, _token)


def _token(new: NewToken) -> Json:
    token = new.token
    return {
        "id": show_id(token.id),
        "name": token.name,
        "labels": token.labels,
        "maxUses": token.max_uses,
        "uses": token.uses,
        "namePattern": token.name_pattern,
        "participants": list(token.participants),
        "expiresAt": at(token.expires_at),
        "createdAt": at(token.created_at),
    }


def api_key(work: Work, new: NewKey) -> Json:
    """An API key; its secret only when it is fresh."""
    return {**_api_key(new), "secret": new.secret}


def api_keys(work: Work, listing: Listing) -> Json:
    """A page of API keys, without their secrets."""
    return page(listing, _api_key)


def _api_key(new: NewKey) -> Json:
    return {
        "id": show_id(new.key.id),
        "name": new.key.name,
        "prefix": new.key.prefix,
        "scopes": list(new.key.scopes),
        "labels": new.key.labels,
        "createdAt": at(new.key.created_at),
        "expiresAt": at(new.key.expires_at),
        "revokedAt": at(new.key.revoked_at),
        "lastUsedAt": at(new.key.last_used_at),
    }


def audit(work: Work, listing: Listing) -> Json:
    """A page of the audit log."""

    def render(entry: AuditEntry) -> Json:
        return {
            "id": show_id(entry.id),
            "actor": entry.actor,
            "apiKeyId": None if entry.api_key_id is None else show_id(entry.api_key_id),
            "operation": entry.operation,
            "resourceId": entry.resource_id,
            "at": at(entry.at),
            "before": entry.before,
            "after": entry.after,
        }

    return page(listing, render)


def settings(work: Work, stored: StoredSettings) -> Json:
    """The project's settings."""
    return {
        **stored.settings.model_dump(mode="json", by_alias=True),
        "version": stored.version,
        "updatedAt": at(stored.updated_at),
        "updatedBy": stored.updated_by,
    }
