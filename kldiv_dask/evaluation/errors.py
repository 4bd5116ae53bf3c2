"""What an evaluation ends in, or warns of."""


class EvaluationError(RuntimeError):
    """Some positions could not be evaluated. What was done before is in the checkpoint."""


class EvaluationWarning(UserWarning):
    """Some positions could not be evaluated and were left out."""
