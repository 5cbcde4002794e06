"""The page's fixed words in English and Chinese. The browser picks by its own language."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.evidence import DISCLAIMER
from pipelines.ui.problem_words import ERRORS, PROBLEMS

if TYPE_CHECKING:
    import gradio

# key: (English, Chinese). A section per room, so that two hands do not meet.
_SHELL = {
    "title": (
        f"# CrossRead\nDoes the report agree with the images? **{DISCLAIMER}**",
        "# CrossRead\n报告与影像一致吗？**研究软件，不是医疗器械；不得用于临床。**",
    ),
    "demo_note": (
        "The demo model knows generated chests, heads and abdomens only, and says so of anything else.",
        "演示模型只认识生成的胸部、头部和腹部影像；遇到其他影像会明说。",
    ),
    "reading_room": ("Reading room", "阅片室"),
    "playground": ("Playground", "试验场"),
}
_GUARD = {
    "not_yours": (
        "This file is not yours, or no longer here: files are deleted half an hour after they"
        " came, and when their page is closed. Send it again.",
        "此文件不属于您，或已删除：文件在上传半小时后或关闭页面时删除。请重新上传。",
    ),
    "no_addresses": (
        "Addresses are not fetched: send the file itself.",
        "不会抓取网址：请直接上传文件。",
    ),
    "too_many_files": (
        "You have sent as many files as this page takes; zip them, or close the page and start"
        " again.",
        "文件数已达本页上限；请打包为 zip，或关闭页面重新开始。",
    ),
    "too_much": (
        "This is more than the page takes at a time; send a part of it, or use the command line.",
        "超过本页一次可接收的大小；请只上传一部分，或使用命令行。",
    ),
    "queue_full": (
        "Many people are being answered just now. Please try again in a minute.",
        "当前使用者较多，请一分钟后再试。",
    ),
    "unexpected": (
        "Something went wrong on our side; nothing you sent is kept in the log. Try again, or try"
        " another file.",
        "我们这边出了问题；您上传的内容不会留在日志中。请重试，或换一个文件。",
    ),
    "login": ("This page is for invited people.", "本页仅限受邀者使用。"),
}
_READING_ROOM = {
    "study": ("Study: drop a folder, a zip or DICOM files", "检查：拖入文件夹、zip 或 DICOM 文件"),
    "open_folder": ("Open a folder", "打开文件夹"),
    "load_sample": ("Load the sample", "打开示例"),
    "series_list": ("Series of the study", "检查中的序列"),
    "opened_because": ("Opened first:", "首先打开的原因："),
    "unknown": ("unknown", "未知"),
    "risky": (
        "May show text about the patient; press to look at it anyway",
        "画面可能含有患者信息；点击仍要查看",
    ),
    "flaws": ("Flaws of this series", "此序列的缺陷"),
    "not_used": ("Not used, and why", "未使用的内容及原因"),
    "about_series": ("About this series", "序列信息"),
    "reveal_identifiers": ("Show who the patient is", "显示患者身份"),
    "hide_identifiers": ("Hide who the patient is", "隐藏患者身份"),
    "report": ("Report", "报告"),
    "paste_report": ("Type or paste the report here", "在此输入或粘贴报告"),
    "upload_words": ("Upload report or recording", "上传报告或录音"),
    "own_report": ("Use the study's own report", "使用检查自带的报告"),
    "dictate": ("Dictate", "口述"),
    "record": ("Start recording", "开始录音"),
    "stop_recording": ("Stop recording", "停止录音"),
    "loudness": ("Loudness", "音量"),
    "no_microphone": ("The browser gives no microphone.", "浏览器未提供麦克风。"),
    "dictated": ("Dictated so far", "已口述的内容"),
    "dictated_info": ("Correct it before the review", "审阅前可修改"),
    "review": ("Review", "审阅"),
    "stop": ("Stop", "停止"),
    "was_stopped": ("Stopped. What was found so far:", "已停止。目前的发现："),
    "stage_waiting": ("Waiting for its turn", "排队等候"),
    "stage_read": ("Reading the files", "读取文件"),
    "stage_look": ("Looking at the images", "查看影像"),
    "stage_findings": ("Asking for findings", "询问所见"),
    "stage_review": ("Judging the report's sentences", "核对报告语句"),
    "stage_pictures": ("Drawing key slices", "绘制关键层面"),
    "out_of_range": ("Out of range.", "超出适用范围。"),
    "verdict_agrees": ("The report agrees with the images.", "报告与影像一致。"),
    "verdict_differs": (
        "The report and the images differ in {count} points.",
        "报告与影像有 {count} 处不一致。",
    ),
    "verdict_differs_once": (
        "The report and the images differ in 1 point.",
        "报告与影像有 1 处不一致。",
    ),
    "verdict_outside": (
        "No verdict: the study is outside what this model was validated on.",
        "不作判断：此检查超出模型的验证范围。",
    ),
    "verdict_partly": (
        "No verdict: part of the report could not be judged.",
        "不作判断：报告有部分无法核对。",
    ),
    "verdict_no_report": (
        "There is no report to judge; only the images were read.",
        "没有报告可供核对；仅阅读了影像。",
    ),
    "error_omission": ("left out", "遗漏"),
    "error_insertion": ("not in the images", "影像中没有"),
    "error_direction": ("wrong side", "左右错误"),
    "error_size": ("wrong size", "大小错误"),
    "error_unit": ("wrong unit", "单位错误"),
    "error_typo": ("typing error", "笔误"),
    "report_says": ("report says", "报告原文"),
    "should_say": ("should say", "建议改为"),
    "says_nothing": ("(nothing)", "（未提及）"),
    "something_missing": ("something is left out", "有所遗漏"),
    "remove_it": ("(remove the sentence)", "（删除此句）"),
    "no_correction": ("(no correction offered)", "（无建议）"),
    "your_decision": ("Your decision", "您的决定"),
    "accepted": ("Accept", "接受"),
    "rejected": ("Reject", "驳回"),
    "findings": ("Findings in the images", "影像所见"),
    "none_seen": ("None of the findings this model knows was seen.", "未见模型所认识的任何异常。"),
    "finding": ("Finding", "所见"),
    "side": ("Side", "侧"),
    "size": ("Size", "大小"),
    "slice_column": ("Slice", "层"),
    "sure": ("Probability", "概率"),
    "right": ("right", "右"),
    "left": ("left", "左"),
    "warnings": ("Warnings", "警告"),
    "questions_asked": ("questions to the model: {count}", "向模型提问 {count} 次"),
    "ask_on": ("Ask on about this study", "就此检查继续提问"),
    "ask_example": ("Is there a pneumothorax?", "有气胸吗？"),
    "nothing_encoded": ("Nothing was encoded anew.", "无需重新编码影像。"),
    "encoded_anew": ("Encoded anew: {count}.", "重新编码：{count}。"),
    "take_away": ("Take it away: JSON, HTML, PDF, DICOM SR", "导出：JSON、HTML、PDF、DICOM SR"),
    "download": ("Download", "下载"),
}
# what models made by `multimodal.training` name; others' findings are shown as they say them
_FINDINGS = {
    "nodule": ("nodule", "结节"),
    "mass": ("mass", "肿块"),
    "consolidation": ("consolidation", "实变"),
    "ground-glass opacity": ("ground-glass opacity", "磨玻璃影"),
    "pleural effusion": ("pleural effusion", "胸腔积液"),
    "pneumothorax": ("pneumothorax", "气胸"),
    "rib lesion": ("rib lesion", "肋骨病灶"),
    "cardiomegaly": ("cardiomegaly", "心影增大"),
    "pericardial effusion": ("pericardial effusion", "心包积液"),
    "aortic calcification": ("aortic calcification", "主动脉钙化"),
    "vertebral lesion": ("vertebral lesion", "椎体病灶"),
    "intracerebral haemorrhage": ("intracerebral haemorrhage", "脑出血"),
    "subdural haematoma": ("subdural haematoma", "硬膜下血肿"),
    "infarct": ("infarct", "脑梗死"),
    "hydrocephalus": ("hydrocephalus", "脑积水"),
    "liver lesion": ("liver lesion", "肝脏病灶"),
    "renal cyst": ("renal cyst", "肾囊肿"),
    "kidney stone": ("kidney stone", "肾结石"),
    "ascites": ("ascites", "腹水"),
    "aortic aneurysm": ("aortic aneurysm", "腹主动脉瘤"),
}
# what is known of a series, and of whom it is; why one opens first: `encoders.dicom.choice.WISHES`
_SERIES = {
    "volume_of_image": (
        "slices of one orientation, matrix and spacing",
        "各层方向、矩阵与间距一致",
    ),
    "volume_of_reformat": (
        "slices of one orientation, matrix and spacing, reformatted from others",
        "各层方向、矩阵与间距一致，由其他影像重组",
    ),
    "modality": ("modality", "模态"),
    "body_part": ("body part", "部位"),
    "sex": ("sex", "性别"),
    "age_bucket": ("age", "年龄段"),
    "slice_thickness_mm": ("slice thickness, mm", "层厚（毫米）"),
    "kernel": ("kernel", "重建核"),
    "contrast": ("contrast agent", "对比剂"),
    "kvp": ("kVp", "管电压（kVp）"),
    "patient_position": ("patient position", "体位"),
    "num_slices": ("slices", "层数"),
    "rows": ("rows", "行数"),
    "columns": ("columns", "列数"),
    "spacing_mm": ("pixel spacing, mm", "像素间距（毫米）"),
    "plane": ("plane", "平面"),
    "true": ("yes", "有"),
    "false": ("no", "无"),
    "PatientName": ("patient's name", "患者姓名"),
    "PatientID": ("patient's number", "患者编号"),
    "PatientBirthDate": ("date of birth", "出生日期"),
    "PatientSex": ("sex", "性别"),
    "StudyDate": ("date of the study", "检查日期"),
    "AccessionNumber": ("accession number", "检查号"),
    "StudyDescription": ("study description", "检查描述"),
    "SeriesDescription": ("series description", "序列描述"),
    "InstitutionName": ("institution", "机构名称"),
    "ReferringPhysicianName": ("referring physician", "申请医师"),
    "a picture of the patient, no screen or localizer": (
        "a picture of the patient, no screen or localizer",
        "是患者影像，不是截屏或定位像",
    ),
    "a CT volume": ("a CT volume", "是 CT 容积"),
    "a volume": ("a volume", "是容积"),
    "no short test series": ("no short test series", "不是短的测试序列"),
    "original, no reformat": ("original, no reformat", "是原始影像，不是重组"),
    "softest kernel": ("softest kernel", "重建核最软"),
    "1 to 5 mm": ("1 to 5 mm", "层厚 1 至 5 毫米"),
    "most slices": ("most slices", "层数最多"),
    "the_first": ("the first", "是第一个"),
    "comma": (", ", "，"),
}
# the commonest of DICOM PS3.16 CID 4, by Body Part Examined; others are shown as they are written
_BODY_PARTS = {
    "body_abdomen": ("abdomen", "腹部"),
    "body_abdomenpelvis": ("abdomen and pelvis", "腹盆部"),
    "body_brain": ("brain", "脑"),
    "body_breast": ("breast", "乳腺"),
    "body_chest": ("chest", "胸部"),
    "body_chestabdomen": ("chest and abdomen", "胸腹部"),
    "body_chestabdpelvis": ("chest, abdomen and pelvis", "胸腹盆部"),
    "body_cspine": ("cervical spine", "颈椎"),
    "body_head": ("head", "头部"),
    "body_headneck": ("head and neck", "头颈部"),
    "body_heart": ("heart", "心脏"),
    "body_hip": ("hip", "髋部"),
    "body_kidney": ("kidney", "肾"),
    "body_knee": ("knee", "膝部"),
    "body_liver": ("liver", "肝"),
    "body_lspine": ("lumbar spine", "腰椎"),
    "body_lung": ("lung", "肺"),
    "body_neck": ("neck", "颈部"),
    "body_pelvis": ("pelvis", "盆部"),
    "body_shoulder": ("shoulder", "肩部"),
    "body_skull": ("skull", "颅骨"),
    "body_spine": ("spine", "脊柱"),
    "body_tspine": ("thoracic spine", "胸椎"),
    "body_wholebody": ("whole body", "全身"),
}
# why pictures are no volume, as `encoders.dicom.series` says it; {n} is its number
_NO_VOLUME = {
    reason: (reason, chinese)
    for reason, chinese in (
        ("localizer images", "定位像"),
        ("captured screens, no cross-sections", "截屏，不是断层影像"),
        ("dose or patient information pages", "剂量或患者信息页"),
        ("bolus tracking: one place over time", "对比剂追踪：同一位置的时间序列"),
        ("mosaics: each image shows many slices side by side", "拼图：每幅影像并列多个层面"),
        ("colour pictures, no measured values", "彩色图像，没有测量值"),
        ("no position and orientation", "没有位置和方向"),
        ("a single image", "单幅影像"),
        ("{n} images at one place", "{n} 幅影像位于同一位置"),
        ("{n} images at one place, as in bolus tracking", "{n} 幅影像位于同一位置，如对比剂追踪"),
        ("slices shift sideways by up to {n} mm", "层面侧移最多 {n} 毫米"),
    )
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
    "opening": ("Reading the study…", "正在读取检查……"),
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
    "list_comma": (", ", "、"),
    "sense_audio": ("audio", "音频"),
    "sense_dicom": ("DICOM", "DICOM"),
    "sense_image": ("image", "图像"),
    "sense_text": ("text", "文本"),
    "sense_video": ("video", "视频"),
    "context": ("{tokens} tokens", "上下文 {tokens} 词元"),
    "temperature": ("Temperature", "温度"),
    "temperature_info": ("0 answers the same each time", "0 表示每次回答相同"),
    "max_tokens": ("Longest answer, tokens", "回答长度上限（词元）"),
    "sparsity": ("Sparsity", "稀疏度"),
    "sparsity_info": (
        "share of MLP neurons that each token leaves out",
        "每个词元略过的 MLP 神经元比例",
    ),
    "sparsity_saves": (
        "MLP work its gates spare a token, as the model counts",
        "门控为每个词元省下的 MLP 运算（模型自计）",
    ),
    "example_show": ("A CT study: what does it show?", "一份 CT：显示了什么？"),
    "example_list": ("A CT study: list the findings", "一份 CT：列出所见"),
    "example_nodule": ("A CT study: is there a nodule?", "一份 CT：有结节吗？"),
    "example_hear": ("A dictation: what was said?", "一段口述：说了什么？"),
    "cost": (
        "{rate:.0f} tokens/s · first token after {first:.2f} s",
        "{rate:.0f} 词元/秒 · 首词元 {first:.2f} 秒",
    ),
    "cost_counts": (
        "{prompt} tokens asked, {new} answered; {media} media encoded anew",
        "提问 {prompt} 词元，回答 {new} 词元；新编码媒体 {media} 个",
    ),
    "stage_encode": ("read and encode", "读取与编码"),
    "stage_prefill": ("take in the question", "读入问题"),
    "stage_decode": ("write the answer", "写出回答"),
}
TABLE: dict[str, tuple[str, str]] = {
    **_SHELL, **_GUARD, **_READING_ROOM, **_FINDINGS, **_SERIES, **_BODY_PARTS, **_NO_VOLUME, **_VIEWER, **_PLAYGROUND, **PROBLEMS,
    **{kind: ("", chinese) for kind, chinese in ERRORS.items()},
}  # fmt: skip


def languages() -> gradio.I18n:
    """The table as Gradio takes it."""
    import gradio as gr

    english = {key: pair[0] for key, pair in TABLE.items()}
    chinese = {key: pair[1] for key, pair in TABLE.items()}
    return gr.I18n(**{"en": english, "zh": chinese, "zh-CN": chinese})


def told(request: gradio.Request | None) -> dict[str, str]:
    """The table in the language of a browser's request, for words that are made on the server."""
    headers = getattr(request, "headers", None) or {}
    return told_in(str(headers.get("accept-language") or ""))


def told_in(accepted: str) -> dict[str, str]:
    """The table in the first language of an `Accept-Language` header; English for all but Chinese."""
    first = accepted.partition(",")[0]
    column = 1 if first.lower().startswith("zh") else 0
    return {key: pair[column] for key, pair in TABLE.items()}


def say(key: str) -> Any:
    """A text that the browser shows in its own language; for labels, placeholders and Markdown.

    Raises:
        KeyError: the table has no such key.
    """
    from gradio.i18n import I18nData

    TABLE[key]  # a typo fails here, not as a bare key on the page
    return I18nData(key)
