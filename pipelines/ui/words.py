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
_VIEWER = {
    "viewer": ("Slice viewer", "断层影像浏览器"),
    "tools": ("Viewer tools", "浏览工具"),
    "layout": ("Planes", "平面"),
    "all_planes": ("all three", "三个平面"),
    "axial": ("axial", "横断面"),
    "coronal": ("coronal", "冠状面"),
    "sagittal": ("sagittal", "矢状面"),
    "stored": ("as stored", "原始平面"),
    "preset": ("Window", "窗"),
    "lung": ("lung", "肺窗"),
    "mediastinum": ("mediastinum", "纵隔窗"),
    "abdomen": ("soft tissue", "软组织窗"),
    "liver": ("liver", "肝窗"),
    "bone": ("bone", "骨窗"),
    "brain": ("brain", "脑窗"),
    "of_file": ("of the file", "文件自带"),
    "own_window": ("set by hand", "手动"),
    "drag_does": ("What dragging does", "拖动的作用"),
    "tool_window": ("Contrast", "调窗"),
    "tool_scroll": ("Scroll", "翻页"),
    "tool_pan": ("Move", "移动"),
    "tool_zoom": ("Zoom", "缩放"),
    "tool_measure": ("Measure", "测量"),
    "invert": ("Invert", "反相"),
    "cine": ("Play", "播放"),
    "stop_cine": ("Pause", "暂停"),
    "reset": ("Reset", "复位"),
    "slice": ("slice", "层"),
    "loading": ("loading…", "载入中……"),
    "nothing_open": ("No study is open.", "尚未打开检查。"),
    "lost": (
        "The server no longer holds this study; open it again.",
        "服务器已不再保存此检查；请重新打开。",
    ),
    "keys": (
        "Arrow and page keys scroll, 1 to 9 choose a window, plus and minus zoom, i inverts,"
        " r resets, space plays; Shift with arrows moves a cross, m measures, x crosses the planes",
        "方向键和翻页键翻页，1 至 9 选窗，加减键缩放，i 反相，r 复位，空格播放；"
        "Shift 加方向键移动十字，m 测量，x 使各平面相交",
    ),
}
_PLAYGROUND = {
    "chat_empty": (
        "Ask about a picture, a recording, a video or the DICOM files of a series",
        "可询问图片、录音、视频或一个序列的 DICOM 文件",
    ),
    "chat_box": ("Your words, and files", "文字与文件"),
}
TABLE: dict[str, tuple[str, str]] = {**_SHELL, **_READING_ROOM, **_VIEWER, **_PLAYGROUND}


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
