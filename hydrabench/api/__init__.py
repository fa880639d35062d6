"""The functions of `import hydrabench as hb`: the commands as functions, for notebooks, scripts and training loops.

networks    what is judged: a module, a checkpoint or a zoo id, and the images it is judged on
evaluation  `load`, `attack`, `certify`, `verify`
runs        `Run` and `TrainingRun`: what a finished run says
training    `train`, `prune`, `finetune`, `pipeline`
reports     `report`: the leaderboard of runs
gating      `baseline`, `gate`: what changed since

Each function calls the workflow that the command of the same name calls, and writes the same run folder.
"""

from hydrabench.api.evaluation import attack, certify, load, verify
from hydrabench.api.gating import Gate, baseline, gate
from hydrabench.api.reports import Report, report
from hydrabench.api.runs import Run, TrainingRun
from hydrabench.api.training import finetune, pipeline, prune, train

__all__ = [
    "Gate",
    "Report",
    "Run",
    "TrainingRun",
    "attack",
    "baseline",
    "certify",
    "finetune",
    "gate",
    "load",
    "pipeline",
    "prune",
    "report",
    "train",
    "verify",
]
