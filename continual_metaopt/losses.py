"""The loss that belongs to a stream's task."""

from torch import Tensor, nn

from streams.registry import unknown_name


class HalfSquaredError(nn.Module):
    """½ Σ (output − target)² over the outputs, averaged over the mini-batch: the loss of LMS, IDBD and Autostep.

    The gradient by an output is the plain error, so that a step size means what it means in those algorithms; that of
    ``MSELoss`` is twice as large with one output.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, of output and target [n, outputs].

        Raises:
            ValueError: their shapes differ.
        """
        if output.shape != target.shape:
            raise ValueError(f"the network's output has shape {tuple(output.shape)}, the target {tuple(target.shape)}")
        return (output - target).square().sum() * (0.5 / len(output))


def criterion_of(task: str) -> nn.Module:
    """The loss of a task.

    Args:
        task: "classification" or "regression", as a stream's ``info.for_learner`` says.

    Raises:
        ValueError: unknown task.
    """
    if task == "classification":
        return nn.CrossEntropyLoss()
    if task == "regression":
        return HalfSquaredError()
    raise ValueError(unknown_name("task", task, ["classification", "regression"]))
