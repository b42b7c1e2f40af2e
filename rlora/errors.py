"""The errors of rlora: each is an `RloraError` and also the standard error it refines, so callers may catch either."""

from rlora.text import printable


class RloraError(Exception):
    """Base of every error that rlora raises on purpose; its message says what is wrong and what to do."""


class ConfigError(RloraError, ValueError):
    """A field of a configuration has a value that breaks a rule; nothing was loaded yet."""


class CompilerError(RloraError, RuntimeError):
    """Kernels cannot be compiled here, or a compiled one computes something else than it should."""


class DataError(RloraError, ValueError):
    """A data set cannot be found or read, or a row lacks what is needed."""


class MissingDependencyError(RloraError, ImportError):
    """An optional package is needed and not installed; the message says which and how to get it."""


class RewardError(RloraError, ValueError):
    """A judge gave something that is no reward: not a number, not finite, or not one verdict a completion."""


class RunDirError(RloraError, ValueError):
    """A run directory cannot be used: it belongs to another configuration, or is damaged."""


class CheckpointError(RloraError, ValueError):
    """A checkpoint is damaged, of a format that is not read, or of another model, or the one asked for is not there."""


class WriteError(RloraError, OSError):
    """The disk refused a write: it is full, or the permission is missing. What was whole before still is."""


class AdapterError(RloraError, ValueError):
    """An adapter's files do not fit the model or the policy, or are in a form that is not read."""


class ModelError(RloraError, ValueError):
    """A model folder's weights are missing, damaged, or another model's."""


class LayoutError(RloraError, ValueError):
    """The engine's weights do not lie as the trainer's model would read them; the trainer can load a copy instead."""


class ProofError(RloraError, RuntimeError):
    """What the sampler serves is not what it was given, or its tokens were not drawn from it; the message says what it
    looks like.
    """


class StaleAdapterError(ProofError):
    """The sampler does not serve the policy version that it was given: it serves another one, or the base."""


class StaleBatchError(RloraError, RuntimeError):
    """A batch was sampled from another version of the policy than the trainer holds."""


class NonFiniteError(RloraError, FloatingPointError):
    """A loss or a gradient is not finite; the policy keeps its last good version."""


class OutOfMemoryError(RloraError, MemoryError):
    """Training does not fit into memory, however small its micro-batches; the policy keeps its last good version."""


class SamplerError(RloraError, RuntimeError):
    """The sampling engine returned something that breaks the contract of `Sampler`, or was asked for it."""


class EngineError(RloraError, RuntimeError):
    """The sampling engine failed in the middle of its work; a new process can go on from the last checkpoint."""


class EngineStartError(EngineError):
    """The sampling engine did not start, and would not in a new process either; the message says what to change."""


def message_of(error: RloraError) -> str:
    """Return what a command prints of an error: its kind, its message and its notes.

    Example: `message_of(DataError("no rows"))` is `DataError: no rows`.
    """
    return printable("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))
