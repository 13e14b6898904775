"""Actions of users under the canary and under stable, brought to the judge.

In: labels, the time since which the canary is one, the joined rows. Out: the judge's verdict at this moment.
"""

from datetime import datetime

from model.rollout.labels import Labels
from model.value_models.value_model import ValueModels
from training.daily.cycle_file import Cycle
from training.daily.serving import open_version
from training.judge.observations import Question, Span, observe
from training.judge.realised import realised_weights
from training.judge.verdict import Verdict, judge
from training.tasks import learned


def verdict_of(
    cycle: Cycle, labels: Labels, since: datetime, share: float | None, left_out: tuple[Span, ...]
) -> Verdict:
    """The verdict on the canary. `share` is what it had all the time, None where that was changed. `left_out` are times
    of which nothing is believed. Raises ValueError where the canary does not verify, or nothing says what labels are
    worth."""
    rules, canary = cycle.file.judge, labels.canary
    assert rules is not None
    assert canary is not None
    scorer = open_version(cycle.folder, canary.version).scorer
    value_models = ValueModels.of_folder(cycle.folder, scorer.domain)
    question = Question(
        canary=str(canary.version),
        stable=str(labels.stable),
        since=since,
        share=share,
        horizon=rules.horizon,
        realised=realised_weights(rules, value_models),
        left_out=left_out,
    )
    observed = observe(cycle.training.data.path, scorer.schema, question)
    kinds = {task.name: learned(task, scorer.encoder.fitted.targets) for task in scorer.schema.tasks}
    return judge(observed, rules, kinds)
