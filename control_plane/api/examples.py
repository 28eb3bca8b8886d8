"""One example per operation, shown in the OpenAPI document.

They are a story: run in this order against a fresh control plane, each of them works (a test does just
that, with the ids of its own run in place of the ones below, and with the host of `bot-1` connected while its
file is read).
"""

from typing import Any

DEPLOYMENT = "01a1fc04-0c4c-7324-b27c-00fe9ff70c85"
AGENT = "01a1fc0c-7b81-75d9-9764-5f47a7d3a98d"

API_KEY = "01a1fc0d-2f43-7c1a-8f0e-6f3c5a9b1d20"

EXPORT_EXAMPLE = {"id": "soul-tone", "what": "events"}

EXAMPLES: dict[str, dict[str, Any]] = {
    "HoldoutService.CreateHoldout": {"name": "Left alone", "key": "left-alone", "share": 5},
    "HoldoutService.ListHoldouts": {},
    "HoldoutService.GetHoldout": {"id": "left-alone"},
    "HoldoutService.UpdateHoldout": {"id": "left-alone", "share": 10},
    "HoldoutService.DeleteHoldout": {"id": "left-alone"},
    "MetricService.CreateMetric": {
        "name": "Resolved",
        "key": "resolved-rate",
        "eventName": "resolved",
        "kind": "proportion",
        "goal": "increase",
        "minimumDetectableEffect": 0.1,
    },
    "MetricService.ListMetrics": {},
    "MetricService.GetMetric": {"id": "resolved-rate"},
    "MetricService.UpdateMetric": {"id": "resolved-rate", "window": "P7D"},
    "MetricService.DeleteMetric": {"id": "resolved-rate"},
    "FleetService.CreateParticipant": {"id": "bot-1", "labels": {"role": "support"}},
    "ExperimentService.CreateExperiment": {
        "name": "Personality A/B test",
        "key": "soul-tone",
        "targetFile": "config/soul.md",
        "variants": [
            {"name": "Friendly", "content": "You are friendly.", "weight": 50, "isControl": True},
            {"name": "Concise", "content": "You are concise.", "weight": 50},
        ],
        "participantIds": ["bot-1", "bot-2"],
        "metrics": {"primary": {"eventName": "resolved", "goal": "increase"}},
    },
    "ExperimentService.ListExperiments": {"status": "draft", "limit": 25},
    "ExperimentService.GetExperiment": {"id": "soul-tone"},
    "ExperimentService.UpdateExperiment": {"id": "soul-tone", "description": "Concise resolves more."},
    "ExperimentService.AddVariant": {"id": "soul-tone", "name": "Terse", "content": "Be terse."},
    "ExperimentService.ListVariants": {"id": "soul-tone"},
    "ExperimentService.GetVariant": {"id": "soul-tone", "variantId": "terse"},
    "ExperimentService.UpdateVariant": {"id": "soul-tone", "variantId": "terse", "content": "Be very terse."},
    "ExperimentService.DeleteVariant": {"id": "soul-tone", "variantId": "terse"},
    "AssignmentService.PreviewAssignments": {"id": "soul-tone"},
    "ExperimentService.StartExperiment": {"id": "soul-tone"},
    "ExperimentService.ListFindings": {"id": "soul-tone"},
    "ExperimentService.CheckInstrumentation": {"id": "soul-tone"},
    "ExperimentService.ListEligibleTargets": {"search": "soul", "limit": 25},
    "ExperimentService.GetVelocity": {},
    "AssignmentService.ListAssignments": {"id": "soul-tone"},
    "DeploymentService.CreateDeployment": {
        "id": "soul-tone",
        "participantId": "bot-1",
        "variantId": "concise",
    },
    "DeploymentService.WithdrawDeployment": {"id": DEPLOYMENT},
    "AssignmentService.ForceAssignment": {
        "id": "soul-tone",
        "participantId": "bot-1",
        "variantId": "friendly",
    },
    "AssignmentService.UnforceAssignment": {"id": "soul-tone", "participantId": "bot-1"},
    "ExperimentService.OpenPhase": {"id": "soul-tone", "weights": {"friendly": 20, "concise": 80}},
    "ExperimentService.ListPhases": {"id": "soul-tone"},
    "DeploymentService.ListDeployments": {"id": "soul-tone"},
    "DeploymentService.GetDeployment": {"id": DEPLOYMENT},
    "DeploymentService.ListOutcomes": {"id": DEPLOYMENT},
    "EventService.ReportServerEvents": {
        "events": [
            {"kind": "impression", "participantId": "bot-1", "eventId": "chat-1", "subject": "chat-1"},
            {
                "kind": "conversion",
                "participantId": "bot-1",
                "eventId": "chat-1-resolved",
                "eventName": "resolved",
                "subject": "chat-1",
                "value": 2.5,
            },
        ]
    },
    "ResultsService.EstimateSampleSize": {
        "baseline": 0.25,
        "impressionsEach": 150,
        "icc": 0.15,
        "participants": 30,
    },
    "EventService.ListEvents": {"kind": "conversion", "eventName": "resolved", "limit": 10},
    "ResultsService.GetResults": {"id": "soul-tone", "eventName": "resolved", "population": "delivered"},
    "ResultsService.GetTimeSeries": {"id": "soul-tone", "eventName": "resolved", "startDate": "2026-01-01"},
    "ResultsService.RecalculateTimeSeries": {"id": "soul-tone", "metric": "resolved"},
    "ResultsService.GetRecalculation": {"id": "soul-tone", "metric": "resolved"},
    "ResultsService.ComputeResults": {"id": "soul-tone", "eventName": "resolved"},
    "ResultsService.CheckTallies": {"id": "soul-tone"},
    "ExperimentService.PauseExperiment": {"id": "soul-tone"},
    "ExperimentService.ResumeExperiment": {"id": "soul-tone"},
    "ExperimentService.TransitionExperiment": {"id": "soul-tone", "status": "paused"},
    "ExperimentService.StopExperiment": {"id": "soul-tone"},
    "ExperimentService.CompleteExperiment": {
        "id": "soul-tone",
        "then": "restore",
        "conclusion": "inconclusive",
        "conclusionComment": "Too few participants.",
    },
    "ExperimentService.ShipExperiment": {"id": "soul-tone", "variantId": "concise"},
    "ExperimentService.ResetExperiment": {"id": "soul-tone", "then": "restore"},
    "ExperimentService.ArchiveExperiment": {"id": "soul-tone"},
    "ExperimentService.UnarchiveExperiment": {"id": "soul-tone"},
    "ExperimentService.DuplicateExperiment": {"id": "soul-tone", "name": "Tone, once more"},
    "ExperimentService.DeleteExperiment": {"id": "tone-once-more"},
    "FleetService.ListParticipants": {"limit": 25},
    "FleetService.GetParticipant": {"id": "bot-1"},
    "FleetService.UpdateParticipant": {"id": "bot-1", "labels": {"role": "sales"}},
    "FleetService.DeleteParticipant": {"id": "bot-2"},
    "FleetService.CreateEnrollmentToken": {"name": "web hosts", "ttl": "PT1H", "maxUses": 3},
    "FleetService.ListEnrollmentTokens": {},
    "FleetService.ListAgents": {},
    "FleetService.GetAgent": {"id": AGENT},
    "FleetService.MoveParticipant": {"id": "bot-1", "agentId": AGENT},
    "FleetService.ReadFile": {"id": "bot-1", "path": "config/soul.md"},
    "FleetService.FreezeFleet": {},
    "FleetService.GetFleet": {},
    "FleetService.UnfreezeFleet": {},
    "FleetService.ReleaseWithdrawals": {},
    "FleetService.ReleaseAgent": {"id": AGENT},
    "FleetService.BanAgent": {"id": AGENT},
    "FleetService.RetireAgent": {"id": AGENT},
    "SettingsService.UpdateSettings": {
        "targetAllowList": ["config/**"],
        "defaults": {"settleSeconds": 120, "alpha": 0.05},
        "validators": [
            {"glob": "config/*.md", "maxBytes": 20000, "encoding": "utf-8", "forbidden": ["(?i)todo"]}
        ],
    },
    "SettingsService.GetSettings": {},
    "AccessService.CreateApiKey": {"name": "pipeline", "scopes": ["experiment:read", "deployment:write"]},
    "AccessService.ListApiKeys": {"limit": 10},
    "AccessService.GetApiKey": {"id": API_KEY},
    "AccessService.UpdateApiKey": {"id": API_KEY, "name": "pipeline of the assistants"},
    "AccessService.RevokeApiKey": {"id": API_KEY},
    "AccessService.ListAuditLog": {"resourceId": "soul-tone", "fromAt": "2020-01-01T00:00:00Z", "limit": 10},
}
"""Example values by Service.Method."""
