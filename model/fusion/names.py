"""Names of the units and experts that a fusion network mixes, for people."""

from model.fusion import AdaTTConfig, AITMConfig, CrossStitchConfig, FusionConfig, MMoEConfig, PLEConfig
from model.fusion.frozen import FrozenNetwork
from model.fusion.levels import experts_by_task


def unit_and_expert_names(
    config: FusionConfig, tasks: list[str], num_units: int, num_experts: int, *, is_last: bool
) -> tuple[list[str], list[str]]:
    """Names of a level's fused units ("click", "shared") and experts ("click.1", "shared.2", counted from 1).

    The experts of an MMoE are all shared. Below the last level of an ML-MMoE a unit is named by the expert it feeds.
    A cross-stitch network and an AITM have one expert a task. In an AITM that of another task stands for what it
    transfers."""
    own: list[str] = []
    if isinstance(config, AdaTTConfig | PLEConfig):
        counts = experts_by_task(config.experts_per_task, len(tasks))
        own = [f"{task}.{i + 1}" for task, count in zip(tasks, counts, strict=True) for i in range(count)]
    elif isinstance(config, CrossStitchConfig | AITMConfig):
        own = [f"{task}.1" for task in tasks]
    experts = [*own, *(f"shared.{i + 1}" for i in range(num_experts - len(own)))]
    if isinstance(config, MMoEConfig) and not is_last:
        return experts, experts
    return [*tasks, "shared"][:num_units], experts


def mixed_names(config: FusionConfig, frozen: FrozenNetwork, tasks: list[str]) -> list[tuple[list[str], list[str]]]:
    """The same of every level that mixes its experts, in their order."""
    return [
        unit_and_expert_names(config, tasks, level.num_mixed, len(level.experts), is_last=level is frozen.levels[-1])
        for level in frozen.levels
        if level.num_mixed
    ]
