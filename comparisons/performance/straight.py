"""The straightforward version of a step, to measure against: everything is done anew for every delta.

Every text is folded, the playbook checked as a new one, the prompt written and its tokens counted piece by piece. It
folds and counts as the package does, so that what differs is the work repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from dspy_ace import Bullet, Playbook
from dspy_ace.playbook import Add, Delta, count_tokens, folded
from dspy_ace.playbook.text import section_slug


def step(playbook: Playbook, delta: Delta) -> tuple[str, int]:
    """Apply additions, merge repeats (the older stays), write the prompt, count it: (prompt, tokens)."""
    bullets = [Bullet(b.id, b.section, b.content, b.helpful, b.harmful, b.predictor, b.sources) for b in playbook]
    number = playbook.high_water
    for operation in delta.operations:
        if not isinstance(operation, Add):
            raise TypeError(f"the straightforward version only adds; got {operation.op}")
        number += 1
        name = f"{section_slug(operation.section)}-{number:05d}"
        bullets.append(Bullet(name, operation.section, operation.content, sources=operation.sources))
    gone = repeats([bullet.content for bullet in bullets])
    grown = Playbook(tuple(bullet for at, bullet in enumerate(bullets) if at not in gone), playbook.sections, number)
    prompt = "\n".join(bullet.block for bullet in grown)
    return prompt, count_tokens(prompt)


def repeats(texts: Sequence[str]) -> set[int]:
    """The places of texts that equal an earlier one, folded."""
    first: dict[str, int] = {}
    return {at for at, text in enumerate(texts) if first.setdefault(folded(text), at) != at}
