"""The words of generated reports as data: templates of every finding in English and Chinese.

`{side}`, `{Side}`, `{size}` and `{place}` are filled in. Knows no study.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Wording:
    """Templates of one finding.

    Attributes:
        present: that it is there; the first is the plain one that corrections use.
        absent: that it is not there, on the side named if it has sides.
        nowhere: that it is on neither side.
        more: further ways to say that it is there, hedged ones and those with a place among them.
        unsure: further ways to deny it.
    """

    present: tuple[str, ...]
    absent: tuple[str, ...]
    nowhere: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()


ENGLISH: dict[str, Wording] = {
    "nodule": Wording(
        (
            "There is a {size} nodule in the {side} lung.",
            "A {size} {side} lung nodule is seen.",
            "{Side} lung nodule measuring {size}.",
            "Solid nodule of {size} in the {side} lung.",
            "A nodule in the {side} lung measures {size}.",
        ),
        ("No nodule is seen in the {side} lung.", "There is no {side} lung nodule."),
        ("No nodule is seen.", "There is no lung nodule.", "No pulmonary nodule."),
        (
            "{size} nodule in the {side} {place}.",
            "In the {side} {place} a nodule of {size} is noted.",
            "Round nodule, {size}, {side} {place}; follow-up is advised.",
            "A nodule of about {size} is suspected in the {side} lung.",
        ),
        ("No suspicious nodule in the {side} lung.",),
    ),
    "mass": Wording(
        (
            "There is a {size} mass in the {side} lung.",
            "{Side} lung mass measuring {size}.",
            "A {size} {side} lung mass is seen.",
        ),
        ("No mass is seen in the {side} lung.", "There is no {side} lung mass."),
        ("No lung mass is seen.", "There is no pulmonary mass."),
        (
            "Spiculated mass of {size} in the {side} {place}.",
            "A mass of {size} in the {side} {place}, suspicious of malignancy.",
        ),
    ),
    "consolidation": Wording(
        (
            "There is consolidation in the {side} lung.",
            "{Side} lung consolidation is present.",
            "Airspace opacity in the {side} lung, consistent with consolidation.",
            "{Side} consolidation.",
        ),
        ("No consolidation in the {side} lung.", "The {side} lung is free of consolidation."),
        ("No consolidation.", "The lungs are free of consolidation."),
        (
            "Consolidation with air bronchograms in the {side} {place}.",
            "{Side} {place} consolidation, probably pneumonia.",
        ),
        ("No convincing consolidation in the {side} lung.",),
    ),
    "ground-glass opacity": Wording(
        (
            "There is ground-glass opacity in the {side} lung.",
            "{Side} lung ground-glass opacity is seen.",
            "Ground-glass change in the {side} lung.",
        ),
        ("No ground-glass opacity in the {side} lung.",),
        ("No ground-glass opacity.", "There is no ground-glass change."),
        ("Ground-glass opacity in the {side} {place}.", "Hazy ground-glass opacity, {side} {place}."),
    ),
    "pleural effusion": Wording(
        (
            "There is a {side} pleural effusion.",
            "{Side} pleural effusion is noted.",
            "Pleural fluid is seen on the {side}.",
            "{Side}-sided pleural effusion.",
        ),
        ("No {side} pleural effusion.", "There is no pleural fluid on the {side}."),
        ("No pleural effusion.", "There is no pleural effusion."),
        ("Layering pleural fluid on the {side}.", "Probable {side} pleural effusion."),
        ("No appreciable {side} pleural effusion.",),
    ),
    "pneumothorax": Wording(
        (
            "There is a {side} pneumothorax.",
            "{Side} pneumothorax is present.",
            "Free pleural air on the {side}, in keeping with pneumothorax.",
            "{Side}-sided pneumothorax.",
        ),
        ("No {side} pneumothorax.", "There is no pneumothorax on the {side}."),
        ("No pneumothorax.", "There is no pneumothorax."),
        ("Pneumothorax on the {side} with partial collapse of the lung.",),
    ),
    "rib lesion": Wording(
        ("There is a {size} lesion of a {side} rib.", "{Side} rib lesion measuring {size}."),
        ("No {side} rib lesion.", "The {side} ribs are intact."),
        ("No rib lesion.", "The ribs are intact."),
        ("Lesion of {size} in the {place} arc of a {side} rib.",),
    ),
    "cardiomegaly": Wording(
        ("The heart is enlarged.", "There is cardiomegaly.", "Cardiomegaly is noted.", "Enlarged heart."),
        ("The heart is normal in size.", "No cardiomegaly.", "The heart is not enlarged."),
        (),
        ("The cardiac silhouette is enlarged.", "Cardiac enlargement, probably chronic."),
        ("Heart size is within normal limits.",),
    ),
    "pericardial effusion": Wording(
        ("There is a pericardial effusion.", "Pericardial fluid is seen.", "Pericardial effusion."),
        ("No pericardial effusion.", "There is no pericardial fluid."),
        (),
        ("Fluid around the heart, in keeping with pericardial effusion.",),
    ),
    "aortic calcification": Wording(
        (
            "There is aortic calcification.",
            "Calcified plaques are seen in the aorta.",
            "The aorta is calcified.",
            "Calcification of the aorta.",
        ),
        ("No aortic calcification.", "The aorta is not calcified."),
        (),
        ("Atherosclerotic calcification of the aortic wall.",),
    ),
    "vertebral lesion": Wording(
        ("There is a {size} vertebral lesion.", "Vertebral lesion measuring {size}."),
        ("No vertebral lesion.", "The vertebrae are intact."),
        (),
        ("Lesion of {size} in the vertebral body {place}.", "A {size} bone lesion at {place}, possibly metastatic."),
    ),
    "intracerebral haemorrhage": Wording(
        (
            "There is a {size} intracerebral haemorrhage on the {side}.",
            "{Side} intracerebral haemorrhage measuring {size}.",
        ),
        ("No {side} intracerebral haemorrhage.",),
        ("No intracerebral haemorrhage.", "There is no parenchymal haemorrhage."),
        ("Acute haemorrhage of {size} in the {side} {place}.", "Parenchymal bleeding of {size}, {side} {place}."),
    ),
    "subdural haematoma": Wording(
        ("There is a {side} subdural haematoma.", "{Side} subdural haematoma is seen.", "{Side}-sided subdural haematoma."),
        ("No {side} subdural haematoma.",),
        ("No subdural haematoma.", "There is no subdural collection."),
        ("Crescent of subdural blood over the {side} hemisphere.",),
    ),
    "infarct": Wording(
        ("There is an infarct in the {side} hemisphere.", "{Side} hemispheric infarct.", "{Side}-sided infarct is seen."),
        ("No {side} infarct.",),
        ("No infarct.", "There is no demarcated infarct."),
        ("Hypodense area in the {side} hemisphere, in keeping with infarct.",),
    ),
    "hydrocephalus": Wording(
        ("There is hydrocephalus.", "Hydrocephalus is present.", "Hydrocephalus."),
        ("No hydrocephalus.", "The ventricles are normal in size."),
        (),
        ("Dilated ventricles, in keeping with hydrocephalus.",),
    ),
    "liver lesion": Wording(
        ("There is a {size} liver lesion.", "Liver lesion measuring {size}.", "A {size} lesion is seen in the liver."),
        ("No liver lesion.", "There is no focal lesion of the liver."),
        (),
        ("Hypodense liver lesion of {size}, to be characterised further.",),
    ),
    "renal cyst": Wording(
        ("There is a {size} {side} renal cyst.", "{Side} renal cyst measuring {size}."),
        ("No {side} renal cyst.",),
        ("No renal cyst.", "There is no renal cyst."),
        ("Simple cyst of {size} at the {place} of the {side} kidney.",),
    ),
    "kidney stone": Wording(
        ("There is a {size} {side} kidney stone.", "{Side} kidney stone measuring {size}."),
        ("No {side} kidney stone.",),
        ("No kidney stone.", "There are no stones in the kidneys."),
        ("Calculus of {size} in the {place} of the {side} kidney.",),
    ),
    "ascites": Wording(
        ("There is ascites.", "Ascites is present.", "Ascites."),
        ("No ascites.", "There is no free fluid."),
        (),
        ("Free intraperitoneal fluid, in keeping with ascites.",),
    ),
    "aortic aneurysm": Wording(
        ("There is a {size} aortic aneurysm.", "Aortic aneurysm measuring {size}."),
        ("No aortic aneurysm.", "The aorta is not dilated."),
        (),
        ("{Place} aortic aneurysm of {size} with mural thrombus.",),
    ),
}  # fmt: skip

CHINESE: dict[str, Wording] = {
    "nodule": Wording(
        ("{side}肺见{size}结节。", "{side}肺结节，大小约{size}。", "{side}肺可见一结节，直径{size}。"),
        ("{side}肺未见结节。", "{side}肺无结节。"), ("双肺未见结节。", "肺内未见结节影。"),
        ("{side}肺{place}结节，约{size}，建议随访。", "{side}肺{place}可疑结节，大小{size}。"),
    ),
    "mass": Wording(
        ("{side}肺见{size}肿块。", "{side}肺肿块，大小约{size}。"),
        ("{side}肺未见肿块。",), ("双肺未见肿块。",),
        ("{side}肺{place}分叶状肿块，约{size}，考虑恶性。",),
    ),
    "consolidation": Wording(
        ("{side}肺见实变。", "{side}肺实变影。", "{side}肺可见实变。"),
        ("{side}肺未见实变。",), ("双肺未见实变。", "肺内无实变。"),
        ("{side}肺{place}实变，内见支气管充气征。", "{side}肺{place}实变，考虑肺炎。"),
    ),
    "ground-glass opacity": Wording(
        ("{side}肺见磨玻璃影。", "{side}肺磨玻璃密度影。"),
        ("{side}肺未见磨玻璃影。",), ("双肺未见磨玻璃影。",), ("{side}肺{place}磨玻璃影。",),
    ),
    "pleural effusion": Wording(
        ("{side}侧胸腔积液。", "{side}侧可见胸腔积液。", "{side}侧胸腔内见液体。"),
        ("{side}侧未见胸腔积液。",), ("双侧未见胸腔积液。", "胸腔内无积液。"),
        ("{side}侧可能有胸腔积液。",),
    ),
    "pneumothorax": Wording(
        ("{side}侧气胸。", "{side}侧可见气胸。"),
        ("{side}侧未见气胸。",), ("双侧未见气胸。", "无气胸。"), ("{side}侧气胸，肺组织部分压缩。",),
    ),
    "rib lesion": Wording(
        ("{side}侧肋骨见{size}病灶。", "{side}侧肋骨病灶，大小约{size}。"),
        ("{side}侧肋骨未见病灶。",), ("肋骨未见病灶。",), ("{side}侧肋骨{place}病灶，约{size}。",),
    ),
    "cardiomegaly": Wording(
        ("心影增大。", "心脏增大。", "可见心影增大。"), ("心影不大。", "心脏大小正常。"), (),
        ("心影增大，考虑慢性改变。",),
    ),
    "pericardial effusion": Wording(
        ("心包积液。", "心包内见积液。"), ("未见心包积液。", "心包无积液。"), (), ("考虑心包积液。",),
    ),
    "aortic calcification": Wording(
        ("主动脉钙化。", "主动脉壁见钙化。"), ("主动脉未见钙化。",), (), ("主动脉粥样硬化，管壁钙化。",),
    ),
    "vertebral lesion": Wording(
        ("椎体见{size}病灶。", "椎体病灶，大小约{size}。"), ("椎体未见病灶。",), (),
        ("{place}椎体病灶，约{size}，转移待排。",),
    ),
    "intracerebral haemorrhage": Wording(
        ("{side}侧脑出血，大小约{size}。", "{side}侧大脑见{size}出血灶。"),
        ("{side}侧未见脑出血。",), ("颅内未见脑出血。",), ("{side}侧{place}急性出血，约{size}。",),
    ),
    "subdural haematoma": Wording(
        ("{side}侧硬膜下血肿。", "{side}侧可见硬膜下血肿。"),
        ("{side}侧未见硬膜下血肿。",), ("未见硬膜下血肿。",), ("{side}侧颅板下新月形血肿，考虑硬膜下血肿。",),
    ),
    "infarct": Wording(
        ("{side}侧脑梗死。", "{side}侧大脑见梗死灶。"),
        ("{side}侧未见脑梗死。",), ("未见脑梗死。",), ("{side}侧大脑低密度影，考虑脑梗死。",),
    ),
    "hydrocephalus": Wording(
        ("脑积水。", "可见脑积水。"), ("未见脑积水。", "脑室大小正常。"), (), ("脑室扩大，考虑脑积水。",),
    ),
    "liver lesion": Wording(
        ("肝脏见{size}病灶。", "肝脏病灶，大小约{size}。"), ("肝脏未见病灶。",), (),
        ("肝内低密度病灶，约{size}，建议进一步检查。",),
    ),
    "renal cyst": Wording(
        ("{side}肾囊肿，大小约{size}。", "{side}肾见{size}囊肿。"),
        ("{side}肾未见囊肿。",), ("双肾未见囊肿。",), ("{side}肾{place}囊肿，约{size}。",),
    ),
    "kidney stone": Wording(
        ("{side}肾结石，大小约{size}。", "{side}肾见{size}结石。"),
        ("{side}肾未见结石。",), ("双肾未见结石。",), ("{side}肾{place}结石，约{size}。",),
    ),
    "ascites": Wording(
        ("腹水。", "腹腔内见积液。"), ("未见腹水。", "腹腔无积液。"), (), ("腹腔积液，考虑腹水。",),
    ),
    "aortic aneurysm": Wording(
        ("腹主动脉瘤，直径{size}。", "腹主动脉瘤，大小约{size}。"), ("未见腹主动脉瘤。",), (),
        ("{place}腹主动脉瘤，约{size}，伴附壁血栓。",),
    ),
}  # fmt: skip

WORDING: dict[Language, dict[str, Wording]] = {"en": ENGLISH, "zh": CHINESE}
SIDES: dict[Language, dict[str, str]] = {
    "en": {"right": "right", "left": "left"},
    "zh": {"right": "右", "left": "左"},
}
PLACES_ZH = {
    "upper lobe": "上叶", "middle lobe": "中叶", "lower lobe": "下叶", "posterior": "后段",
    "lateral": "腋段", "anterior": "前段", "thalamus": "丘脑", "frontal lobe": "额叶",
    "parietal lobe": "顶叶", "temporal lobe": "颞叶", "occipital lobe": "枕叶",
    "upper pole": "上极", "interpolar region": "中部", "lower pole": "下极", "infrarenal": "肾下",
}  # fmt: skip
NAMES_ZH = {
    "nodule": "结节", "mass": "肿块", "consolidation": "实变", "ground-glass opacity": "磨玻璃影",
    "pleural effusion": "胸腔积液", "pneumothorax": "气胸", "rib lesion": "肋骨病灶",
    "cardiomegaly": "心影增大", "pericardial effusion": "心包积液",
    "aortic calcification": "主动脉钙化", "vertebral lesion": "椎体病灶",
    "intracerebral haemorrhage": "脑出血", "subdural haematoma": "硬膜下血肿", "infarct": "脑梗死",
    "hydrocephalus": "脑积水", "liver lesion": "肝脏病灶", "renal cyst": "肾囊肿",
    "kidney stone": "肾结石", "ascites": "腹水", "aortic aneurysm": "腹主动脉瘤",
}  # fmt: skip
TECHNIQUES: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "chest": ("CT of the chest was performed.", "Axial CT of the chest without contrast.", "CT of the chest with contrast."),
        "head": ("CT of the head without contrast.", "Axial CT of the brain was performed."),
        "abdomen": ("CT of the abdomen was performed.", "Portal venous CT of the abdomen."),
    },
    "zh": {
        "chest": ("胸部CT平扫。", "胸部CT增强扫描。"), "head": ("头颅CT平扫。",), "abdomen": ("腹部CT平扫。", "腹部CT增强扫描。"),
    },
}  # fmt: skip
HEADINGS: dict[Language, tuple[str, str, str]] = {
    "en": ("TECHNIQUE", "FINDINGS", "IMPRESSION"),
    "zh": ("检查技术", "影像所见", "诊断意见"),
}
NOTHING: dict[Language, str] = {"en": "No abnormality is seen.", "zh": "未见异常。"}
