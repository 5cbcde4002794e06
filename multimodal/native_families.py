"""What sets families of native checkpoints apart beyond their processors: a table, by model type.

How CT is shown to them, whether they take a system turn, and the prompt of one whose checkpoint
brings no template. Knows no message.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How a family wants to be asked.

    Attributes:
        ct_profiles: view profiles of a CT; each slice is shown by one after the other.
        num_slices: of a study, at most.
        takes_system: whether its template knows a system turn; else its words open the first turn.
        chat_template: Jinja text, where the checkpoint has none.
    """

    ct_profiles: tuple[str, ...] = ("ct-lung", "ct-soft")
    num_slices: int = 16
    takes_system: bool = True
    chat_template: str | None = None


# mistral_common's InstructTokenizerV7 for Voxtral: sound first, then the words, no spaces between
_VOXTRAL = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '</s>' }}"
    "{% else %}{{ '[INST]' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}{{ '[BEGIN_AUDIO][AUDIO]' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '[/INST]' }}{% endif %}{% endfor %}"
)
_GEMMA = Family(("medgemma-ct",), 85)
FAMILIES = {
    "gemma3": _GEMMA, "gemma3n": _GEMMA, "gemma4": _GEMMA, "gemma4_unified": _GEMMA,
    "deepseek_vl": Family(takes_system=False), "deepseek_vl_hybrid": Family(takes_system=False),
    "voxtral": Family(takes_system=False, chat_template=_VOXTRAL),
}  # fmt: skip
# folders of LoRA adapters in a checkpoint, by the medium for which each is used
ADAPTERS = {"phi4_multimodal": {"image": "vision-lora", "audio": "speech-lora"}}


def family_of(model_type: str) -> Family:
    """The family's entry; for one that is not in the table the usual one."""
    return FAMILIES.get(model_type, Family())
