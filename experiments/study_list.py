"""The ready studies: what each varies, and what its table tells."""

from __future__ import annotations

from typing import NamedTuple

from experiments.drift_recovery import SHARED

SIZES = ("small", "full")


class Measure(NamedTuple):
    """What a table tells.

    name: of the runs' table. scale: what is shown is so many times that. exact: seeds hardly differ. ratio: it is compared by a
    quotient, not by a difference.
    """

    name: str
    heading: str
    digits: int = 3
    scale: float = 1.0
    exact: bool = False
    ratio: bool = False


ACCURACY = Measure("accuracy", "test accuracy")
WORST = Measure("federated.accuracy_worst10", "clients' worst tenth")
SENT = Measure("bytes_up", "MB sent by clients", 1, 1e-6, exact=True, ratio=True)
MINUTES = Measure("simulated_seconds", "simulated minutes", 2, 1 / 60, ratio=True)
NEXT = Measure("cumulative_accuracy", "accuracy on what comes next")
KILOJOULES = Measure("joules", "kJ of the devices", 2, 1e-3, ratio=True)
BACK = Measure(SHARED, "rounds to FedAvg's accuracy", 1)
RECOVERY = Measure("streams.recovery_rounds", "rounds to its own", 1)
REGRET = Measure("streams.regret_offline_each", "regret an example")
OFFLINE = Measure("streams.offline_accuracy", "trained anew")
SECONDS_TO_TARGET = Measure("simulated_seconds_to_target", "simulated seconds to the target", 1, ratio=True)
JOULES_TO_TARGET = Measure("joules_to_target", "kJ to the target", 2, 1e-3, ratio=True)


class Study(NamedTuple):
    """A ready study.

    experiments: of conf/experiment/. rows, columns: configuration keys that the table is laid out by, several beside each
    other in one heading. figures: of its report, that are kept; `table` is its table drawn. measures: told in every column;
    once: told once a row, over all columns. also: further keys in which its runs may differ.
    within: further keys that tell rows apart, each in a word, or none where WORDS has none for its value.
    reference: the heading that all others are compared with. baseline: or the row.
    """

    experiments: tuple[str, ...]
    rows: str
    columns: tuple[str, ...]
    figures: tuple[str, ...]
    measures: tuple[Measure, ...] = (ACCURACY,)
    once: tuple[Measure, ...] = ()
    also: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    reference: str = ""
    baseline: str = ""


STUDIES = {
    "client_scaling": Study(
        ("client_scaling", "client_scaling_per_client"), "population.num_clients", ("name",), ("accuracy_vs_clients",)
    ),
    "privacy_vs_clients": Study(
        ("privacy_vs_clients",),
        "population.num_clients",
        ("privacy.epsilon",),
        ("pareto_accuracy_epsilon", "accuracy_vs_clients"),
        also=("privacy._target_",),
        reference="no privacy",
    ),
    "heterogeneity": Study(("heterogeneity",), "partition.alpha", ("strategy._target_", "client.lr"), ("table",)),
    "participation": Study(
        ("participation",),
        "sampler.cohort_size",
        (),
        ("accuracy_vs_cohort_size", "pareto_accuracy_bytes"),
        (ACCURACY, WORST, SENT),
    ),
    "label_noise": Study(
        ("label_noise",),
        "corruption.label_noise",
        ("strategy._target_", "client.epochs"),
        ("table",),
    ),
    "time_to_accuracy": Study(
        ("time_to_accuracy",),
        "schedule._target_",
        ("availability._target_",),
        ("learning_curves_simulated_seconds", "learning_curves_joules"),
        (ACCURACY, SECONDS_TO_TARGET, JOULES_TO_TARGET),
        baseline="wait for all",
    ),
    "compression": Study(
        ("compression",),
        "compression._target_",
        (),
        ("table", "learning_curves_simulated_seconds"),
        (ACCURACY, SENT, MINUTES, KILOJOULES),
        baseline="none",
    ),
    "error_feedback": Study(
        ("error_feedback",),
        "compression.keep",
        ("compression.error_feedback",),
        ("table",),
        once=(SENT,),
        baseline="1",
    ),
    "energy_pareto": Study(
        ("energy_pareto",),
        "sampler.fraction",
        ("privacy.epsilon",),
        ("accuracy_vs_fraction", "pareto_accuracy_joules"),
        once=(KILOJOULES,),
        also=("privacy._target_",),
        reference="no privacy",
    ),
    "stream_privacy": Study(
        ("stream_privacy", "stream_privacy_ftrl"),
        "privacy.epsilon",
        ("name",),
        ("table",),
        (NEXT,),
        also=("privacy.mechanism", "sampler._target_"),
        reference="DP-SGD",
    ),
    "drift": Study(
        ("drift", "drift_momentum", "drift_adagrad_norm", "drift_replay"),
        "strategy._target_",
        ("drift._target_",),
        ("prequential_curves",),
        (NEXT, BACK, RECOVERY, REGRET),
        also=("name",),
        within=("response._target_", "streams.memory"),
        baseline="FedAvg",
    ),
    "drift_flights": Study(
        ("drift_flights",),
        "response._target_",
        ("drift._target_",),
        ("prequential_curves",),
        (NEXT, BACK, RECOVERY, REGRET),
        baseline="no answer",
    ),
    "online_vs_offline": Study(
        ("online_vs_offline",),
        "streams.memory",
        ("drift._target_",),
        ("prequential_curves",),
        (NEXT, OFFLINE, REGRET),
    ),
}
WORDS = {
    "client_scaling": "the same data over all",
    "client_scaling_per_client": "as much data each",
    "stream_privacy": "DP-SGD",
    "stream_privacy_ftrl": "DP-FTRL",
    "fedavg": "FedAvg",
    "fedavgm": "FedAvgM",
    "fedmedian": "median",
    "adagrad_norm": "AdaGrad-Norm",
    "NoResponse": "no answer",
    "Reset": "reset",
    "Boost": "boost",
    "once": "this round's alone",
    "window": "window",
    "reservoir": "reservoir",
    "Undrifted": "no drift",
    "Sudden": "sudden",
    "Gradual": "gradual",
    "Incremental": "incremental",
    "Recurring": "recurring",
    "Synchronous": "wait for all",
    "OverSelection": "over-selection",
    "FedBuff": "FedBuff",
    "Always": "always there",
    "Markov": "on and off",
    "Uncompressed": "none",
    "Quantize": "quantize",
    "QSGD": "qsgd",
    "NF4": "nf4",
    "TopK": "topk",
    "RandomK": "randomk",
    "Sign": "sign",
    "PowerSGD": "powersgd",
    "Sketch": "sketch",
}
"""What values are called, in their order."""
UNSAID = ("NoResponse", "window")
"""Values of keys within a row of which its name says nothing."""
