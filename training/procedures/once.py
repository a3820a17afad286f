"""The plain procedure trains once, and then recalibrates, removes and fine-tunes where that is asked for."""

from settings.arguments import Settings
from training.stages import Stage


def once(settings: Settings) -> list[Stage]:
    """Train while pruning; then recalibrate, take the pruned filters out and fine-tune, where that is asked for."""
    training, ending = settings.training, settings.ending
    enter = [f"recalibrate(batches={ending.recalibrate})"] if ending.recalibrate else []
    enter += ["remove"] if ending.compact else []
    stages = [Stage("training", training.epochs, training.lr, warmup_epochs=training.warmup_epochs)]
    if enter:
        fixed = ("epochs", "recalibrate", "finetune_lr")
        stages.append(
            Stage("fine-tuning", ending.finetune_epochs, ending.finetune_lr, enter=tuple(enter), fixed=fixed, keep="masked.pt")
        )
    return stages
