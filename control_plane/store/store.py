"""Every question the services ask of what is kept, by noun, over one transaction."""

from control_plane.store.access import AccessStore
from control_plane.store.arrivals import ArrivalStore
from control_plane.store.database import Tx
from control_plane.store.deployments import DeploymentStore
from control_plane.store.doctor import DoctorStore
from control_plane.store.events import EventStore
from control_plane.store.experiments import ExperimentStore
from control_plane.store.export import ExportStore
from control_plane.store.findings import FindingStore
from control_plane.store.fleet import FleetStore
from control_plane.store.holdouts import HoldoutStore
from control_plane.store.kept import KeptStore
from control_plane.store.looks import LookStore
from control_plane.store.metrics import MetricStore
from control_plane.store.offers import OfferStore
from control_plane.store.preflight import PreflightStore
from control_plane.store.questions import QuestionStore
from control_plane.store.recalculations import RecalculationStore
from control_plane.store.replicas import ReplicaStore
from control_plane.store.retention import RetentionStore
from control_plane.store.searches import SearchStore
from control_plane.store.series import SeriesStore
from control_plane.store.survey import SurveyStore
from control_plane.store.timers import TimerStore
from control_plane.store.turns import TurnStore


class Store:
    """The nouns of one transaction."""

    def __init__(self, tx: Tx) -> None:
        self.access = AccessStore(tx)
        self.experiments = ExperimentStore(tx)
        self.fleet = FleetStore(tx)
        self.deployments = DeploymentStore(tx)
        self.offers = OfferStore(tx)
        self.events = EventStore(tx)
        self.arrivals = ArrivalStore(tx)
        self.timers = TimerStore(tx)
        self.findings = FindingStore(tx)
        self.survey = SurveyStore(tx)
        self.holdouts = HoldoutStore(tx)
        self.metrics = MetricStore(tx)
        self.series = SeriesStore(tx)
        self.doctor = DoctorStore(tx)
        self.export = ExportStore(tx)
        self.recalculations = RecalculationStore(tx)
        self.looks = LookStore(tx)
        self.turns = TurnStore(tx)
        self.retention = RetentionStore(tx)
        self.preflights = PreflightStore(tx)
        self.replicas = ReplicaStore(tx)
        self.searches = SearchStore(tx)
        self.kept = KeptStore(tx)
        self.questions = QuestionStore(tx)
