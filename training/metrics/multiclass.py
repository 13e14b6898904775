"""Metrics of one of several classes, with intervals from a bootstrap over users.

In: labels_N, the index of each row's class. probabilities_NC, which sum to 1. The group (user) of each row. Log losses
are in nats.

Shapes: N rows, C classes, G groups, R draws, U parts of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.metrics.bootstrap import Estimate, Floats, Statistic, estimates
from training.metrics.metrics import PROBABILITY_FLOOR, Codes, auc, auc_on_draws, divide, group_codes

A_CLASS_IS_ABSENT = "a class has no label, or every label"
ONE_CLASS = "all labels are of one class"


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Metrics of one class against all others."""

    rows: int
    auc: Estimate
    calibration_ratio: Estimate


@dataclass(frozen=True, slots=True)
class MulticlassMetrics:
    """Metrics of one multiclass task. `macro_auc` is the mean of the classes' AUC."""

    rows: int
    groups: int
    accuracy: Estimate
    log_loss: Estimate
    normalized_entropy: Estimate
    macro_auc: Estimate
    classes: dict[str, ClassMetrics]


def softmax(logits_NC: Floats) -> Floats:
    """probabilities_NC."""
    powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    probabilities_NC: Floats = powers_NC / powers_NC.sum(axis=1, keepdims=True)
    return probabilities_NC


def class_entropies(labels_N: Floats, probabilities_NC: Floats) -> Floats:
    """Cross entropy of each row, in nats. [N]"""
    own_N = np.take_along_axis(probabilities_NC, labels_N.astype(np.int64)[:, None], axis=1)[:, 0]
    return -np.log(np.clip(own_N, PROBABILITY_FLOOR, 1.0))


def is_right(labels_N: Floats, scores_NC: Floats) -> npt.NDArray[np.bool_]:
    """Mask of the rows whose likeliest class is the label's, the first of several equal ones."""
    is_right_N: npt.NDArray[np.bool_] = scores_NC.argmax(axis=1) == labels_N
    return is_right_N


def losses_of_shares(counts_UC: Floats) -> Floats:
    """Cross entropy of parts of the rows, from their counts of classes, where each row is answered by the classes'
    shares of all rows. In nats. [U]"""
    counts_C = counts_UC.sum(axis=0)
    shares_C = counts_C / max(float(counts_C.sum()), 1e-300)
    return -counts_UC @ np.log(np.where(counts_C > 0, shares_C, 1.0))


def entropy_of_shares(counts_RC: Floats) -> Floats:
    """Entropy of the classes' shares, in nats, from their counts. [R]"""
    shares_RC = counts_RC / np.maximum(counts_RC.sum(axis=1, keepdims=True), 1e-300)
    entropy_R: Floats = -(shares_RC * np.log(np.where(shares_RC > 0, shares_RC, 1.0))).sum(axis=1)
    return entropy_R


def normalized_class_entropy(
    labels_N: Floats, probabilities_NC: Floats, weights_N: Floats | None = None
) -> float | None:
    """Log loss over that of the classes' shares, None where all labels are of one class."""
    classes = probabilities_NC.shape[1]
    counts_C = np.bincount(labels_N.astype(np.int64), weights_N, minlength=classes).astype(np.float64)
    entropy = float(entropy_of_shares(counts_C[None])[0])
    loss = float(np.average(class_entropies(labels_N, probabilities_NC), weights=weights_N))
    return loss / entropy if entropy > 0 else None


def macro_auc(labels_N: Floats, probabilities_NC: Floats) -> float | None:
    """Mean over classes of the AUC of each against all others, None where one is undefined."""
    values = [auc(labels_N == one, probabilities_N) for one, probabilities_N in enumerate(probabilities_NC.T)]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if len(defined) == len(values) else None


def macro_auc_on_draws(labels_N: Floats, probabilities_NC: Floats, codes_N: Codes) -> Statistic:
    """`macro_auc` on draws of groups."""
    of_classes = [
        auc_on_draws((labels_N == one).astype(np.float64), probabilities_N, codes_N)
        for one, probabilities_N in enumerate(probabilities_NC.T)
    ]
    return lambda draws_RG: np.mean([of_class(draws_RG) for of_class in of_classes], axis=0)


