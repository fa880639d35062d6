"""Run folders: who writes them, what they hold, what must hold of it. Nothing here knows about tensors."""

from hydrabench.ledger.attack_records import AttackRecord, CurveRecord
from hydrabench.ledger.attempts import AS_IT_IS, ATTEMPTS_FILE, Attempt, AttemptLog
from hydrabench.ledger.checking import (
    RUN_AGAIN,
    check_record,
    fingerprint,
    name_images,
    parse_record,
    read_record,
    whole_ledger,
)
from hydrabench.ledger.corruption import CORRUPTIONS, SEVERITIES, CorruptionRecord
from hydrabench.ledger.exact import ExactRecord
from hydrabench.ledger.examples import ADVERSARIAL, Examples, ExampleStore
from hydrabench.ledger.folder import (
    RUN_SCHEMA,
    SUMMARY_SCHEMA,
    RunFolder,
    find_run,
    finite_or_none,
    open_run,
    read_run,
)
from hydrabench.ledger.radius import RadiusRecord
from hydrabench.ledger.records import ABSTAIN, Record, ReuseRecord, SmoothedRecord, VerifiedRecord
from hydrabench.ledger.smooth_attack import SmoothAttackRecord
from hydrabench.ledger.writer import interrupted, writing, writing_file

__all__ = [
    "ABSTAIN",
    "ADVERSARIAL",
    "AS_IT_IS",
    "ATTEMPTS_FILE",
    "CORRUPTIONS",
    "RUN_AGAIN",
    "RUN_SCHEMA",
    "SEVERITIES",
    "SUMMARY_SCHEMA",
    "AttackRecord",
    "Attempt",
    "AttemptLog",
    "CorruptionRecord",
    "CurveRecord",
    "ExactRecord",
    "ExampleStore",
    "Examples",
    "RadiusRecord",
    "Record",
    "ReuseRecord",
    "RunFolder",
    "SmoothAttackRecord",
    "SmoothedRecord",
    "VerifiedRecord",
    "check_record",
    "find_run",
    "fingerprint",
    "finite_or_none",
    "interrupted",
    "name_images",
    "open_run",
    "parse_record",
    "read_record",
    "read_run",
    "whole_ledger",
    "writing",
    "writing_file",
]
