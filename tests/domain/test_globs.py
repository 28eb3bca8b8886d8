"""The control plane reads globs as hosts do."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.policy import matches
from control_plane.domain.globs import describes, overlap

NAMES = st.text("ab.", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PARTS = st.text("ab.*", min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))
GLOBS = st.lists(st.just("**") | PARTS, min_size=1, max_size=3).map("/".join)


@given(GLOBS, PATHS)
@settings(max_examples=500)
def test_a_glob_describes_what_it_describes_on_a_host(glob: str, path: str) -> None:
    """Both sides answer the same for every glob and path."""
    assert describes(glob, path) == matches(glob, tuple(path.split("/")))


@given(GLOBS, GLOBS, PATHS)
@settings(max_examples=500)
def test_globs_that_share_a_path_overlap(one: str, other: str, path: str) -> None:
    """What both describe is never missed."""
    if describes(one, path) and describes(other, path):
        assert overlap(one, other)
        assert overlap(other, one)


def test_globs_that_share_nothing_do_not_overlap() -> None:
    """Folders, names and leading dots tell them apart."""
    for one, other in (("a/*.md", "b/*.md"), ("*.md", "*.txt"), ("*", ".a"), ("**/a", "b"), ("a*", "b*c")):
        assert not overlap(one, other), (one, other)
    for one, other in (("**", "a/b"), ("a*c", "ab*"), ("**/*.md", "config/soul.md"), ("*", "a")):
        assert overlap(one, other), (one, other)
