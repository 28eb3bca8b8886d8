"""What an operator should know about an experiment."""

from google.protobuf.json_format import MessageToDict

from control_plane.cli import show
from control_plane.cli.experiments import Name
from control_plane.cli.session import Session
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

_MARKS = {"error": "✗", "warning": "!", "info": "·"}


def findings(session: Session, *, experiment: Name) -> None:
    """What is worth knowing before trusting the numbers: what was seen, and what to do about it."""
    report = session.call(session.experiments.ListFindings, pb.ListFindingsRequest(id=experiment))
    if session.json:
        show.print_json(session.out, show.to_json(report))
        return
    if not report.findings:
        show.say(session.out, f"nothing to say about {experiment}")
    for item in report.findings:
        show.say(session.out, f"{_MARKS.get(item.severity, '·')} {item.message} ({item.code})")
        by_arm = MessageToDict(item.evidence).get("byVariant")
        if isinstance(by_arm, dict):
            show.say(
                session.out, "    " + ", ".join(f"{key}: {_count(value)}" for key, value in by_arm.items())
            )
        show.say(session.out, f"    {item.advice}")


def _count(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['affected']:g} of {value['participants']:g}"
    return f"{value:g}" if isinstance(value, float) else str(value)
