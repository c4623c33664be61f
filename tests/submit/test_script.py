from __future__ import annotations

import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.submit.script import assignments

# What a shell variable can hold.
WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


@settings(max_examples=30, deadline=None)
@given(WORDS, st.lists(WORDS, max_size=4), st.integers())
def test_the_shell_reads_what_was_written(text: str, words: list[str], number: int) -> None:
    lines = assignments({"text": text, "words": words, "number": number})
    show = r"""printf '%s\0' "$text" "$number" "${#words[@]}" "${words[@]}" """
    said = subprocess.run(["bash", "-c", "\n".join([*lines, show])], capture_output=True, check=True)
    found = said.stdout.decode().split("\0")[:-1]
    assert found == [text, str(number), str(len(words)), *words]
