"""The errors and warnings of evaluations."""


class EvaluationError(RuntimeError):
    """Some positions could not be evaluated. What was done before is in the checkpoint."""


class ClusterError(ConnectionError):
    """The cluster was lost, so that nothing more can be computed."""


class EvaluationWarning(UserWarning):
    """Some positions were left out, or the data are probably not of the kind that was named."""


class CheckpointError(ValueError):
    """A checkpoint of another run.

    Parameters
    ----------
    reason : str
        What differs.
    moved : bool
        Whether only the data differ, so that they may have been moved, copied or touched.
    """

    def __init__(self, reason: str, moved: bool) -> None:
        self.reason, self.moved = reason, moved
        ways = "resume=False starts over in its place"
        if moved:
            ways = (
                "if the data were only moved, copied or touched, resume='adopt' compares some of "
                f"them and goes on; {ways}"
            )
        super().__init__(f"{reason}; {ways}")
