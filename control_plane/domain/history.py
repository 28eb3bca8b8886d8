"""What is to be known of a history that is taken out: above all, who has none."""

from control_plane.domain.evidence import Evidence, Json, clusters, historied


def forgotten(evidence: Evidence) -> list[Json]:
    """A finding where history is to be taken out, and is not there."""
    there, whole = historied(evidence), len(clusters(evidence))
    if evidence.history is None or there == whole:
        return []
    who = "nobody has" if not there else f"{whole - there} of {whole} have no"
    return [
        {
            "code": "HISTORY_MISSING",
            "severity": "info" if there else "warning",
            "message": f"{who} history before the start"
            + ("; they count as their stratum's mean" if there else ", so nothing is taken out"),
            "evidence": {"without": whole - there, "of": whole, "days": evidence.settings.history_days},
            "advice": "let applications report for some days before the start, or measure without cuped",
        }
    ]
