"""The loss that belongs to a stream's task."""

from torch import Tensor, nn

from continual_metaopt.streams.registry import unknown_name


class HalfSquaredError(nn.Module):
    """½ Σ (output − target)² over the outputs, averaged over the mini-batch: the loss of LMS, IDBD and Autostep.

    The gradient by an output is the plain error, so that a step size means what it means in those algorithms; that of
    ``MSELoss`` is twice as large with one output.

    Args:
        reduction: "mean" over the mini-batch, or "none" for the losses of its samples.

    Example:
        >>> import torch
        >>> HalfSquaredError()(torch.tensor([[3.0]]), torch.tensor([[1.0]])).item()
        2.0
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, of output and target [n, outputs]; or the losses [n].

        Raises:
            ValueError: their shapes differ.
        """
        if output.shape != target.shape:
            raise ValueError(f"the network's output has shape {tuple(output.shape)}, the target {tuple(target.shape)}")
        if self.reduction == "none":
            return (output - target).square().sum(dim=1) * 0.5
        return (output - target).square().sum() * (0.5 / len(output))


def criterion_of(task: str) -> nn.Module:
    """Make the loss of a task, which is "classification" or "regression", as a stream's ``info.for_learner`` says.

    Raises:
        ValueError: unknown task.

    Example:
        >>> criterion_of("classification")
        CrossEntropyLoss()
    """
    if task == "classification":
        return nn.CrossEntropyLoss()
    if task == "regression":
        return HalfSquaredError()
    raise ValueError(unknown_name("task", task, ["classification", "regression"]))
