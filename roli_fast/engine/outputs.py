"""What a model returns, and the tensor of it that an attack is about."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Output = None | int | str | Callable[[Any], Tensor]


def check_output(output: Output) -> None:
    if not (output is None or callable(output) or isinstance(output, (int, str))) or isinstance(output, bool):
        raise TypeError(
            f"output: got a {type(output).__name__}, accepted: None, an index, a key, an attribute's name, "
            "or a callable"
        )


def select(returned: Any, output: Output) -> Tensor:
    """The logits or features in what a model returned.

    output: None where the model returns them; an index into a tuple, a key of a dict or the name of an
        attribute, such as "logits"; or a callable that takes what the model returned.

    Raises ValueError where that is not there, or no tensor.
    """
    if output is None:
        found = returned
    elif callable(output):
        found = output(returned)
    else:
        found = _item(returned, output)
    if not isinstance(found, Tensor):
        hint = f", such as output={_suggestion(returned)!r}" if output is None else ""
        got = f"a {type(found).__name__}"
        if found is None and isinstance(returned, Mapping):
            got = f"a {type(returned).__name__} of {', '.join(map(repr, returned))}"
        raise ValueError(
            f"model: got {got} for output={output!r}, "
            "accepted: a tensor, or a module around the model that returns one; "
            f"where an attack has output=, that says where it is{hint}"
        )
    return found


def _item(returned: Any, output: int | str) -> Any:
    if isinstance(output, str) and not isinstance(returned, Mapping):
        return getattr(returned, output, None)
    try:
        return returned[output]
    except (LookupError, TypeError):
        return None


def _suggestion(returned: Any) -> str | int:
    """Where the logits of such a model usually are."""
    if isinstance(returned, (tuple, list)) and not hasattr(returned, "_fields"):
        return 0
    keys = list(returned) if isinstance(returned, Mapping) else [k for k in dir(returned) if k[:1] != "_"]
    return next((k for k in ("logits", "out") if k in keys), next(iter(keys), "logits"))
