"""The page's fixed words in English and Chinese. The browser picks by its own language."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.evidence import DISCLAIMER

if TYPE_CHECKING:
    import gradio

# key: (English, Chinese). A section per room, so that two hands do not meet.
_SHELL = {
    "title": (
        f"# CrossRead\nDoes the report agree with the images? **{DISCLAIMER}**",
        "# CrossRead\n报告与影像一致吗？**研究软件，不是医疗器械；不得用于临床。**",
    ),
    "demo_note": (
        "The demo model knows generated chest phantoms only, and says so of anything else.",
        "演示模型只认识生成的胸部体模；遇到其他影像会明说。",
    ),
    "reading_room": ("Reading room", "阅片室"),
    "playground": ("Playground", "试验场"),
}
_READING_ROOM = {
    "study": ("Study (zip or DICOM files)", "检查（zip 或 DICOM 文件）"),
    "report": ("Report", "报告"),
    "paste_report": ("Paste the report here", "在此粘贴报告"),
    "dictate": ("…or dictate it", "……或口述"),
    "question": ("Question (optional)", "问题（可不填）"),
    "load_sample": ("Load the sample", "打开示例"),
    "read": ("Read", "阅读"),
    "reading": ("Reading", "阅片结果"),
    "download": ("Download", "下载"),
}
_PLAYGROUND = {
    "chat_empty": (
        "Ask about a picture, a recording, a video or the DICOM files of a series",
        "可询问图片、录音、视频或一个序列的 DICOM 文件",
    ),
    "chat_box": ("Your words, and files", "文字与文件"),
}
TABLE: dict[str, tuple[str, str]] = {**_SHELL, **_READING_ROOM, **_PLAYGROUND}


def languages() -> gradio.I18n:
    """The table as Gradio takes it."""
    import gradio as gr

    english = {key: pair[0] for key, pair in TABLE.items()}
    chinese = {key: pair[1] for key, pair in TABLE.items()}
    return gr.I18n(**{"en": english, "zh": chinese, "zh-CN": chinese})


def say(key: str) -> Any:
    """A text that the browser shows in its own language; for labels, placeholders and Markdown.

    Raises:
        KeyError: the table has no such key.
    """
    from gradio.i18n import I18nData

    TABLE[key]  # a typo fails here, not as a bare key on the page
    return I18nData(key)
