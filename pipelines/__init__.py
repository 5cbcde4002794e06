"""CrossRead's public API: `pipeline(task, model=…)`. Nothing heavy is loaded until it is called.

>>> from pipelines import pipeline
>>> read = pipeline("ct-report")                                # doctest: +SKIP
>>> reading = read("study_folder", report="No pneumothorax.")   # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    from multimodal.backends import Backend
    from pipelines.chat import ChatPipeline
    from pipelines.ct_report import CtReportPipeline
    from pipelines.dictation import DictationPipeline

Task = Literal["ct-report", "chat", "dictation"]
__all__ = ["Task", "pipeline"]


@overload
def pipeline(
    task: Literal["ct-report"],
    model: str | Path | Backend | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    sparsity: float | None = None,
) -> CtReportPipeline: ...
@overload
def pipeline(
    task: Literal["chat"],
    model: str | Path | Backend | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    sparsity: float | None = None,
) -> ChatPipeline: ...
@overload
def pipeline(
    task: Literal["dictation"], model: str | Path | Backend | None = None, *,
    device: str = "auto", dtype: str = "auto", sparsity: float | None = None,
) -> DictationPipeline: ...  # fmt: skip


def pipeline(
    task: Task,
    model: str | Path | Backend | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    sparsity: float | None = None,
) -> CtReportPipeline | ChatPipeline | DictationPipeline:
    """A callable for a task.

    Args:
        task: "ct-report" (does a report agree with a CT?), "chat" or "dictation".
        model: folder or Hub id of a composite or of a checkpoint of transformers, `http(s)://…/v1`
            of a server, or a backend; None for the shipped demo checkpoint.
        device: "cpu", "cuda" or "auto".
        dtype: name of a torch dtype; "auto" keeps the checkpoint's (float32 on a CPU).
        sparsity: share of MLP neurons left out per token, 0.0 to 0.9; None as saved.

    Raises:
        InvalidMessage: an unknown task; device, dtype or sparsity for a backend that is loaded.
        ModelError: the model cannot be found or used.
    """
    from encoders.errors import InvalidMessage

    if task not in ("ct-report", "chat", "dictation"):
        raise InvalidMessage(f"unknown task {task!r}; there are 'ct-report', 'chat', 'dictation'")
    if model is None or isinstance(model, str | Path):
        from multimodal.backends import load_backend

        model = load_backend(model, device=device, dtype=dtype, sparsity=sparsity)
    elif (device, dtype, sparsity) != ("auto", "auto", None):
        raise InvalidMessage(
            "a backend is loaded already: set device, dtype and sparsity when loading it"
        )
    if task == "chat":
        from pipelines.chat import ChatPipeline

        return ChatPipeline(model)
    if task == "dictation":
        from pipelines.dictation import DictationPipeline

        return DictationPipeline(model)
    from pipelines.ct_report import CtReportPipeline

    return CtReportPipeline(model)
