"""Other ways to say an instruction of the instruction suite, for recordings with paraphrases=true."""

from __future__ import annotations

from gr00t.errors import ToolkitError

# In place of the published sentence's verb, which each list begins with. No phrase fits two of the verbs.
VERBS = {
    "lift": ("Lift", "Pick up", "Raise"),
    "grasp": ("Grasp", "Grip", "Take hold of"),
    "push": ("Push", "Shove", "Push away"),
    "pull": ("Pull", "Drag", "Tug"),
    "slide": ("Slide", "Shift", "Move aside"),
    "rotate": ("Rotate", "Turn", "Spin"),
}


def ways_to_say(published: str) -> list[str]:
    """The published sentence, which begins with its verb, then its paraphrases: the same object in the same words."""
    verb, _, what = published.partition(" ")
    if verb.lower() not in VERBS:
        raise ToolkitError(f'"{published}": no paraphrase is known of this verb. Leave paraphrases=true out.')
    return [f"{phrase} {what}" for phrase in VERBS[verb.lower()]]