def entropy_on_draws(labels_N: Floats, probabilities_NC: Floats, codes_N: Codes, num_groups: int) -> Statistic:
    """`normalized_class_entropy` on draws of groups."""
    rows_G = np.bincount(codes_N, minlength=num_groups).astype(np.float64)
    loss_G = np.bincount(codes_N, class_entropies(labels_N, probabilities_NC), num_groups)
    counts_GC = counts_by_group(labels_N, probabilities_NC.shape[1], codes_N, num_groups)
    return lambda draws_RG: divide(draws_RG @ loss_G, (draws_RG @ rows_G) * entropy_of_shares(draws_RG @ counts_GC))


def counts_by_group(labels_N: Floats, classes: int, codes_N: Codes, num_groups: int) -> Floats:
    """counts_GC of the labels."""
    return np.stack([np.bincount(codes_N, labels_N == one, num_groups) for one in range(classes)], axis=1)


def evaluate_multiclass(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike,
    names: Sequence[str],
    *,
    replicates: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> MulticlassMetrics:
    """All metrics of a multiclass task whose classes have these names, with intervals as in `evaluate_binary`. Raises
    ValueError where shapes differ or a label is no index of a class."""
    labels_N, probabilities_NC = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if probabilities_NC.shape != (len(labels_N), len(names)):
        raise ValueError(f"{len(labels_N)} labels of {len(names)} classes, probabilities {probabilities_NC.shape}")
    if not np.isin(labels_N, np.arange(len(names))).all() or not np.isfinite(probabilities_NC).all():
        raise ValueError(f"labels must be from 0 to {len(names) - 1}, and probabilities finite")
    codes_N, num_groups = group_codes(groups, len(labels_N))
    rows_G, loss_G, right_G = (
        np.bincount(codes_N, x, num_groups)
        for x in (
            np.ones(len(labels_N)),
            class_entropies(labels_N, probabilities_NC),
            is_right(labels_N, probabilities_NC),
        )
    )
    counts_GC = counts_by_group(labels_N, len(names), codes_N, num_groups)
    statistics: dict[str, Statistic] = {
        "accuracy": lambda draws_RG: divide(draws_RG @ right_G, draws_RG @ rows_G),
        "log_loss": lambda draws_RG: divide(draws_RG @ loss_G, draws_RG @ rows_G),
        "normalized_entropy": entropy_on_draws(labels_N, probabilities_NC, codes_N, num_groups),
        "macro_auc": macro_auc_on_draws(labels_N, probabilities_NC, codes_N),
    }
    undefined = {"normalized_entropy": ONE_CLASS, "macro_auc": A_CLASS_IS_ABSENT}
    for one, name in enumerate(names):
        statistics |= _of_class(name, labels_N == one, probabilities_NC[:, one], codes_N, num_groups)
        undefined |= {f"{name}.auc": "no label, or every label, is of the class"}
        undefined |= {f"{name}.calibration_ratio": "no label is of the class"}
    found = estimates(statistics, num_groups, undefined, replicates, seed, level)
    counts_C = counts_GC.sum(axis=0).astype(int)
    classes = {
        name: ClassMetrics(int(rows), found[f"{name}.auc"], found[f"{name}.calibration_ratio"])
        for name, rows in zip(names, counts_C, strict=True)
    }
    of_task = {name: found[name] for name in ("accuracy", "log_loss", "normalized_entropy", "macro_auc")}
    return MulticlassMetrics(len(labels_N), num_groups, classes=classes, **of_task)


def _of_class(
    name: str, is_own_N: npt.NDArray[np.bool_], probabilities_N: Floats, codes_N: Codes, num_groups: int
) -> dict[str, Statistic]:
    own_G = np.bincount(codes_N, is_own_N, num_groups)
    probability_G = np.bincount(codes_N, probabilities_N, num_groups)
    return {
        f"{name}.auc": auc_on_draws(is_own_N.astype(np.float64), probabilities_N, codes_N),
        f"{name}.calibration_ratio": lambda draws_RG: divide(draws_RG @ probability_G, draws_RG @ own_G),
    }
