"""Words that may be told of a study: fixed vocabularies, so that no free text passes for a term.

Values are matched against lists, never cleaned of what looks like a name: what is not known to be
harmless is left out. Knows no pydicom.
"""

from __future__ import annotations

import hashlib
import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODALITIES = _words("""
    AR ASMT AU BDUS BI BMD CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL
    IVOCT IVUS KER KO LEN LS M3D MG MR OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PLAN POS PR PT PX
    REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR
    SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC
""")
POSITIONS = _words("""
    HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL
""")
# Terms of PS3.16 Annex L for Body Part Examined (0018,0015), and how people spell them
_BODY = _words("""
    ABDOMEN ABDOMENPELVIS ACJOINT ADRENAL ANKLE AORTA ARM ARTERY AXILLA BACK BLADDER BODY BRAIN
    BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN
    CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE
    DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER
    HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM JOINT KIDNEY KNEE LARYNX LEG
    LIVER LSPINE LSSPINE LUNG LUNGS MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST
    NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PARATHYROID PAROTID PARTIALBODY
    PATELLA PELVIS PENIS PHARYNX PITUITARY PROSTATE RADIUS RADIUSULNA RECTUM RIB RIBS SACRUM SCALP
    SCAPULA SCLERA SCROTUM SELLA SHOULDER SIJOINT SINUS SINUSES SKULL SPINE SPLEEN SSPINE STERNUM
    STOMACH SUBMANDIBULAR TESTIS THIGH THORAX THUMB THYMUS THYROID TIBIAFIBULA TLSPINE TMJ TOE
    TONGUE TRACHEA TSPINE ULNA UPPERARM URETER URETHRA UTERUS VAGINA VEIN VULVA WHOLEBODY WRIST
    ZYGOMA ANGIO LOWER UPPER LEFT RIGHT WHOLE AND CERVICAL THORACIC LUMBAR
""")
_KERNEL_WORDS = _words("""
    STANDARD STD SOFT DETAIL BONE BONEPLUS LUNG CHEST EDGE SHARP SMOOTH BRAIN HEAD BODY ULTRA HIGH
    MEDIUM LOW FILTER AIDR IMR IDOSE CHST STND HD XR IRHR BRAINLCD
    ABDOMEN ABD NECK SPINE EAR INNER INNEREAR ASIR VEO
""")
# Siemens B30f, Br40d, I31f, Hr64; Canon FC08-H; Philips YA, UB, IRHR; a strength such as 3 or 11
_KERNEL = re.compile(r"(FC\d{2}(-H)?|[A-Z][a-z]?\d{2}[a-z]{0,2}|[A-Z]{1,2}\+?|\d{1,2})")
_DESCRIPTION = _words("""
    AX AXIAL COR CORONAL SAG SAGITTAL OBL OBLIQUE MPR MIP MINIP VR RECON THIN THICK SLICE SLICES MM
    CT MR MRI XR US PET CONTRAST WITH WITHOUT WO PLAIN NATIVE ENHANCED ARTERIAL VENOUS PORTAL
    DELAYED PHASE EARLY LATE PRE POST IV ORAL SCOUT LOCALIZER TOPOGRAM SURVEY ROUTINE FOLLOW UP
    STUDY SERIES IMAGE IMAGES SCAN VIEW VIEWS PA AP LAT LATERAL ERECT SUPINE PRONE INSPIRATION
    EXPIRATION WINDOW PERFUSION DIFFUSION DWI ADC FLAIR TSE FSE GRE EPI TOF SWI STIR DIXON FAT WATER
    SAT FS ANGIOGRAPHY DOSE TRAUMA TUMOR LESION NODULE FRACTURE HEMORRHAGE INFARCT NORMAL FINDINGS
    IMPRESSION TISSUE SOFT HARDER SOFTER
    WIDE NARROW USER CURVE TABLE STROKE
    NO OF THE IN TO LUNGS KIDNEYS SPLENIC HEPATIC RENAL CARDIAC
""")
_RESCALE_TYPES = _words("OD HU US MGML Z_EFF ED EDW HU_MOD PCT")
_FILE_WORDS = _words("""
    dcm dicom dic ima im img image i s se ser series st study slice ct mr mri cr dx us pt pet sr mg
    dicomdir dirfile file frame jpg png txt zip gz tar nii notes readme report phantom sample test
    empty broken truncated short pixels
    cut inner outer ok evil lost bad good first last second old new copy data export whole part
""")


_NAME_WORDS = frozenset(w.upper() for w in _FILE_WORDS) | _DESCRIPTION | _BODY


def modality(value: str) -> str:
    """A defined term of Modality (0008,0060), else nothing."""
    return value if value in MODALITIES else ""


def patient_position(value: str) -> str:
    """A defined term of Patient Position (0018,5100), else nothing."""
    return value if value in POSITIONS else ""


def sex(value: str) -> str:
    """M, F or O, else nothing."""
    return value if value in ("M", "F", "O") else ""


def body_part(value: str) -> str:
    """The value where each of its words names a part of the body, in capitals; else nothing."""
    words = re.findall(r"[A-Z]+", value.upper())
    known = all(w in _BODY for w in words) or "".join(words) in _BODY
    return " ".join(words) if words and known and not re.search(r"\d", value) else ""


def kernel(value: str) -> str:
    """The value where it is written as makers write kernels, else nothing."""
    words = value.split()
    known = (w.rstrip("+").upper() in _KERNEL_WORDS or _KERNEL.fullmatch(w) for w in words)
    return " ".join(words) if len(words) <= 3 and all(known) else ""


def rescale_type(value: str) -> str:
    """A defined term of Rescale Type (0028,1054), else words that say it is none."""
    return value if value in _RESCALE_TYPES else "no term of the standard"


def harmless_words(text: str) -> str:
    """What is left of a description when only anatomy, technique and short numbers stay."""
    kept = [
        w for w in re.findall(r"[A-Za-z]+|(?<!\d)\d{1,2}(?![\d.])", text)
        if w.upper() in _DESCRIPTION | _BODY or w.isdigit()
    ]  # fmt: skip
    return " ".join(kept)


def shown_name(name: str) -> str:
    """A file's name as it may be shown: itself where it only counts, else a short digest.

    Exports are often named after patients or by UIDs. `IM-0001-0007.dcm` and `slice_0003.dcm` stay;
    anything else becomes `file-3fa2c1.dcm`, the same for the same name.
    """
    words = re.findall(r"[A-Za-z]+", name.lower())
    numbers = re.findall(r"\d+", name)
    counts = all(len(n) <= 4 for n in numbers) and len(numbers) <= 4
    plain = re.fullmatch(r"[\w.-]+", name) and not re.search(r"\d\.\d", name)
    if {w.upper() for w in words} <= _NAME_WORDS and counts and plain:
        return name
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"file-{digest}" + (f".{ending}" if ending in _FILE_WORDS else "")
