"""How contents are shown: always by digest and size, as text or base64 only to callers that may read them."""

import base64
from collections.abc import Sequence
from typing import Any

from control_plane.domain.factors import Factor
from control_plane.services.work import Scope, Work
from shared.model import Digest, show_digest

Json = dict[str, Any]


def fill(work: Work, value: Digest, shown: Json) -> None:
    """`content`, or `contentBase64` where it is no text, is what has this digest."""
    content = work.store.experiments.content(work.project_id, value) or b""
    try:
        shown["content"] = content.decode()
    except UnicodeDecodeError:
        shown["contentBase64"] = base64.b64encode(content).decode()


def factors(work: Work, found: Sequence[Factor]) -> list[Json]:
    """Factors with their contents, where the caller may read them."""
    shown = [factor(item) for item in found]
    if work.caller.may(Scope.CONTENT_READ):
        for item, with_levels in zip(found, shown, strict=True):
            for level, with_content in zip(item.levels, with_levels["levels"], strict=True):
                fill(work, level.digest, with_content)
    return shown


def factor(item: Factor) -> Json:
    """A factor without its contents."""
    return {
        "key": item.key,
        "targetFile": item.target_file,
        "levels": [
            {
                "key": level.key,
                "name": level.name,
                "content": None,
                "contentBase64": None,
                "digest": show_digest(level.digest),
                "size": level.size,
            }
            for level in item.levels
        ],
    }
