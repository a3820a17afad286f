"""This file writes the scalars of a run as TensorBoard events."""

from runs.folder import Folder


class Scalars:
    """TensorBoard events of a run's rows. A run that goes on writes all of them again, which replaces the earlier ones."""

    def __init__(self, folder: Folder):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.path), purge_step=0)
        for row in folder.rows:
            self.log(row)

    def log(self, row: dict) -> None:
        """Write the scalars of an epoch's row."""
        flat = {f"{part}/{name}": value for part in ("train", "valid") for name, value in row[part].items()}
        flat |= {name: row[name] for name in ("learning_rate", "mask_changes", "cut", "images_per_second") if name in row}
        if "num_zero" in row:
            flat["sparsity"] = row["num_zero"] / row["num_total"]
        for name, value in flat.items():
            if isinstance(value, dict | list):  # of each class, where the test images validate
                continue
            self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()
